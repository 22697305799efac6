"""Noisy counts: the ratios of their probabilities, worked out exactly, and what is drawn held against them."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from pdss_fl.privacy.counts import log_prob, noisy_count
from pdss_fl.privacy.sampling import bernoulli_float, random_bytes
from pdss_fl.privacy.statistical_audit import statistical_lower_bound
from pdss_fl.replies import noise_variance

EPSILONS = (0.01, 0.5, 1.0, 3.0, 100.0)


class Scripted:
    """A source of random bytes that decides as it is told, and counts what was decided."""

    def __init__(self, size: int, negative: bool) -> None:
        self.left, self.negative, self.decisions, self.signs = size, negative, 0, 0

    def __call__(self, count: int) -> bytes:
        if count == 1:
            self.signs += 1
            return b"\x01" if self.negative else b"\x00"
        self.decisions += 1
        go_on, self.left = self.left > 0, self.left - 1
        return bytes(count) if go_on else b"\xff" * count  # the smallest number is below any probability


def probability(noise: int, epsilon: float) -> Fraction:
    """Follow the sampler to one noise and multiply the exact probabilities of its decisions."""
    source = Scripted(abs(noise), noise < 0)
    assert noisy_count(10, epsilon, source) == 10 + noise
    assert (source.decisions, source.signs) == (abs(noise) + 1, 1), "one way leads there, without a second attempt"
    ratio = Fraction(math.nextafter(math.exp(-epsilon), 1.0))
    one_attempt = ratio ** abs(noise) * (1 - ratio) / 2
    return one_attempt / (1 - (1 - ratio) / 2)  # minus zero is drawn again


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_a_decision_is_exact_for_its_float(epsilon: float) -> None:
    """Of the 2^1088 equally likely numbers that decide, exactly ``ratio`` times as many say yes."""
    ratio = math.nextafter(math.exp(-epsilon), 1.0)
    last = Fraction(ratio) * 2**1088
    assert last.denominator == 1
    for number, decision in ((0, True), (int(last) - 1, True), (int(last), False), (2**1088 - 1, False)):
        assert bernoulli_float(ratio, lambda n, number=number: number.to_bytes(n, "little")) is decision


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_the_worst_ratio_of_two_neighbouring_counts_is_e_to_the_epsilon_and_not_above(epsilon: float) -> None:
    """Exact rationals; e^epsilon is enclosed by the series of the exponential function."""
    exact = Fraction(epsilon)
    term, below = Fraction(1), Fraction(1)
    for n in range(1, 400):
        term *= exact / n
        below += term
    noises = range(-12, 13)
    worst = max(probability(k, epsilon) / probability(k + 1, epsilon) for k in noises)
    assert worst <= below, "no output tells more than epsilon"
    assert float(worst / below) == pytest.approx(1.0, abs=1e-12), "and epsilon is not wasted"
    for k in noises:
        assert float(probability(k, epsilon)) == pytest.approx(math.exp(log_prob(k, epsilon)), rel=1e-9)


def test_the_probabilities_are_all_there_is() -> None:
    ratio = Fraction(math.nextafter(math.exp(-1.0), 1.0))
    inner = sum(probability(k, 1.0) for k in range(-30, 31))
    assert inner + 2 * probability(31, 1.0) / (1 - ratio) == 1


@pytest.mark.parametrize("epsilon", [0.2, 1.0, 2.5])
def test_what_is_drawn_is_distributed_as_stated(epsilon: float) -> None:
    draws = 20_000
    counts = Counter(noisy_count(0, epsilon, random_bytes(None)) for _ in range(draws))
    kept = [k for k in range(-60, 61) if draws * math.exp(log_prob(k, epsilon)) >= 20]
    expected = [draws * math.exp(log_prob(k, epsilon)) for k in kept]
    found = [counts[k] for k in kept]
    rest = (draws - sum(found), draws - sum(expected))
    distance = sum((f - e) ** 2 / e for f, e in [*zip(found, expected, strict=True), rest])
    assert stats.chi2.sf(distance, len(kept)) > 1e-9
    spread = sum(k * k * n for k, n in counts.items()) / draws
    assert spread == pytest.approx(noise_variance(epsilon), rel=0.15)


def test_the_statistical_audit_neither_refutes_the_claim_nor_finds_it_empty() -> None:
    import torch

    def release(ids: torch.Tensor, generator: np.random.Generator | None) -> torch.Tensor:
        return torch.tensor([noisy_count(int(ids[0]), 1.0, random_bytes(generator)) + 1000])

    inputs = torch.tensor([50]), torch.tensor([51])
    bound = statistical_lower_bound(release, *inputs, samples=8_000, generator=np.random.default_rng(3))
    assert 0.8 < bound.epsilon <= 1.0


@pytest.mark.parametrize("epsilon", [0.0, 0.009, 101.0, math.inf, math.nan, -1.0])
def test_an_epsilon_that_is_none_is_refused(epsilon: float) -> None:
    with pytest.raises(ValueError, match="epsilon"):
        noisy_count(3, epsilon, random_bytes(None))
