"""No sound mechanism exceeds its cap, a false claim does, and intervals hold what they should."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from pdss_fl.privacy import PrivacyGuarantee, PrivacyMechanism, Vocabulary, create_mechanism
from pdss_fl.privacy.attacks import AttackResult, Cap, Document, Rate, Releases, optimal_success, run_attacks, token_cap
from pdss_fl.privacy.audit import exact_epsilon
from pdss_fl.privacy.staircase import Staircase

SURE = 1 - 1e-7


def vocabulary_of(size: int, blanks: int = 2) -> Vocabulary:
    rows = torch.randn(size - blanks, 3, generator=torch.Generator().manual_seed(0))
    return Vocabulary([f"w{i}" for i in range(size - blanks)], rows, blanks=blanks)


class Given(PrivacyMechanism):
    """Any matrix, under any claim."""

    def __init__(self, matrix: Tensor, kind: str, epsilon: float, delta: float = 0.0) -> None:
        super().__init__(vocabulary_of(len(matrix)), epsilon=1.0, neighbours=1)
        self.matrix, self.claim = matrix, PrivacyGuarantee(kind, epsilon, delta, "token", "As claimed.")

    @property
    def guarantee(self) -> PrivacyGuarantee:
        return self.claim

    def log_prob_rows(self, ids: Tensor) -> Tensor:
        return self.matrix[ids]

    def perturb(self, ids: Tensor, generator: np.random.Generator | None = None) -> Tensor:
        draws = torch.from_numpy((generator or np.random.default_rng()).random(len(ids)))
        return torch.searchsorted(self.matrix.exp().cumsum(1)[ids], draws[:, None])[:, 0].clamp(
            max=len(self.matrix) - 1
        )


class WithoutMatrix(Given):
    def log_prob_rows(self, ids: Tensor) -> Tensor:
        raise NotImplementedError("kept to itself")


class HalfTheClaim(Staircase):
    @property
    def guarantee(self) -> PrivacyGuarantee:
        return PrivacyGuarantee("pure-ldp", self.epsilon / 2, 0.0, "token", "False.")


class SharperThanItsMatrix(Staircase):
    """States the matrix of its claim and samples at twice the epsilon."""

    def perturb(self, ids: Tensor, generator: np.random.Generator | None = None) -> Tensor:
        sharper = Staircase(self.vocabulary, epsilon=2 * self.epsilon, neighbours=self.neighbours)
        return sharper.perturb(ids, generator)


class HiddenHalf(HalfTheClaim):
    def log_prob_rows(self, ids: Tensor) -> Tensor:
        raise NotImplementedError("kept to itself")


def a_matrix(size: int, spread: float, seed: int) -> Tensor:
    rows = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (spread * rows).log_softmax(dim=1)


def attacked(mechanism: PrivacyMechanism, words: Tensor, length: int = 10) -> list[AttackResult]:
    noise = np.random.default_rng(1)
    raw = list(words.split(length))
    released = mechanism.perturb_documents(raw, noise)
    releases = Releases(mechanism, [Document(d) for d in raw], [Document(d) for d in released])
    return run_attacks(releases, confidence=SURE, generator=noise)


def even_words(size: int, times: int) -> Tensor:
    return torch.arange(size).repeat(times)


@given(st.integers(3, 14), st.floats(0, 5), st.integers(0, 2**32), st.integers(0, 2**32))
def test_the_gain_bounds_the_optimal_attack_under_any_prior(size: int, spread: float, seed: int, other: int) -> None:
    matrix = a_matrix(size, spread, seed)
    epsilon = exact_epsilon(matrix)
    cap = token_cap(Given(matrix, "pure-ldp", epsilon))
    assert cap is not None
    assert cap.log_gain == pytest.approx(float(matrix.amax(dim=0).logsumexp(dim=0)), abs=1e-9)
    assert cap.log_gain <= math.log(size / (1 + (size - 1) * math.exp(-epsilon))) + 1e-9 <= epsilon + 2e-9
    weights = torch.rand(size, dtype=torch.float64, generator=torch.Generator().manual_seed(other)) ** 4
    prior = weights / weights.sum()
    blind = Rate.exact(float(prior.max()))
    assert optimal_success(Given(matrix, "none", math.inf), prior) <= cap.of(blind) + 1e-9
    uniform = torch.full_like(prior, 1 / size)
    tight = optimal_success(Given(matrix, "none", math.inf), uniform)
    assert tight == pytest.approx(cap.of(Rate.exact(1 / size)), abs=1e-9)


@settings(max_examples=10)
@given(st.floats(0.05, 8), st.integers(1, 6), st.integers(10, 30))
def test_no_attack_on_the_staircase_exceeds_its_cap(epsilon: float, k: int, size: int) -> None:
    mechanism = create_mechanism("staircase", vocabulary_of(size), epsilon=epsilon, neighbours=k)
    results = attacked(mechanism, even_words(size - 2, 10))
    assert len(results) == 5
    for result in results:
        assert result.passes, result
        assert result.cap is not None
        assert result.stem is not None
        assert result.exact.value <= result.stem.value


@settings(max_examples=6)
@given(st.floats(0, 4), st.integers(0, 2**32))
def test_nor_on_any_other_matrix_and_where_none_is_stated(spread: float, seed: int) -> None:
    matrix = a_matrix(12, spread, seed)
    epsilon = exact_epsilon(matrix)
    for kind, claimed, delta in (
        ("pure-ldp", epsilon, 0.0),
        ("none", math.inf, 0.0),
        ("approximate-ldp", epsilon, 0.1),
    ):
        assert all(result.passes for result in attacked(Given(matrix, kind, claimed, delta), even_words(10, 30)))
    for kind, delta in (("pure-ldp", 0.0), ("approximate-ldp", 0.1)):
        results = attacked(WithoutMatrix(matrix, kind, epsilon, delta), even_words(10, 30))
        assert [result.name for result in results] == ["embedding inversion at 1", "embedding inversion at 5"]
        assert all(result.passes and result.cap is not None for result in results)


@pytest.mark.parametrize("kind", [HalfTheClaim, SharperThanItsMatrix, HiddenHalf])
def test_a_mechanism_that_claims_less_than_it_has_fails(kind: type[Staircase]) -> None:
    mechanism = kind(vocabulary_of(40), epsilon=3.0, neighbours=1)
    results = attacked(mechanism, even_words(38, 200))
    assert not all(result.passes for result in results)
    inversion = next(result for result in results if result.name == "embedding inversion at 1")
    assert inversion.cap is not None
    assert inversion.exact.low > inversion.cap
    honest = attacked(Staircase(vocabulary_of(40), epsilon=3.0, neighbours=1), even_words(38, 200))
    assert all(result.passes for result in honest)


def test_where_nothing_is_claimed_nothing_is_allowed_or_forbidden() -> None:
    identity = create_mechanism("identity", vocabulary_of(20))
    for result in attacked(identity, even_words(18, 20)):
        assert result.exact.value == pytest.approx(1.0)
        assert result.cap == 1.0, "V times the blind attacker's 1 / V"
        assert "rules out no rate" in result.says
    hidden = attacked(WithoutMatrix(a_matrix(12, 1.0, 0), "none", math.inf), even_words(10, 20))
    assert [result.cap for result in hidden] == [None, None]
    assert all(result.passes for result in hidden)


def test_unprotected_positions_are_counted_apart() -> None:
    vocabulary = vocabulary_of(20)
    mechanism = create_mechanism("staircase", vocabulary, epsilon=0.1, neighbours=2)
    raw = Document(torch.arange(10), (vocabulary.blank_ids(3),))
    perturbed = mechanism.perturb(raw.ids, np.random.default_rng(0))
    mask = torch.arange(13) < 5
    perturbed[~mask] = raw.ids[~mask]  # passed through
    releases = Releases(mechanism, [raw], [raw.of_ids(perturbed)], protected=[mask])
    inversion = [r for r in run_attacks(releases) if r.name == "embedding inversion at 1"]
    assert [(r.target, r.exact.total) for r in inversion] == [("protected", 5), ("unprotected", 8)]
    assert (inversion[1].exact.value, inversion[1].cap, inversion[1].passes) == (1.0, None, True)
    assert Releases(mechanism, [raw], [raw]).places(protected=False).tolist() == [[0, 10], [0, 11], [0, 12]]


@given(st.integers(0, 60), st.integers(1, 60))
def test_the_interval_is_clopper_and_pearsons(hits: int, total: int) -> None:
    hits = min(hits, total)
    rate = Rate.measured(torch.arange(total) < hits, confidence=0.95)
    assert rate.low <= rate.value == hits / total <= rate.high
    if hits:
        assert stats.binom.sf(hits - 1, total, rate.low) == pytest.approx(0.025, rel=1e-6)
    if hits < total:
        assert stats.binom.cdf(hits, total, rate.high) == pytest.approx(0.025, rel=1e-6)


def test_trials_that_agree_within_a_document_count_as_one() -> None:
    hits, groups = (torch.arange(40) < 12).repeat_interleave(25), torch.arange(40).repeat_interleave(25)
    together, alone = Rate.measured(hits, groups), Rate.measured(torch.arange(40) < 12)
    assert (together.hits, together.total) == (300, 1000)
    assert together.low == pytest.approx(alone.low, abs=0.01)
    assert together.high == pytest.approx(alone.high, abs=0.01)
    spread = Rate.measured(torch.arange(1000) % 10 < 3, groups)
    assert spread.high - spread.low < (together.high - together.low) / 3


def test_without_trials_nothing_is_known() -> None:
    assert Rate.measured(torch.zeros(0, dtype=torch.bool)) == Rate(0, 0, 0.0, 1.0)


@pytest.mark.parametrize(("blind", "words", "cap"), [(0.0, 5, 0.0), (0.01, 1, 0.02), (0.01, 3, 0.08), (0.5, 900, 1.0)])
def test_gains_multiply_over_words_up_to_1(blind: float, words: int, cap: float) -> None:
    assert Cap(math.log(2), 0.0).of(Rate.exact(blind), words) == pytest.approx(cap)


def test_documents_without_a_counterpart_are_refused() -> None:
    mechanism = create_mechanism("identity", vocabulary_of(6))
    with pytest.raises(ValueError, match="released word for each private one"):
        Releases(mechanism, [Document(torch.arange(3))], [Document(torch.arange(2))])
    with pytest.raises(ValueError, match="at least one document"):
        Releases(mechanism, [], [])
