"""Passes over the rows of a mechanism's matrix, block by block: extremes of columns, and how far rows are apart.

The bounded range of two inputs' rows is Hilbert's projective distance between them,

    eta(x, x') = max over y of ln(P(y|x) / P(y|x')) - min over y of the same,

so eta* is the diameter of V points, for which no method faster than V^3 is known. With u(x) and d(x), the most that
row x is above the lowest and below the highest entry of a column, rows scaled to a maximum of one,

    eta(x, x') <= (u(x) + d(x) + u(x') + d(x')) / 2.

Rows are compared with all others in the order of u + d, until no pair that is left can be further apart (for the
staircase one is enough) or the work is done that may be spent: then what is stated is an upper bound, and says so.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pdss_fl.privacy.mechanism import PrivacyMechanism

ROUNDING = 1e-9
"""By how much a measured epsilon, delta or sum of a row can be off without being called wrong."""

WORK = 4 * 10**9
"""Differences of logarithms that a measurement of V^3 of them may take: all pairs of 1,500 words."""

_KEPT_BYTES = 2**27  # of a matrix that is made only once: 4,096 words
_BLOCK_BYTES = 2**26  # of rows, otherwise
_CACHED = 2**16  # numbers that a processor keeps close while it compares rows
_LEAST_ROWS = 8  # that are compared with all others, however many there are
_FIRST_ROWS = 2


class Rows:
    """The rows of a mechanism's matrix, made once if they are small, or in blocks whenever they are needed."""

    def __init__(self, mechanism: PrivacyMechanism) -> None:
        self._mechanism, self.size = mechanism, len(mechanism.vocabulary)
        by_row = type(mechanism).log_prob_rows is not PrivacyMechanism.log_prob_rows
        small = 8 * self.size**2 <= _KEPT_BYTES
        self._whole = mechanism.log_prob() if small or not by_row else None

    def of(self, ids: Tensor) -> Tensor:
        """Return the rows of ids (n,), float64 (n, V)."""
        return self._mechanism.log_prob_rows(ids) if self._whole is None else self._whole[ids]

    def blocks(self, ids: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield some ids and their rows at a time; of all ids, or of some."""
        ids = torch.arange(self.size) if ids is None else ids
        for some in torch.split(ids, max(1, _BLOCK_BYTES // (8 * self.size))):
            yield some, self.of(some)


class Extremes:
    """The highest and lowest entry of every column, and whose row it is in."""

    def __init__(self) -> None:
        self.high = self.low = self._highest = self._lowest = torch.empty(0)

    def add(self, ids: Tensor, rows: Tensor) -> None:
        """Take in the rows (n, V) of ids (n,)."""
        (high, highest), (low, lowest) = rows.max(dim=0), rows.min(dim=0)
        if low.isnan().any():
            raise ValueError("the matrix of log-probabilities holds NaN")
        if not len(self.high):
            self.high, self._highest, self.low, self._lowest = high, ids[highest], low, ids[lowest]
            return
        self._highest = torch.where(high > self.high, ids[highest], self._highest)
        self._lowest = torch.where(low < self.low, ids[lowest], self._lowest)
        self.high, self.low = torch.maximum(high, self.high), torch.minimum(low, self.low)

    @property
    def possible(self) -> Tensor:
        """Which outputs some input leads to, shape (V,): the others tell nothing."""
        return self.high > -torch.inf

    def worst(self) -> tuple[float, tuple[int, int, int]]:
        """Return epsilon, and the x, x' and y that have it."""
        y = int(torch.where(self.possible, self.high - self.low, -torch.inf).argmax())
        return float(self.high[y] - self.low[y]), (int(self._highest[y]), int(self._lowest[y]), y)


def bounded_range(rows: Rows, scaled: Extremes, epsilon: float) -> tuple[float, bool]:
    """Return eta*, or an upper bound, and whether it is exact; from the extremes of the scaled rows and epsilon."""
    possible, reach = scaled.possible, torch.empty(rows.size, dtype=torch.float64)
    for ids, block in rows.blocks():
        block = (block - block.amax(dim=1, keepdim=True))[:, possible]
        above = (block - scaled.low[possible]).amax(dim=1)
        reach[ids] = (above + (scaled.high[possible] - block).amax(dim=1)) / 2
    order, found = reach.argsort(descending=True), 0.0
    affordable = min(rows.size, max(_LEAST_ROWS, WORK // rows.size**2))
    for compared in (order[:_FIRST_ROWS], order[_FIRST_ROWS:affordable]):
        if len(compared):
            found = max(found, _furthest(rows, rows.of(compared)[:, possible], possible))
            reach[compared] = -torch.inf
        most = max(found, min(2 * epsilon, float(reach.topk(2).values.sum())))
        if most <= found + ROUNDING:
            return found, True
    return most, False


def _furthest(rows: Rows, some: Tensor, possible: Tensor) -> float:
    """Return the largest eta of some rows (n, outputs) with any other."""
    found = 0.0
    for _, block in rows.blocks():
        block = block[:, possible]
        for part in torch.split(block, max(1, _CACHED // block.shape[1])):
            for row in some:
                low, high = (part - row).aminmax(dim=1)
                found = max(found, float((high - low).max()))
    return found
