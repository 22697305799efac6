"""The staircase: its claim is its audit, its sampler is its matrix, its composition is the known table."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from pdss_fl.errors import SettingError
from pdss_fl.privacy import Vocabulary, available_mechanisms, create_mechanism, register_mechanism
from pdss_fl.privacy.attacks import optimal_success
from pdss_fl.privacy.audit import exact_epsilon
from pdss_fl.privacy.identity import Identity
from pdss_fl.privacy.staircase import Staircase
from tests.privacy.conftest import make_vocabulary


@settings(max_examples=80)
@given(st.floats(1e-6, 30.0), st.integers(1, 60), st.integers(2, 40))
def test_the_audited_epsilon_is_the_claimed_one(epsilon: float, neighbours: int, words: int) -> None:
    mechanism = Staircase(make_vocabulary(words), epsilon=epsilon, neighbours=neighbours)
    rows = mechanism.log_prob()
    assert torch.allclose(rows.exp().sum(dim=1), torch.ones(len(rows), dtype=torch.float64), atol=1e-12)
    audited = exact_epsilon(rows)
    assert audited <= mechanism.guarantee.epsilon + 1e-12
    assert audited == pytest.approx(epsilon, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("epsilon", [45.0, 100.0, 500.0])
def test_beyond_64_bits_the_claim_still_holds(epsilon: float) -> None:
    mechanism = Staircase(make_vocabulary(50), epsilon=epsilon, neighbours=3)
    assert exact_epsilon(mechanism.log_prob()) <= epsilon
    assert mechanism.log_prob().isfinite().all(), "a word that can never come out would make epsilon infinite"


@pytest.mark.parametrize("seed", [None, 7])
def test_the_sampler_has_the_stated_probabilities(seed: int | None) -> None:
    mechanism = Staircase(make_vocabulary(20, blanks=4), epsilon=2.0, neighbours=3)
    draws = 200_000
    ids = torch.full((draws,), 11)
    generator = None if seed is None else np.random.default_rng(seed)
    counts = torch.bincount(mechanism.perturb(ids, generator), minlength=24)
    expected = mechanism.log_prob()[11].exp() * draws
    assert chisquare(counts.numpy(), expected.numpy()).pvalue > 1e-9


def test_probabilities_are_those_of_the_formula(vocabulary: Vocabulary) -> None:
    mechanism = Staircase(vocabulary, epsilon=3.0, neighbours=4)
    z = 4 * math.exp(3.0) + len(vocabulary) - 4
    assert mechanism.kept_tokens == pytest.approx(math.exp(3.0) / z, rel=1e-12)
    assert mechanism.near_tokens == pytest.approx(4 * math.exp(3.0) / z, rel=1e-12)
    row = mechanism.log_prob()[17].exp()
    near = vocabulary.neighbours(4)[17]
    assert row[near].tolist() == pytest.approx([math.exp(3.0) / z] * 4)
    assert row.sum() - row[near].sum() == pytest.approx((len(vocabulary) - 4) / z)


def test_k_1_is_k_ary_randomised_response() -> None:
    mechanism = Staircase(make_vocabulary(9, blanks=0), epsilon=1.0, neighbours=1)
    assert mechanism.kept_tokens == pytest.approx(math.e / (math.e + 8))


def test_noise_differs_unless_it_is_seeded(vocabulary: Vocabulary) -> None:
    mechanism = Staircase(vocabulary, epsilon=1.0, neighbours=3)
    ids = torch.arange(100)
    assert not torch.equal(mechanism.perturb(ids), mechanism.perturb(ids))
    first, second = (mechanism.perturb(ids, np.random.default_rng(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert len(mechanism.perturb(torch.empty(0, dtype=torch.long))) == 0


@pytest.mark.parametrize(("epsilon", "expected"), [(2.0, 5.97), (4.0, 25.7), (6.0, 89.8), (8.0, 223.8), (10.0, 300.0)])
def test_thirty_tokens_compose_to_the_known_values(epsilon: float, expected: float) -> None:
    mechanism = Staircase(make_vocabulary(9_992, 4), epsilon=epsilon, neighbours=5)
    assert mechanism.compose(30, 1e-5).epsilon == pytest.approx(expected, rel=2e-3)


def convolved_delta(epsilon: float, k: int, size: int, tokens: int, document_epsilon: float) -> float:
    """The hockey-stick divergence of the dominating pair, by plain convolution."""
    z = k * math.exp(epsilon) + size - k
    one = [k / z, (size - 2 * k) / z, k * math.exp(epsilon) / z]
    masses = np.array([1.0])
    for _ in range(tokens):
        masses = np.convolve(masses, one)
    losses = (np.arange(len(masses)) - tokens) * epsilon
    above = losses > document_epsilon
    return float((masses[above] * -np.expm1(document_epsilon - losses[above])).sum())


@settings(max_examples=40, deadline=None)
@given(st.floats(0.05, 10.0), st.integers(1, 5), st.integers(12, 300), st.integers(1, 40))
def test_the_composition_is_an_upper_bound_and_tight(epsilon: float, k: int, words: int, tokens: int) -> None:
    mechanism = Staircase(make_vocabulary(words, 3), epsilon=epsilon, neighbours=k)
    document = mechanism.compose(tokens, 1e-5)
    assert document.epsilon <= tokens * epsilon
    if document.delta > 0:
        size = len(mechanism.vocabulary)
        assert convolved_delta(epsilon, k, size, tokens, document.epsilon) <= 1e-5 * (1 + 1e-6)
        slack = 2e-3 * tokens * epsilon + 1e-6
        if document.epsilon > slack:
            assert convolved_delta(epsilon, k, size, tokens, document.epsilon - slack) > 1e-5


def test_without_delta_or_with_overlapping_sets_composition_is_basic(vocabulary: Vocabulary) -> None:
    assert Staircase(vocabulary, epsilon=2.0, neighbours=3).compose(10, 0.0).epsilon == 20.0
    wide = Staircase(make_vocabulary(10, blanks=0), epsilon=2.0, neighbours=6)
    assert wide.compose(10, 1e-5).composition == "basic composition"


def test_the_best_attack_has_its_closed_form_and_its_cap(vocabulary: Vocabulary) -> None:
    mechanism = Staircase(vocabulary, epsilon=2.0, neighbours=3)
    size = len(vocabulary)
    uniform = torch.full((size,), 1 / size, dtype=torch.float64)
    assert optimal_success(mechanism, uniform) == pytest.approx(mechanism.kept_tokens)
    skewed = torch.arange(1, size + 1, dtype=torch.float64) ** -1.0
    skewed /= skewed.sum()
    found = optimal_success(mechanism, skewed)
    assert skewed.max() <= found <= min(1.0, math.exp(2.0) * float(skewed.max()))
    assert found > mechanism.kept_tokens
    with pytest.raises(ValueError, match="summing to 1"):
        optimal_success(mechanism, skewed * 2)


def test_an_impossible_output_makes_epsilon_infinite() -> None:
    rows = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64).log()
    assert exact_epsilon(rows) == math.inf
    assert exact_epsilon(rows[:1]) == 0.0


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan, math.inf])
def test_an_epsilon_without_meaning_is_refused(vocabulary: Vocabulary, epsilon: float) -> None:
    with pytest.raises(SettingError, match=r"privacy\.epsilon"):
        create_mechanism("staircase", vocabulary, epsilon=epsilon, neighbours=3)


def test_what_64_bits_cannot_resolve_is_refused(vocabulary: Vocabulary) -> None:
    with pytest.raises(SettingError, match="too small for 64 bits"):
        Staircase(vocabulary, epsilon=1e-25, neighbours=3)


def test_neighbours_and_vocabulary_have_bounds(vocabulary: Vocabulary) -> None:
    with pytest.raises(SettingError, match=r"privacy\.neighbours"):
        Staircase(vocabulary, epsilon=1.0, neighbours=0)
    assert Staircase(vocabulary, epsilon=1.0, neighbours=10_000).neighbours == len(vocabulary) - 1
    with pytest.raises(SettingError, match="at least 2 words"):
        Staircase(Vocabulary(["a"], torch.ones(1, 1), blanks=0), epsilon=1.0, neighbours=1)


def test_mechanisms_are_found_by_name_and_a_name_is_taken_once(vocabulary: Vocabulary) -> None:
    assert {"identity", "staircase"} <= set(available_mechanisms())
    with pytest.raises(SettingError, match=r"privacy\.mechanism = 'magic' is unknown; choose one of identity"):
        create_mechanism("magic", vocabulary, epsilon=1.0, neighbours=1)
    with pytest.raises(SettingError, match="registered already"):
        register_mechanism("staircase")(Identity)


def test_identity_claims_nothing(vocabulary: Vocabulary) -> None:
    mechanism = create_mechanism("identity", vocabulary, epsilon=1.0, neighbours=1)
    ids = torch.arange(10)
    assert torch.equal(mechanism.perturb(ids), ids)
    assert (mechanism.guarantee.kind, mechanism.guarantee.epsilon) == ("none", math.inf)
    assert mechanism.compose(5, 1e-5).epsilon == math.inf
    with pytest.raises(NotImplementedError, match="identity"):
        mechanism.log_prob()
