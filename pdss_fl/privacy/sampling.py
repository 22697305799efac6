"""Exact random decisions: whole numbers are compared, so no floating-point rounding enters a probability."""

from __future__ import annotations

import os
from collections.abc import Callable
from decimal import ROUND_CEILING, Decimal, localcontext

import numpy as np
from numpy.typing import NDArray

BITS = 128
"""``bernoulli`` resolves probabilities in steps of 2^-BITS."""

TABLE_BITS = 30
"""The highest weight of a ``weight_table`` is 2^TABLE_BITS."""

RandomBytes = Callable[[int], bytes]


def random_bytes(generator: np.random.Generator | None) -> RandomBytes:
    """Return the operating system's source of random bytes, or for simulation the generator's."""
    return os.urandom if generator is None else generator.bytes


def bernoulli(threshold: int, n: int, source: RandomBytes) -> NDArray[np.bool_]:
    """Return n independent decisions, each true with probability exactly ``threshold`` / 2^128.

    Parameters
    ----------
    threshold : int
        0 .. 2^128 - 1.
    n : int
        Number of decisions.
    source : RandomBytes
        From ``random_bytes``.
    """
    high, low = map(np.uint64, divmod(threshold, 2**64))
    first, second = _draw(n, source), _draw(n, source)
    true: NDArray[np.bool_] = (first < high) | ((first == high) & (second < low))
    return true


def bernoulli_float(probability: float, source: RandomBytes) -> bool:
    """Return one decision that is true with probability exactly ``probability``, any float64 in [0, 1]."""
    numerator, denominator = probability.as_integer_ratio()  # a power of two, 2^1074 at most
    return int.from_bytes(source(136), "little") * denominator < numerator << 1088


def uniform(bound: int | NDArray[np.int64], n: int, source: RandomBytes) -> NDArray[np.int64]:
    """Return n independent whole numbers 0 .. bound - 1, all exactly equally likely.

    Parameters
    ----------
    bound : int | numpy.ndarray, shape (n,)
        1 .. 2^63, one for all or one for each.
    n : int
        How many.
    source : RandomBytes
        From ``random_bytes``.
    """
    bounds = np.asarray(bound, dtype=np.uint64)
    drawn = _draw(n, source)
    # The highest 2^64 mod bound draws would favour the small numbers: draw again.
    last = ~(-bounds % bounds)
    while len(above := np.flatnonzero(drawn > last)):
        drawn[above] = _draw(len(above), source)
    return (drawn % bounds).astype(np.int64)


def weighted(weights: NDArray[np.int64], source: RandomBytes) -> NDArray[np.int64]:
    """Return for each row (n, V) of whole numbers of at least 0 a place, exactly in proportion to them.

    Each row's sum is above 0 and fits into 63 bits.
    """
    upto = weights.cumsum(axis=1)
    place = uniform(upto[:, -1], len(upto), source)
    chosen: NDArray[np.int64] = (upto <= place[:, None]).sum(axis=1)
    return chosen


def weight_table(span: float, steps: int) -> NDArray[np.int64]:
    """Return ``steps`` + 1 rising weights, about 2^30 e^(span (i / steps - 1)), no two more than e^span apart.

    That bound is exact. Where e^span is above 2^30, the lowest weight is 1, and they are less than that apart.
    """
    highest = 1 << TABLE_BITS
    with localcontext() as context:
        context.prec = 100
        exact = highest * (-Decimal(span)).exp() * (1 + Decimal(10) ** -60)  # more than 100 digits can be wrong
        lowest = min(highest, max(1, int(exact.to_integral_value(rounding=ROUND_CEILING))))
    graded = np.rint(highest * np.exp(span * (np.arange(steps + 1) / steps - 1)))
    table: NDArray[np.int64] = graded.clip(lowest, highest).astype(np.int64)
    table[0] = lowest
    return table


def _draw(n: int, source: RandomBytes) -> NDArray[np.uint64]:
    return np.frombuffer(source(8 * n), dtype="<u8").astype(np.uint64)
