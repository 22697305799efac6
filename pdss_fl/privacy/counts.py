"""Noisy counts: the geometric mechanism (discrete Laplace), drawn exactly.

Source: Ghosh, Roughgarden and Sundararajan 2009 (arXiv 0811.2841). Noise k has the probability

    Pr[k] = (1 - a) / (1 + a) * a^|k|,    a = e^-epsilon,

so two counts that differ by one give any output with probabilities whose ratio is at most 1/a = e^epsilon: pure
epsilon-DP for whatever changes a count by one at most. ``a`` is rounded up to a float64, and every decision is exact
for that number, so the guarantee holds for the bits that are drawn and not for real numbers that they stand for.
"""

from __future__ import annotations

import math

from pdss_fl.privacy.sampling import RandomBytes, bernoulli_float

TEST_SPLIT = "test split"
"""Under this name a ledger charges what is told of all questions of a node's test split."""

_SMALLEST, _LARGEST = 0.01, 100.0


def noisy_count(count: int, epsilon: float, source: RandomBytes) -> int:
    """Return a count with fresh noise; may be negative, and above what can be counted.

    Parameters
    ----------
    count : int
        Changes by one at most between neighbouring data sets.
    epsilon : float
        0.01 .. 100 nats.
    source : RandomBytes
        From ``sampling.random_bytes``.
    """
    ratio = _ratio(epsilon)
    while True:
        size = 0
        while bernoulli_float(ratio, source):
            size += 1
        negative = bool(source(1)[0] & 1)
        if size or not negative:  # else 0 would come twice as often
            return count - size if negative else count + size


def log_prob(noise: int, epsilon: float) -> float:
    """Return the log-probability of a noise of ``noisy_count``, for audits."""
    ratio = _ratio(epsilon)
    return math.log1p(-ratio) - math.log1p(ratio) + abs(noise) * math.log(ratio)


def _ratio(epsilon: float) -> float:
    if not _SMALLEST <= epsilon <= _LARGEST:
        raise ValueError(f"epsilon {epsilon} of a noisy count: expected {_SMALLEST} to {_LARGEST}")
    return math.nextafter(math.exp(-epsilon), 1.0)
