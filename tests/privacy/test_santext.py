"""SanText is metric LDP to the last word of its matrix; SanText+ shows where it is and where it is not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from pdss_fl.errors import SettingError
from pdss_fl.privacy import PrivacyMechanism, Vocabulary, create_mechanism
from pdss_fl.privacy.audit import exact_epsilon
from pdss_fl.testing import check_mechanism

EPSILON = st.floats(1e-3, 60)
SEED = st.integers(0, 2**32)


def words(size: int, dimensions: int = 4, seed: int = 0, blanks: int = 2) -> Vocabulary:
    """``size`` ids, blanks among them; every fifth embedding equals the first."""
    rows = torch.randn(size - blanks, dimensions, generator=torch.Generator().manual_seed(seed))
    rows[5::5] = rows[0]
    return Vocabulary([f"w{i}" for i in range(size - blanks)], rows, blanks=blanks)


def distances(vocabulary: Vocabulary) -> Tensor:
    return torch.from_numpy(vocabulary.distances(torch.arange(len(vocabulary)), slice(0, len(vocabulary))))


def worst_ratios(matrix: Tensor) -> Tensor:
    """Return max over y of ln P(y|x) - ln P(y|x'), of shape (V, V)."""
    return (matrix[:, None] - matrix[None]).amax(dim=2)


@pytest.mark.parametrize("epsilon", [1e-6, 1.0, 15.0, 100.0])
def test_santext_passes(epsilon: float) -> None:
    check_mechanism(lambda v: create_mechanism("santext", v, epsilon=epsilon, neighbours=1))


@pytest.mark.parametrize(("sensitive", "replaced"), [(0.5, 0.2), (0.01, 0.9), (1.0, 0.2), (0.5, 1.0)])
def test_santext_plus_passes(sensitive: float, replaced: float) -> None:
    check_mechanism(
        lambda v: create_mechanism("santext-plus", v, epsilon=5.0, sensitive=sensitive, replaced=replaced)
    )  # fmt: skip


@given(SEED, st.integers(4, 20), st.integers(1, 40))
def test_distances_are_a_metric_between_the_centred_unit_embeddings(seed: int, size: int, dimensions: int) -> None:
    vocabulary = words(size, dimensions, seed)
    found = distances(vocabulary)
    assert torch.equal(found, found.T)
    assert float(found.diagonal().abs().max()) == 0
    assert float(found.max()) <= 2
    assert bool((found[:, None, :] <= found[:, :, None] + found[None] + 1e-12).all()), "no detour is shorter"
    rows = torch.randn(size - 2, dimensions, generator=torch.Generator().manual_seed(seed)).double()
    rows[5::5] = rows[0]
    unit = normalize(rows - rows.mean(dim=0), dim=1)
    torch.testing.assert_close(found[:-2, :-2], torch.cdist(unit, unit), rtol=0, atol=0.05)
    torch.testing.assert_close(found[:-2, -2:], torch.full((size - 2, 2), math.sqrt(2)).double(), rtol=0, atol=0.01)


def test_distances_do_not_depend_on_what_is_asked_together() -> None:
    vocabulary = words(300, 77)
    whole = distances(vocabulary)
    for start in range(0, 300, 64):
        ids = torch.arange(start, min(start + 7, 300))
        part = vocabulary.distances(ids, slice(start, min(start + 64, 300)))
        np.testing.assert_array_equal(part, whole[ids, start : start + 64].numpy())


@given(EPSILON, SEED, st.integers(3, 20))
def test_any_two_words_keep_to_epsilon_times_their_distance(epsilon: float, seed: int, size: int) -> None:
    mechanism = create_mechanism("santext", words(size, seed=seed), epsilon=epsilon)
    matrix = mechanism.log_prob()
    excess = worst_ratios(matrix) - epsilon * distances(mechanism.vocabulary)
    assert (mechanism.guarantee.kind, mechanism.guarantee.epsilon) == ("metric-ldp", epsilon)
    assert float(excess.max()) <= 1e-9
    assert exact_epsilon(matrix) <= 2 * epsilon + 1e-9


def test_the_law_is_the_papers() -> None:
    vocabulary = words(20)
    expected = (-3.5 * distances(vocabulary)).log_softmax(dim=1)
    torch.testing.assert_close(create_mechanism("santext", vocabulary, epsilon=7.0).log_prob(), expected)


@pytest.mark.parametrize("epsilon", [0.5, 3.0])
def test_two_opposite_words_are_two_apart(epsilon: float) -> None:
    """At d = 2 a word is kept with 1 against e^-eps; Z is the same for both, so the pure epsilon is the nominal one."""
    pair = Vocabulary(["hot", "cold"], torch.tensor([[1.0], [-1.0]]), blanks=0)
    mechanism = create_mechanism("santext", pair, epsilon=epsilon)
    assert mechanism.kept_tokens == pytest.approx(1 / (1 + math.exp(-epsilon)))
    assert exact_epsilon(mechanism.log_prob()) == pytest.approx(epsilon)


def plus(epsilon: float, size: int, seed: int, sensitive: float, replaced: float) -> PrivacyMechanism:
    return create_mechanism(
        "santext-plus", words(size, seed=seed), epsilon=epsilon, sensitive=sensitive, replaced=replaced
    )  # fmt: skip


@given(EPSILON, SEED, st.integers(4, 20), st.floats(0.01, 0.9), st.floats(0.01, 0.99))
def test_the_ratios_of_santext_plus(epsilon: float, seed: int, size: int, sensitive: float, replaced: float) -> None:
    """Over the released words that are sensitive; over the others, the input is disclosed."""
    mechanism = plus(epsilon, size, seed, sensitive, replaced)
    matrix, first = mechanism.log_prob(), size - 2 - math.ceil(sensitive * (size - 2))
    outside = torch.arange(size) < first
    excess = worst_ratios(matrix[:, first:]) - epsilon * distances(mechanism.vocabulary)
    # ln P(y|x) - ln P(y|x'): rows x, columns x'
    allowed = math.log(replaced) * (outside[:, None].double() - outside[None].double())
    assert float((excess - allowed).max()) <= 1e-9
    kept = matrix[:first, :first]
    assert torch.equal(kept > -torch.inf, torch.eye(first, dtype=torch.bool))
    assert bool((matrix[first:, :first] == -torch.inf).all())
    assert exact_epsilon(matrix) == (math.inf if first else pytest.approx(exact_epsilon(matrix[first:, first:])))


def test_the_law_of_santext_plus_is_the_papers() -> None:
    mechanism = plus(6.0, 22, 0, 0.25, 0.3)  # 20 words, 5 of them sensitive, and 2 blanks
    probability = mechanism.log_prob().exp()
    over = (-3.0 * distances(mechanism.vocabulary)[:, 15:]).softmax(dim=1)
    torch.testing.assert_close(probability[15:, 15:], over[15:])
    torch.testing.assert_close(probability[:15, 15:], 0.3 * over[:15])
    torch.testing.assert_close(probability[:15, :15], 0.7 * torch.eye(15, dtype=torch.float64))


def test_all_words_sensitive_is_santext() -> None:
    mechanism = plus(6.0, 20, 1, 1.0, 0.2)
    expected = create_mechanism("santext", mechanism.vocabulary, epsilon=6.0).log_prob()
    torch.testing.assert_close(mechanism.log_prob(), expected)


def test_what_is_not_sensitive_is_not_called_protected() -> None:
    guarantee = plus(6.0, 22, 0, 0.5, 0.2).guarantee
    assert (guarantee.kind, guarantee.epsilon) == ("none", math.inf)
    assert "The 10 most important words are sent as they are with probability 0.8" in guarantee.statement


@pytest.mark.parametrize("name", ["sensitive", "replaced"])
@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, math.nan])
def test_shares_are_shares(name: str, share: float) -> None:
    with pytest.raises(SettingError, match=rf"privacy\.parameters: {name}"):
        create_mechanism("santext-plus", words(20), epsilon=1.0, **{name: share})


@pytest.mark.parametrize("share", [5e-324, 1e-300, 9e-101])
def test_a_share_too_small_for_its_odds_is_refused_with_its_range(share: float) -> None:
    with pytest.raises(SettingError, match=r"privacy\.parameters: replaced = .* from 1e-100 to 1"):
        create_mechanism("santext-plus", words(20), epsilon=1.0, replaced=share)
    create_mechanism("santext-plus", words(20), epsilon=1.0, replaced=1e-100).perturb(torch.arange(20))


def test_weights_that_no_float_holds_are_refused() -> None:
    with pytest.raises(SettingError, match=r"privacy\.epsilon = 1000"):
        create_mechanism("santext", words(20), epsilon=1000.0).perturb(torch.arange(20))


def test_parameters_tell_recipes_apart() -> None:
    made = [
        plus(6.0, 20, 0, 0.5, 0.2),
        plus(6.5, 20, 0, 0.5, 0.2),
        plus(6.0, 20, 0, 0.4, 0.2),
        plus(6.0, 20, 0, 0.5, 0.3),
    ]
    assert len({mechanism.parameters for mechanism in made}) == len(made)
