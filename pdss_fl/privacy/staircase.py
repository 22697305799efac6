"""The nearest-set staircase: the Exponential Mechanism with an indicator score, tight and cheap to sample.

With V words, N_k(x) the k nearest to x (itself included) and Z = k e^eps + V - k, it releases

    Pr[y|x] = e^eps / Z  if y is in N_k(x),    1 / Z  otherwise.

Every input has exactly k near words, so Z is the same for all, the Exponential Mechanism's factor 2 is not
needed, and Pr[y|x] / Pr[y|x'] is 1, e^eps or e^-eps: pure epsilon-LDP, tight. k = 1 is k-ary randomised
response; all are extremal mechanisms in the sense of Kairouz, Oh and Viswanath (2014).
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pdss_fl.errors import SettingError
from pdss_fl.privacy.accounting import staircase_document
from pdss_fl.privacy.mechanism import (
    DocumentGuarantee,
    PrivacyGuarantee,
    PrivacyMechanism,
    register_mechanism,
)
from pdss_fl.privacy.sampling import BITS, RandomBytes, bernoulli, random_bytes, uniform
from pdss_fl.privacy.vocabulary import Vocabulary


@register_mechanism("staircase")
class Staircase(PrivacyMechanism):
    """Pure epsilon-LDP per token, and so is the sampler as it runs.

    The mass of the nearest set is a multiple of 2^-128, rounded down, and is decided by comparing whole
    numbers: the sampler's ratio of probabilities is never above e^eps, whatever epsilon is.

    Parameters
    ----------
    vocabulary : Vocabulary
        V words with their neighbours.
    epsilon : float
        In nats per token, finite, above 0.
    neighbours : int
        k, at least 1; taken as V-1 where it is larger.

    Raises
    ------
    SettingError
        If a parameter is out of range, or epsilon is so small that 128 bits cannot tell it from 0.
    """

    def __init__(self, vocabulary: Vocabulary, *, epsilon: float, neighbours: int) -> None:
        super().__init__(vocabulary, epsilon=epsilon, neighbours=neighbours)
        self._near = self._nearest_sets()
        self._threshold = near_threshold(self.epsilon, self.neighbours, len(vocabulary))

    def _nearest_sets(self) -> Tensor:
        """Return the near words of every word, LongTensor (V, k), k different ids a row, itself first."""
        return self.vocabulary.neighbours(self.neighbours)

    @property
    def guarantee(self) -> PrivacyGuarantee:
        """Pure LDP of every token."""
        return PrivacyGuarantee(
            "pure-ldp",
            self.epsilon,
            0.0,
            "token",
            f"Any two words lead to any released word with probabilities at most e^{self.epsilon:g} apart, "
            "whatever an attacker knows; the words of a text add up, and their number is not protected.",
        )

    @property
    def near_tokens(self) -> float:
        """The share of tokens that come out as one of their k nearest, k e^eps / Z."""
        return float(self._threshold / 2**BITS)

    @property
    def kept_tokens(self) -> float:
        """The share of tokens that come out unchanged, e^eps / Z, the same for every word."""
        return self.near_tokens / self.neighbours

    def perturb(self, ids: Tensor, generator: np.random.Generator | None = None) -> Tensor:
        """Replace every token independently of the others; see the base class.

        Raises
        ------
        ValueError
            If ``ids`` is not a LongTensor (n,) within 0 .. V-1.
        """
        near = self._near[self.vocabulary.checked(ids)].numpy()
        return draw(self._threshold, near, len(self.vocabulary), random_bytes(generator))

    def log_prob_rows(self, ids: Tensor) -> Tensor:
        """Return the log-probabilities that the sampler really has, float64 of shape (n, V), row = input."""
        return law(self._threshold, self._near[self.vocabulary.checked(ids)], len(self.vocabulary))

    def compose(self, tokens: int, delta: float) -> DocumentGuarantee:
        """Return the epsilon of ``tokens`` tokens at ``delta``: the exact one, or basic composition.

        See ``staircase_document``; where V < 2k, as for every mechanism.
        """
        if len(self.vocabulary) < 2 * self.neighbours:
            return super().compose(tokens, delta)
        return staircase_document(self.epsilon, self.neighbours, len(self.vocabulary), tokens, delta)


def near_threshold(epsilon: float, near: int, size: int) -> int:
    """Return the integer T with T / 2^128 just below k e^eps / Z, for any epsilon that a float can hold.

    Raises
    ------
    SettingError
        If T / 2^128 is not above k / V, what a uniform pick gives.
    """
    with localcontext() as context:
        context.prec = 100
        mass = near / (near + (size - near) * (-Decimal(epsilon)).exp())
        # Less by more than the 100 digits can be wrong; so it also stays below 1, and something is far.
        threshold = int(mass * (1 - Decimal(10) ** -60) * 2**BITS)
    if threshold * size <= near * 2**BITS:  # a nearest set below its share would turn the ratio round
        raise SettingError(f"privacy.epsilon = {epsilon!r} cannot be told from 0 by a sampler of {BITS} bits: raise it")
    return threshold


def draw(threshold: int, near: NDArray[np.int64], size: int, source: RandomBytes) -> Tensor:
    """Return for each row (n, k) of near ids one of them with mass T / 2^128, else another of the V = ``size``."""
    n, k = near.shape
    stays_near = bernoulli(threshold, n, source)
    one_near = near[np.arange(n), uniform(k, n, source)]
    one_far = outside(near, uniform(size - k, n, source))
    return torch.from_numpy(np.where(stays_near, one_near, one_far))


def law(threshold: int, near: Tensor, size: int) -> Tensor:
    """Return the log-probabilities of ``draw``, float64 (n, V), for rows (n, k) of near ids."""
    whole, k = 2**BITS, near.shape[1]
    close, far = math.log(threshold / (whole * k)), math.log((whole - threshold) / (whole * (size - k)))
    return torch.full((len(near), size), far, dtype=torch.float64).scatter_(1, near, close)


def outside(near: NDArray[np.int64], rank: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each row (n, k) of different ids the id of that rank (n,) among all others, ascending."""
    below = np.sort(near, axis=1) - np.arange(near.shape[1])  # how many others stand before each of them
    passed: NDArray[np.int64] = (below <= rank[:, None]).sum(axis=1)
    return rank + passed
