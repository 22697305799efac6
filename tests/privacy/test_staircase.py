"""The default mechanism: its exact epsilon, its sampler, and what a document of its tokens is worth."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from torch import Tensor

from pdss_fl.errors import SettingError
from pdss_fl.privacy import PrivacyMechanism, Vocabulary, create_mechanism
from pdss_fl.privacy.attacks import optimal_success
from pdss_fl.privacy.audit import exact_epsilon
from pdss_fl.privacy.staircase import Staircase, near_threshold

EPSILON = st.floats(1e-6, 30)


def words(size: int, blanks: int = 8) -> Vocabulary:
    """``size`` ids, blanks among them."""
    count = size - blanks
    rows = torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
    return Vocabulary([f"w{i}" for i in range(count)], rows, blanks=blanks)


def staircase(size: int, epsilon: float, neighbours: int) -> PrivacyMechanism:
    return create_mechanism("staircase", words(size), epsilon=epsilon, neighbours=neighbours)


@given(EPSILON, st.integers(1, 25), st.integers(10, 24))
def test_the_audit_returns_the_claimed_epsilon(epsilon: float, k: int, size: int) -> None:
    mechanism = staircase(size, epsilon, k)
    matrix = mechanism.log_prob()
    assert mechanism.guarantee.epsilon == epsilon
    assert exact_epsilon(matrix) == pytest.approx(epsilon, abs=1e-9)
    torch.testing.assert_close(matrix.exp().sum(dim=1), torch.ones(size, dtype=torch.float64), rtol=0, atol=1e-12)


@given(st.floats(1e-30, 200), st.integers(1, 1000), st.integers(1, 50_000))
def test_the_sampler_never_has_more_than_the_claim(epsilon: float, k: int, others: int) -> None:
    """In exact arithmetic: near / far <= e^eps, and near is not below its uniform share."""
    size = k + others
    threshold = near_threshold(epsilon, k, size)
    assert 0 < threshold < 2**128
    assert threshold * size > k * 2**128
    with localcontext() as context:
        context.prec = 200
        ratio = Decimal(threshold * others) / Decimal((2**128 - threshold) * k)
        assert ratio <= Decimal(epsilon).exp()


@pytest.mark.parametrize("epsilon", [500.0, 1e6, 1e308])
def test_at_any_epsilon_something_far_is_possible(epsilon: float) -> None:
    assert near_threshold(epsilon, 3, 1000) < 2**128
    assert exact_epsilon(staircase(20, epsilon, 3).log_prob()) <= epsilon


@pytest.mark.parametrize("epsilon", [5e-324, 1e-40])
def test_an_epsilon_that_the_sampler_cannot_resolve_is_refused(epsilon: float) -> None:
    with pytest.raises(SettingError, match=r"privacy\.epsilon"):
        staircase(20, epsilon, 3)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan, math.inf])
def test_epsilon_is_finite_and_above_0(epsilon: float) -> None:
    with pytest.raises(SettingError, match=r"privacy\.epsilon = .*expected a finite number above 0"):
        staircase(20, epsilon, 3)


@pytest.mark.parametrize("neighbours", [0, -1])
def test_there_is_at_least_one_neighbour(neighbours: int) -> None:
    with pytest.raises(SettingError, match=r"privacy\.neighbours"):
        staircase(20, 1.0, neighbours)


@pytest.mark.parametrize(
    ("size", "masses"),
    [
        (2000, {6: 0.50, 8: 0.88, 10: 0.98}),
        (10_000, {6: 0.17, 8: 0.60, 10: 0.92}),
        (49_152, {6: 0.04, 8: 0.23, 10: 0.69, 12: 0.94}),
    ],
)
def test_near_mass_by_the_size_of_the_vocabulary(size: int, masses: dict[int, float]) -> None:
    """The project's table at k = 5, all of its digits."""
    for epsilon, near in masses.items():
        assert near_threshold(epsilon, 5, size) / 2**128 == pytest.approx(near, abs=0.0051)


@pytest.mark.parametrize(
    ("k", "epsilon", "near", "kept"),
    [(5, 6, 0.168, 0.034), (5, 8, 0.599, 0.120), (5, 10, 0.917, 0.183), (3, 10, 0.869, 0.290)],
)
def test_what_ten_thousand_words_keep_and_yield_to_the_best_attack(
    k: int, epsilon: float, near: float, kept: float
) -> None:
    """The staircase's rows of the project's table of mechanisms, all columns."""
    mechanism = ten_thousand(epsilon, k)
    assert mechanism.near_tokens == pytest.approx(near, abs=0.0006)
    assert mechanism.kept_tokens == pytest.approx(kept, abs=0.0006)
    row = mechanism.log_prob_rows(torch.tensor([0]))
    assert float(row.max() - row.min()) == pytest.approx(epsilon, abs=1e-9)
    assert float(row.max().exp()) == pytest.approx(kept, abs=0.0006)  # the largest of a column: the best guess


def test_what_is_expected_is_what_the_matrix_says() -> None:
    mechanism = staircase(40, 3.0, 4)
    probability = mechanism.log_prob().exp()
    z = 4 * math.exp(3.0) + 36
    assert mechanism.kept_tokens == pytest.approx(math.exp(3.0) / z, rel=1e-12)
    assert mechanism.kept_tokens == pytest.approx(float(probability.diagonal().mean()), rel=1e-12)
    near = probability.gather(1, mechanism.vocabulary.neighbours(4)).sum(dim=1)
    assert mechanism.near_tokens == pytest.approx(float(near.mean()), rel=1e-12)  # type: ignore[attr-defined]


@settings(max_examples=30)
@given(EPSILON, st.integers(1, 40), st.integers(0, 2**32))
def test_outputs_are_ids_and_seeds_repeat_them(epsilon: float, k: int, seed: int) -> None:
    mechanism = staircase(20, epsilon, k)
    ids = torch.arange(20).repeat(5)
    out = mechanism.perturb(ids, np.random.default_rng(seed))
    assert out.dtype == torch.long
    assert out.shape == ids.shape
    assert 0 <= int(out.min()) <= int(out.max()) < 20
    assert torch.equal(out, mechanism.perturb(ids, np.random.default_rng(seed)))


def test_every_far_word_is_reached_and_at_a_high_epsilon_none_is() -> None:
    ids = torch.zeros(4000, dtype=torch.long)
    assert set(staircase(20, 1e-3, 3).perturb(ids).tolist()) == set(range(20))
    high = staircase(20, 80.0, 3)
    assert set(high.perturb(ids).tolist()) == set(high.vocabulary.neighbours(3)[0].tolist())


@pytest.mark.parametrize("ids", [torch.tensor([-1]), torch.tensor([20]), torch.tensor([[1]]), torch.tensor([1.0])])
def test_ids_of_another_vocabulary_are_refused(ids: Tensor) -> None:
    with pytest.raises(ValueError, match="ids must be"):
        staircase(20, 1.0, 3).perturb(ids)


def test_nothing_in_nothing_out() -> None:
    assert staircase(20, 1.0, 3).perturb(torch.empty(0, dtype=torch.long)).shape == (0,)


def test_parameters_tell_recipes_apart() -> None:
    assert staircase(20, 8.0, 3).parameters == "epsilon=8 neighbours=3 vocabulary=20"
    assert staircase(20, 8.0, 99).parameters == "epsilon=8 neighbours=19 vocabulary=20"
    assert staircase(20, 8.0000001, 3).parameters != staircase(20, 8.0, 3).parameters


def test_uniform_prior_caps_the_optimal_attack() -> None:
    size, k, epsilon = 600, 5, 2.0
    mechanism = staircase(size, epsilon, k)
    uniform = torch.full((size,), 1 / size, dtype=torch.float64)
    cap = math.exp(epsilon) / (k * math.exp(epsilon) + size - k)
    assert optimal_success(mechanism, uniform) == pytest.approx(cap, rel=1e-9)


@pytest.mark.parametrize(("epsilon", "document"), [(2, 6.0), (4, 25.7), (6, 89.8), (8, 224), (10, 300)])
def test_known_document_epsilons(epsilon: float, document: float) -> None:
    """30 tokens at delta 1e-5 over 10,000 words with 5 neighbours."""
    composed = ten_thousand(epsilon).compose(30, 1e-5)
    assert composed.epsilon == pytest.approx(document, abs=0.5 if document > 100 else 0.05)
    assert composed.tokens == 30
    exact = epsilon < 10
    assert composed.delta == (1e-5 if exact else 0.0)
    assert composed.composition == ("exact dominating pair, n-fold (PLD)" if exact else "basic composition")


@lru_cache
def ten_thousand_words() -> Vocabulary:
    return Vocabulary([f"w{i}" for i in range(9992)], torch.zeros(9992, 1))


def ten_thousand(epsilon: float, neighbours: int = 5) -> Staircase:
    return Staircase(ten_thousand_words(), epsilon=epsilon, neighbours=neighbours)


def pair_epsilon(epsilon: float, k: int, size: int, tokens: int, delta: float) -> float:
    """Return the same figure by plain convolution and root finding."""
    z = k * math.exp(epsilon) + size - k
    token = np.array([k / z, (size - 2 * k) / z, k * math.exp(epsilon) / z])
    mass = np.array([1.0])
    for _ in range(tokens):
        mass = np.convolve(mass, token)
    loss = epsilon * np.arange(-tokens, tokens + 1)

    def excess(at: float) -> float:
        return float((mass * -np.expm1(np.minimum(at - loss, 0.0))).sum()) - delta

    return 0.0 if excess(0.0) <= 0 else float(optimize.brentq(excess, 0.0, tokens * epsilon, xtol=1e-12))


@settings(max_examples=60, deadline=None)
@given(
    st.floats(0.01, 20), st.integers(1, 8), st.integers(0, 400), st.integers(1, 60), st.floats(-9, -2)
)  # fmt: skip
def test_a_document_is_never_stated_below_the_direct_convolution(
    epsilon: float, k: int, more: int, tokens: int, log_delta: float
) -> None:
    size, delta = max(2 * k, 9) + more, 10.0**log_delta
    composed = staircase(size, epsilon, k).compose(tokens, delta)
    direct = pair_epsilon(epsilon, k, size, tokens, delta)
    assert composed.epsilon >= direct - 1e-9 * tokens * epsilon  # the root finder's own error
    if composed.composition != "basic composition":
        assert composed.epsilon <= direct + 0.01 * tokens * epsilon


def test_the_exact_epsilon_holds_for_the_worst_documents_of_a_real_matrix() -> None:
    """All pairs of two-word documents over a small vocabulary, no dominating pair assumed."""
    mechanism = staircase(12, 1.5, 2)
    token = mechanism.log_prob().exp()
    document = torch.einsum("ac,bd->abcd", token, token).reshape(144, 144)
    for delta in (0.05, 0.2):
        epsilon = mechanism.compose(2, delta).epsilon
        assert epsilon < 3.0
        worst = max(float((row - math.exp(epsilon) * document).clamp_min(0).sum(dim=1).max()) for row in document)
        assert worst <= delta * (1 + 1e-9)


@pytest.mark.parametrize(
    ("size", "tokens", "delta", "epsilon"), [(20, 30, 0.0, 60.0), (20, 0, 1e-5, 0.0), (9, 30, 1e-5, 60.0)]
)
def test_basic_composition_where_nothing_better_is_proven(size: int, tokens: int, delta: float, epsilon: float) -> None:
    composed = staircase(size, 2.0, 5).compose(tokens, delta)
    assert (composed.epsilon, composed.delta, composed.composition) == (epsilon, 0.0, "basic composition")
