"""Exact random decisions: whole numbers are compared, so no floating-point rounding enters a probability."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

BITS = 128
"""``bernoulli`` resolves probabilities in steps of 2^-BITS."""

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


def uniform(bound: int, n: int, source: RandomBytes) -> NDArray[np.int64]:
    """Return n independent whole numbers 0 .. bound - 1, all exactly equally likely."""
    last = np.uint64(2**64 - 1 - 2**64 % bound)  # draws above it would favour the small numbers: draw again
    drawn = _draw(n, source)
    while (above := drawn > last).any():
        drawn[above] = _draw(int(above.sum()), source)
    return (drawn % np.uint64(bound)).astype(np.int64)


def _draw(n: int, source: RandomBytes) -> NDArray[np.uint64]:
    return np.frombuffer(source(8 * n), dtype="<u8").astype(np.uint64)
