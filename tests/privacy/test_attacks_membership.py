"""Membership inference from scores whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdss_fl.privacy.attacks import membership_attack

scores = st.lists(st.integers(-4, 4).map(float), min_size=2, max_size=12)


@given(scores, scores)
def test_the_auc_is_the_share_of_pairs_in_order(members: list[float], others: list[float]) -> None:
    found = membership_attack(members, others)
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in members for b in others]
    assert found.auc == pytest.approx(sum(pairs) / len(pairs))
    assert 0 <= found.low <= found.auc <= found.high <= 1


@given(scores, scores)
def test_true_positives_keep_to_the_false_ones(members: list[float], others: list[float]) -> None:
    found = membership_attack(members, others, rates=(0.0, 0.25, 0.5))
    for rate, hit in found.true_positives.items():
        allowed = [t for t in {*members, *others, -9.0} if sum(o > t for o in others) <= rate * len(others)]
        assert hit.hits == max(sum(m > t for m in members) for t in allowed)


def test_the_interval_solves_newcombes_equation_and_is_none_at_neither_end() -> None:
    found = membership_attack([1.0, 3.0, 4.0, 6.0], [0.0, 2.0, 5.0], confidence=0.95)
    assert found.auc == pytest.approx(8 / 12)
    for truth in (found.low, found.high):
        spare = 2.5
        variance = truth * (1 - truth) * (1 + spare * (1 - truth) / (2 - truth) + spare * truth / (1 + truth)) / 12
        assert abs(found.auc - truth) == pytest.approx(1.959964 * variance**0.5, rel=1e-5)
    apart = membership_attack([2.0] * 20, [1.0] * 20)
    assert (apart.auc, apart.high) == (1.0, 1.0)
    assert 0.7 < apart.low < 1.0


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng, truth = np.random.default_rng(0), 0.7602  # P(X > Y) for normals one apart: Phi(1 / sqrt 2)
    tries = [membership_attack(rng.normal(1, 1, 40), rng.normal(0, 1, 40), confidence=0.9) for _ in range(600)]
    inside = np.mean([found.low <= truth <= found.high for found in tries])
    assert 0.86 < inside < 0.95


@pytest.mark.parametrize(("members", "others"), [([1.0], [1.0, 2.0]), ([1.0, np.nan], [1.0, 2.0])])
def test_too_few_or_broken_scores_are_refused(members: list[float], others: list[float]) -> None:
    with pytest.raises(ValueError, match="two finite scores"):
        membership_attack(members, others)
