"""Mechanisms that are a dense matrix of probabilities: prepared row by row, and sampled exactly.

A row's log-weights become float64 weights w, which are exact binary fractions, and what is released has
probability w / sum(w) to the last bit: no rounding of a sum enters. A draw goes in three steps.

1. A prepared row is the cumulative sums, whole numbers, of ceil(w) over blocks of 32 outputs. One uniform whole
   number below their total finds a block.
2. The block's weights are computed again. Its rest of the number finds the output and a place below ceil(w).
3. A place below floor(w) is accepted; the one above it only with probability w - floor(w), else all is drawn
   again. So an output's chance is in proportion to w, even where w is a tiny fraction of one unit.

This is rejection from an integer envelope; of 2^45 draws fewer than V are rejected. Only 8 bytes for 32 outputs
are kept, so all rows of a vocabulary of 49,152 words take 604 MB.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pdss_fl.errors import SettingError
from pdss_fl.privacy.audit import renyi_curve
from pdss_fl.privacy.audit_rows import WORK
from pdss_fl.privacy.mechanism import PrivacyMechanism
from pdss_fl.privacy.sampling import RandomBytes, bernoulli_float, random_bytes, uniform
from pdss_fl.privacy.vocabulary import Vocabulary

SPAN = 700.0
"""How far below the largest of its row a log-weight can be: e^-700 is a float64 with all its bits."""

_BLOCK = 32  # outputs whose weights are added up in one entry of a prepared row
_ROWS_BYTES = 5 * 2**27  # of all prepared rows together
_WORK_ROWS = 128  # computed at a time,
_WORK_BYTES = 2**26  # or fewer, if they are long
_TOKENS = 2**17  # that are drawn at a time
_GROUP = 2**12  # tokens of one block that are looked at together
_ORDERS = [1 + 2 ** (i / 2) for i in range(-10, 13)]  # of the Renyi curve
_CURVE_ROUNDING = 1e-9  # more than float64 can be wrong about it


class MatrixMechanism(PrivacyMechanism):
    """A context-free mechanism given by its log-weights; ``perturb`` has exactly the law ``log_prob_rows`` states.

    A subclass implements ``_log_weights`` and ``guarantee``.

    Parameters
    ----------
    vocabulary : Vocabulary
        V tokens.
    epsilon : float
        In nats per token, finite, above 0.
    neighbours : int
        As for every mechanism; not used here.

    Raises
    ------
    SettingError
        If a parameter is out of range; later, naming ``privacy.epsilon``, if a weight is above 0 but less than
        e^-700 of the largest of its row: it would never come out, and the true epsilon would be infinite.
    """

    _unit_bits: ClassVar[int] = 45
    """A row's largest weight is 2^45 units, or fewer for more than 2^16 tokens; any number is exact."""

    def __init__(self, vocabulary: Vocabulary, *, epsilon: float, neighbours: int) -> None:
        super().__init__(vocabulary, epsilon=epsilon, neighbours=neighbours)
        size = len(vocabulary)
        self._starts = np.arange(0, size, _BLOCK)
        self._bits = min(self._unit_bits, 61 - size.bit_length())  # a row's total stays below 2^62
        capacity = min(size, max(1, _ROWS_BYTES // (8 * len(self._starts))))
        self._slots = np.full(size, -1)  # where a token's prepared row is; -1: nowhere
        self._used = 0
        self._cumulative = np.empty((capacity, len(self._starts)), dtype=np.int64)
        self._shifts = np.empty(capacity)

    @abstractmethod
    def _log_weights(self, ids: Tensor, outputs: slice) -> Tensor:
        """Return the logarithms of the unnormalised probabilities of some outputs.

        They must depend on the input and the output only, to the last bit, and not on what else is asked for
        in the same call: round scores from matrix products (see ``Vocabulary.cosines``).

        Parameters
        ----------
        ids : LongTensor, shape (n,)
            Inputs, valid ids, repeated ones among them.
        outputs : slice
            ``start:stop`` within 0 .. V.

        Returns
        -------
        Tensor, shape (n, stop - start)
            float64; minus infinity for an output that is impossible, at least one finite a row.
        """

    def perturb(self, ids: Tensor, generator: np.random.Generator | None = None) -> Tensor:
        """Replace every token independently of the others; see the base class.

        Raises
        ------
        ValueError
            If ``ids`` is not a LongTensor (n,) within 0 .. V-1, or a log-weight is NaN.
        """
        tokens, source = self.vocabulary.checked(ids).numpy(), random_bytes(generator)
        released = np.empty(len(tokens), dtype=np.int64)
        all_fit = len(self._cumulative) == len(self.vocabulary)
        at_a_time = _TOKENS if all_fit else min(_TOKENS, len(self._cumulative))
        for start in range(0, len(tokens), at_a_time):
            waiting = np.arange(start, min(start + at_a_time, len(tokens)))
            while len(waiting):
                released[waiting], accepted = self._draw(tokens[waiting], source)
                waiting = waiting[~accepted]
        return torch.from_numpy(released)

    def log_prob_rows(self, ids: Tensor) -> Tensor:
        """Return the log-probabilities that the sampler really has, float64 of shape (n, V), row = input.

        Their own rounding is below 1e-12.
        """
        rows = np.empty((len(ids), len(self.vocabulary)))
        for start, weights, _ in self._weight_rows(self.vocabulary.checked(ids).numpy()):
            part = rows[start : start + len(weights)]
            with np.errstate(divide="ignore"):  # an impossible output
                np.log(weights, out=part)
            part -= np.log(weights.sum(axis=1, keepdims=True))
        return torch.from_numpy(rows)

    @cached_property
    def renyi_curve(self) -> tuple[tuple[float, float], ...]:
        """The exact curve, from orders 1.03 to 65, of up to 1,587 words; it takes 23 V^3 multiplications, once."""
        if len(self.vocabulary) ** 3 > WORK:
            return ()
        divergences = renyi_curve(self, _ORDERS) + _CURVE_ROUNDING
        return tuple(zip(_ORDERS, divergences.tolist(), strict=True))

    @property
    def kept_tokens(self) -> float:
        """The share of tokens that are expected to come out unchanged, every word equally likely."""
        kept = 0.0
        for start, weights, _ in self._weight_rows(np.arange(len(self.vocabulary))):
            rows = np.arange(len(weights))
            kept += float((weights[rows, start + rows] / weights.sum(axis=1)).sum())
        return kept / len(self.vocabulary)

    def _draw(self, tokens: NDArray[np.int64], source: RandomBytes) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return one proposed output a token, and which of them are accepted."""
        slots = self._prepared(tokens)
        number = uniform(self._cumulative[slots, -1], len(tokens), source)
        block = _count_up_to(self._cumulative, slots, number)
        place = number - np.where(block > 0, self._cumulative[slots, block - 1], 0)
        output, accepted = np.empty_like(tokens), np.empty(len(tokens), dtype=np.bool_)
        order = np.argsort(block, kind="stable")
        bounds = np.searchsorted(block[order], np.arange(len(self._starts) + 1))
        for b in np.flatnonzero(np.diff(bounds)):
            for start in range(bounds[b], bounds[b + 1], _GROUP):
                which = order[start : min(start + _GROUP, bounds[b + 1])]
                outputs = slice(int(self._starts[b]), min(int(self._starts[b]) + _BLOCK, len(self.vocabulary)))
                log_weights = self._log_weights(torch.from_numpy(tokens[which]), outputs).numpy()
                weights = np.exp(log_weights - self._shifts[slots[which], None])
                inner, accepted[which] = _pick(weights, place[which], source)
                output[which] = outputs.start + inner
        return output, accepted

    def _prepared(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where the tokens' rows are, after preparing those that are missing."""
        missing = np.unique(tokens[self._slots[tokens] < 0])
        if self._used + len(missing) > len(self._cumulative):  # full: forget all, prepare what is needed now
            self._slots[:], self._used = -1, 0
            missing = np.unique(tokens)
        for start, weights, shifts in self._weight_rows(missing):
            slots = self._used + np.arange(len(weights))
            # Sums of a block are below 2^51: float64 holds them exactly.
            sums = np.add.reduceat(np.ceil(weights, out=weights), self._starts, axis=1)
            np.cumsum(sums.astype(np.int64), axis=1, out=self._cumulative[slots[0] : slots[-1] + 1])
            self._shifts[slots], self._slots[missing[start + np.arange(len(slots))]] = shifts, slots
            self._used += len(slots)
        return self._slots[tokens]

    def _weight_rows(self, ids: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.float64], NDArray[np.float64]]]:
        """Yield some rows at a time: where they start in ``ids``, weights (rows, V), logarithms of their unit."""
        size = len(self.vocabulary)
        step = max(1, min(_WORK_ROWS, _WORK_BYTES // (8 * size)))
        for start in range(0, len(ids), step):
            log_weights = self._log_weights(torch.from_numpy(ids[start : start + step]), slice(0, size)).numpy()
            highest = log_weights.max(axis=1)
            self._check_span(log_weights, highest)
            shifts = highest - self._bits * math.log(2)
            weights = np.subtract(log_weights, shifts[:, None])
            yield start, np.exp(weights, out=weights), shifts

    def _check_span(self, log_weights: NDArray[np.float64], highest: NDArray[np.float64]) -> None:
        if not np.isfinite(highest).all():
            raise ValueError(f"mechanism {self.name!r}: a row of log-weights holds NaN, or nothing that is finite")
        lowest = log_weights.min(axis=1)
        if np.isneginf(lowest).any():
            lowest = log_weights.min(axis=1, where=log_weights > -np.inf, initial=np.inf)
        if (highest - lowest > SPAN).any():
            raise SettingError(
                f"privacy.epsilon = {self.epsilon!r}: a far word would be less than e^-{SPAN:.0f} times as likely as a "
                "near one, which is below what a number can hold, and the true epsilon infinite: lower it"
            )


def _count_up_to(table: NDArray[np.int64], rows: NDArray[np.int64], numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many entries of its ascending row of the table are not above each number: a binary search."""
    count = np.zeros_like(numbers)
    step = 1 << (table.shape[1].bit_length() - 1)
    while step:
        further = np.minimum(count + step, table.shape[1])
        count = np.where(table[rows, further - 1] <= numbers, further, count)
        step >>= 1
    return count


def _pick(
    weights: NDArray[np.float64], place: NDArray[np.int64], source: RandomBytes
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return in which column's ceil(weight) each row's place (n,) falls, and whether it is accepted there."""
    rows, units = np.arange(len(weights)), np.ceil(weights)
    ends = units.cumsum(axis=1)
    # Never beyond the last column, unless a log-weight was not the same twice: then it is drawn again.
    column = np.minimum((ends <= place[:, None]).sum(axis=1), weights.shape[1] - 1)
    weight, within = weights[rows, column], place - (ends - units)[rows, column]
    whole = np.floor(weight)
    accepted = within < whole
    for row in np.flatnonzero((within == whole) & (weight > whole)):  # the last unit, of which it has a part
        accepted[row] = bernoulli_float(float(weight[row] - whole[row]), source)
    return column, accepted
