"""Noise on embeddings: its law against quadrature, and metric LDP as far as counts can show it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from pdss_fl.errors import SettingError
from pdss_fl.privacy import PrivacyMechanism, Vocabulary, create_mechanism
from pdss_fl.testing import check_mechanism

NAMES = ["metric-laplace", "metric-mahalanobis"]
DRAWS = 40_000
PAIR = Vocabulary(["hot", "cold"], torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), blanks=0)


def words(size: int, dimensions: int) -> Vocabulary:
    rows = torch.randn(size, dimensions, generator=torch.Generator().manual_seed(0))
    return Vocabulary([f"w{i}" for i in range(size)], rows * torch.arange(1, dimensions + 1), blanks=0)


def counts(mechanism: PrivacyMechanism, word: int, seed: int) -> np.ndarray:
    released = mechanism.perturb(torch.full((DRAWS,), word), np.random.default_rng(seed))
    return torch.bincount(released, minlength=len(mechanism.vocabulary)).double().numpy()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("epsilon", [1e-6, 1.0, 1000.0])
def test_metric_laplace_passes_for_what_can_be_checked(name: str, epsilon: float) -> None:
    check_mechanism(lambda v: create_mechanism(name, v, epsilon=epsilon, neighbours=1))


def crossing(epsilon: float, reach: float) -> float:
    """Return how likely r v_1 > reach is in 3 dimensions, by quadrature: v_1 is uniform on [-1, 1] there."""

    def density(r: float) -> float:
        return float(stats.gamma.pdf(r, 3, scale=1 / epsilon) * (1 - reach / r) / 2)

    return float(integrate.quad(density, reach, np.inf)[0])


@pytest.mark.parametrize("epsilon", [0.5, 2.0, 5.0])
def test_two_words_are_exchanged_as_often_as_the_noise_crosses_the_middle(epsilon: float) -> None:
    """The two are at 1 and -1 of one axis; the embedding has 2 dimensions, and one is for filling words."""
    mechanism = create_mechanism("metric-laplace", PAIR, epsilon=epsilon)
    found = int(counts(mechanism, 0, 0)[1])
    assert stats.binomtest(found, DRAWS, crossing(epsilon, 1.0)).pvalue > 1e-6


@pytest.mark.parametrize("covariance", [0.2, 0.9])
def test_mahalanobis_noise_is_longer_where_words_vary(covariance: float) -> None:
    """All variance is on one axis of 3: scaled to a mean of 1, it is 3 there."""
    mechanism = create_mechanism("metric-mahalanobis", PAIR, epsilon=2.0, covariance=covariance)
    stretch = math.sqrt(1 - covariance + 3 * covariance)
    found = int(counts(mechanism, 0, 0)[1])
    assert stats.binomtest(found, DRAWS, crossing(2.0, 1 / stretch)).pvalue > 1e-6


def test_without_covariance_mahalanobis_is_laplace() -> None:
    ids = torch.arange(30).repeat(20)
    plain, other = (
        create_mechanism(name, words(30, 4), epsilon=4.0, **more).perturb(ids, np.random.default_rng(5))
        for name, more in (("metric-laplace", {}), ("metric-mahalanobis", {"covariance": 0.0}))
    )
    assert torch.equal(plain, other)


def metric(vocabulary: Vocabulary, covariance: float) -> np.ndarray:
    """Return the Mahalanobis distances of all pairs, from the definition."""
    rows = vocabulary.directions.astype(np.float64)
    found = np.cov(rows, rowvar=False, bias=True)
    sigma = covariance * found / np.diag(found).mean() + (1 - covariance) * np.eye(rows.shape[1])
    difference = rows[:, None] - rows[None]
    squared: np.ndarray = np.einsum("xyi,ij,xyj->xy", difference, np.linalg.inv(sigma), difference)
    return np.sqrt(squared)


@pytest.mark.parametrize(("name", "covariance"), [("metric-laplace", 0.0), ("metric-mahalanobis", 0.8)])
@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_counts_keep_to_epsilon_times_the_distance(name: str, covariance: float, epsilon: float) -> None:
    """Any output, any two of 8 words: Pr[y|x] <= e^(eps d) Pr[y|x'], within six standard errors."""
    vocabulary = words(8, 3)
    more = {"covariance": covariance} if covariance else {}
    mechanism = create_mechanism(name, vocabulary, epsilon=epsilon, **more)
    share = np.stack([counts(mechanism, x, x) for x in range(8)]) / DRAWS
    allowed = np.exp(epsilon * metric(vocabulary, covariance))[:, :, None]
    np.testing.assert_allclose(mechanism.distances(torch.arange(8)), metric(vocabulary, covariance), atol=1e-7)
    error = np.sqrt(share[:, None] + allowed**2 * share[None]) / math.sqrt(DRAWS) + 1 / DRAWS
    assert (share[:, None] - allowed * share[None] <= 6 * error).all()
    assert (share[:, None] - share[None] > 6 * error).any(), "the words are told apart at all"


@pytest.mark.parametrize("name", NAMES)
def test_what_is_kept_rises_with_epsilon_to_all(name: str) -> None:
    kept = [create_mechanism(name, words(50, 5), epsilon=epsilon).kept_tokens for epsilon in (1e-3, 10, 40, 1e6)]
    assert kept == sorted(kept)
    assert kept[0] < 0.1
    assert kept[-1] == 1.0, "without noise, the nearest word is the word itself"


@pytest.mark.parametrize("name", NAMES)
def test_many_words_are_drawn_in_parts_and_stay_in_order(name: str) -> None:
    vocabulary = words(1000, 5)
    ids = torch.arange(1000).repeat(20)
    assert torch.equal(create_mechanism(name, vocabulary, epsilon=1e9).perturb(ids), ids)


@pytest.mark.parametrize("name", NAMES)
def test_without_a_generator_no_two_draws_are_alike(name: str) -> None:
    mechanism, ids = create_mechanism(name, words(100, 5), epsilon=1.0), torch.arange(100)
    assert not torch.equal(mechanism.perturb(ids), mechanism.perturb(ids))


def test_under_all_the_noise_outputs_do_not_depend_on_the_word() -> None:
    mechanism = create_mechanism("metric-laplace", words(10, 3), epsilon=1e-6)
    table = np.stack([counts(mechanism, word, seed) for seed, word in enumerate((0, 5))])
    assert stats.chi2_contingency(table[:, table.sum(axis=0) > 0]).pvalue > 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_the_claim_and_its_unit(name: str) -> None:
    mechanism = create_mechanism(name, PAIR, epsilon=3.0)
    assert (mechanism.guarantee.kind, mechanism.guarantee.epsilon) == ("metric-ldp", 3.0)
    assert "e^(3 d)" in mechanism.guarantee.statement
    assert mechanism.compose(5, 1e-5).epsilon == math.inf
    with pytest.raises(NotImplementedError, match="integral"):
        mechanism.log_prob()


@pytest.mark.parametrize("covariance", [-0.1, 1.0, math.nan])
def test_the_weight_of_the_covariance_is_below_1(covariance: float) -> None:
    with pytest.raises(SettingError, match=r"privacy\.parameters: covariance"):
        create_mechanism("metric-mahalanobis", PAIR, epsilon=1.0, covariance=covariance)


def test_parameters_tell_recipes_apart() -> None:
    made = [create_mechanism("metric-mahalanobis", PAIR, epsilon=1.0, covariance=c).parameters for c in (0.1, 0.2)]
    assert made[0] != made[1]
