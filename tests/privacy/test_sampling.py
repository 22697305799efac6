"""Random decisions are exact: the bytes decide by comparison, and nothing favours small numbers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pdss_fl.privacy.sampling import bernoulli, random_bytes, uniform


class Tape:
    """A source that returns prepared 64-bit numbers in order."""

    def __init__(self, *numbers: int) -> None:
        self.bytes = b"".join(n.to_bytes(8, "little") for n in numbers)

    def __call__(self, n: int) -> bytes:
        taken, self.bytes = self.bytes[:n], self.bytes[n:]
        assert len(taken) == n
        return taken


@pytest.mark.parametrize(
    ("drawn", "threshold", "true"),
    [
        (0, 1, True),
        (0, 0, False),
        (2**127, 2**127, False),
        (2**127 - 1, 2**127, True),
        (5 * 2**64 + 7, 5 * 2**64 + 8, True),
        (5 * 2**64 + 8, 5 * 2**64 + 8, False),
        (6 * 2**64, 5 * 2**64 + 8, False),
        (2**128 - 2, 2**128 - 1, True),
        (2**128 - 1, 2**128 - 1, False),
    ],
)
def test_a_decision_compares_all_128_bits(drawn: int, threshold: int, true: bool) -> None:
    assert bernoulli(threshold, 1, Tape(drawn >> 64, drawn % 2**64)).tolist() == [true]


def test_draws_that_would_favour_small_numbers_are_repeated() -> None:
    # 2^64 = 1 mod 3, so exactly the highest draw is one too many.
    assert uniform(3, 2, Tape(2**64 - 1, 2**64 - 2, 7)).tolist() == [1, 2]
    assert uniform(2**63, 1, Tape(2**64 - 1)).tolist() == [2**63 - 1]  # divides 2^64: nothing to repeat
    assert uniform(1, 1, Tape(2**64 - 1)).tolist() == [0]


@pytest.mark.parametrize("seed", [None, 0])
def test_frequencies(seed: int | None) -> None:
    source = random_bytes(None if seed is None else np.random.default_rng(seed))
    counts = np.bincount(uniform(7, 70_000, source), minlength=7)
    assert stats.chisquare(counts).pvalue > 1e-9
    hits = int(bernoulli(2**128 // 5, 50_000, source).sum())
    assert stats.binomtest(hits, 50_000, 0.2).pvalue > 1e-9


def test_nothing_to_draw() -> None:
    assert bernoulli(1, 0, random_bytes(None)).shape == uniform(3, 0, random_bytes(None)).shape == (0,)
