"""The exact audit: known matrices, brute force on small ones, and what it says of true and false claims."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pdss_fl.privacy import PrivacyGuarantee, PrivacyMechanism, Vocabulary, create_mechanism
from pdss_fl.privacy import audit_rows as limits
from pdss_fl.privacy.audit import audit, exact_epsilon, renyi_curve
from pdss_fl.privacy.exponential import Exponential


def test_randomised_response_is_worth_its_log_odds() -> None:
    matrix = torch.tensor([[0.75, 0.25], [0.25, 0.75]], dtype=torch.float64).log()
    assert exact_epsilon(matrix) == pytest.approx(math.log(3), abs=1e-15)


def test_graded_exponential_mechanism_has_its_known_epsilon() -> None:
    """Scores that fill [0, 1], factor eps/2 = 3, V = 20: a + ln((1 + (V-1) e^a) / (e^a + V-1)) = 5.28."""
    scores = torch.zeros(20, 20, dtype=torch.float64)
    scores[0, 1:], scores[1, 0] = 1.0, 1.0
    assert exact_epsilon((3.0 * scores).log_softmax(dim=1)) == pytest.approx(5.28, abs=0.005)


@pytest.mark.parametrize(
    ("rows", "epsilon"),
    [
        (
            [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.5, 0.5, 0.0]],
            0.0,
        ),  # an output that never comes tells nothing
        ([[1.0, 0.0], [0.5, 0.5]], math.inf),
        ([[1.0, 0.0], [0.0, 1.0]], math.inf),
    ],
)
def test_impossible_outputs(rows: list[list[float]], epsilon: float) -> None:
    assert exact_epsilon(torch.tensor(rows, dtype=torch.float64).log()) == epsilon


def test_nan_is_no_probability() -> None:
    with pytest.raises(ValueError, match="NaN"):
        exact_epsilon(torch.tensor([[0.0, math.nan], [0.0, 0.0]], dtype=torch.float64))


def vocabulary(size: int, width: int = 3) -> Vocabulary:
    rows = torch.randn(size - 2, width, generator=torch.Generator().manual_seed(0))
    return Vocabulary([f"w{i}" for i in range(size - 2)], rows, blanks=2)


class Stated(PrivacyMechanism):
    """A mechanism that is nothing but its matrix and its claim."""

    def __init__(
        self, matrix: Tensor, kind: str = "pure-ldp", epsilon: float = 1.0, delta: float = 0.0, classes: object = None
    ) -> None:
        super().__init__(vocabulary(len(matrix)), epsilon=1.0, neighbours=1)
        self._matrix, self._stated = matrix.double(), classes
        self._claim = PrivacyGuarantee(kind, epsilon, delta, "token", "A test.")

    @property
    def guarantee(self) -> PrivacyGuarantee:
        return self._claim

    @property
    def classes(self) -> list[Tensor] | None:
        return self._stated  # type: ignore[return-value]

    def log_prob(self) -> Tensor:
        return self._matrix.log()

    def perturb(self, ids: Tensor, generator: np.random.Generator | None = None) -> Tensor:
        raise AssertionError("an audit draws nothing")


class InLine(Stated):
    """One whose words stand in a line, at distance 1 from the next."""

    def distances(self, ids: Tensor) -> Tensor:
        return (ids[:, None] - torch.arange(len(self.vocabulary))).abs().double()


def some_matrix(size: int, seed: int, spread: float) -> Tensor:
    noise = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (spread * noise).softmax(dim=1)


def brute_force(matrix: Tensor) -> tuple[float, float]:
    """Return epsilon and eta over all pairs of inputs, by their definitions."""
    table = matrix.log().tolist()
    losses = [[a - b for a, b in zip(x, other, strict=True)] for x, other in itertools.permutations(table, 2)]
    return max(map(max, losses)), max(max(loss) - min(loss) for loss in losses)


@settings(max_examples=40)
@given(st.integers(3, 12), st.integers(0, 10**6), st.floats(0.01, 20))
def test_epsilon_and_bounded_range_are_those_of_all_pairs(size: int, seed: int, spread: float) -> None:
    matrix = some_matrix(size, seed, spread)
    found = audit(Stated(matrix))
    epsilon, eta = brute_force(matrix)
    assert found.epsilon == pytest.approx(epsilon, abs=1e-9)
    assert found.bounded_range_exact
    assert found.bounded_range == pytest.approx(eta, abs=1e-9)
    assert found.epsilon - 1e-9 <= found.bounded_range <= 2 * found.epsilon + 1e-9
    x, other, y = found.worst
    assert float((matrix[x, y] / matrix[other, y]).log()) == pytest.approx(found.epsilon, abs=1e-9)
    assert found.worst_tokens == tuple(Stated(matrix).vocabulary.tokens[i] for i in found.worst)


@settings(max_examples=40)
@given(st.integers(3, 12), st.integers(0, 10**6), st.floats(0.01, 20))
def test_a_bounded_range_that_is_not_searched_out_is_an_upper_bound(size: int, seed: int, spread: float) -> None:
    matrix = some_matrix(size, seed, spread)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "WORK", 0)
        patch.setattr(limits, "_LEAST_ROWS", 2)
        patch.setattr(limits, "_FIRST_ROWS", 1)
        found = audit(Stated(matrix))
    epsilon, eta = brute_force(matrix)
    assert eta - 1e-9 <= found.bounded_range <= 2 * epsilon + 1e-9
    if found.bounded_range_exact:
        assert found.bounded_range == pytest.approx(eta, abs=1e-9)


def test_a_search_that_is_cut_short_says_so() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "WORK", 0)
        found = audit(Stated(some_matrix(200, 0, 1.0)))
    assert not found.bounded_range_exact
    assert found.bounded_range <= 2 * found.epsilon


@pytest.mark.parametrize("epsilon", [6.0, 8.0, 10.0])
def test_the_staircase_has_exactly_its_epsilon_and_twice_its_range(epsilon: float) -> None:
    """Over a vocabulary that comes in several blocks of rows."""
    mechanism = create_mechanism("staircase", vocabulary(2000), epsilon=epsilon, neighbours=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "_KEPT_BYTES", 0)
        patch.setattr(limits, "_BLOCK_BYTES", 2**22)
        found = audit(mechanism)
    assert found.epsilon == pytest.approx(epsilon, abs=1e-9)
    assert (found.bounded_range, found.bounded_range_exact) == (pytest.approx(2 * epsilon, abs=1e-9), True)
    assert found.tightness == pytest.approx(1.0, abs=1e-9)
    assert found.holds
    assert not found.support_mismatch
    assert found.row_error < 1e-9


def test_blocks_of_rows_change_nothing() -> None:
    mechanism = Exponential(vocabulary(300), scale=4.0)
    whole = audit(mechanism)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "_KEPT_BYTES", 0)
        patch.setattr(limits, "_BLOCK_BYTES", 8 * 300 * 37)
        patch.setattr(limits, "_CACHED", 1000)
        assert audit(mechanism) == whole
        blockwise = renyi_curve(mechanism, [2.0])
    assert float(blockwise[0]) == pytest.approx(float(renyi_curve(mechanism, [2.0])[0]), rel=1e-12)


def test_every_output_that_one_input_alone_has_is_named() -> None:
    matrix = torch.full((4, 4), 0.25)
    matrix[2] = torch.tensor([0.5, 0.5, 0.0, 0.0])
    found = audit(Stated(matrix))
    assert found.support_mismatch
    assert (found.epsilon, found.bounded_range, found.holds) == (math.inf, math.inf, False)
    x, other, y = found.worst
    assert float(matrix[x, y]) > 0 == float(matrix[other, y])
    assert other == 2


def test_a_false_pure_claim_and_a_loose_one() -> None:
    matrix = torch.tensor([[0.75, 0.25], [0.25, 0.75]]).repeat_interleave(2, 0).repeat_interleave(2, 1) / 2
    false, loose = (audit(Stated(matrix, epsilon=claim)) for claim in (1.0, 2.0))
    assert (false.holds, loose.holds) == (False, True)
    assert "claims epsilon 1, but the worst case is 1.0986" in false.verdict
    assert loose.tightness == pytest.approx(math.log(3) / 2, abs=1e-6)


def test_rows_that_do_not_sum_to_one_are_no_law() -> None:
    found = audit(Stated(torch.full((3, 3), 0.3), epsilon=10.0))
    assert not found.holds
    assert "sums to one but for 0.1" in found.verdict


@pytest.mark.parametrize(("delta", "holds"), [(0.1, True), (0.0999, False)])
def test_delta_is_the_worst_of_all_pairs(delta: float, holds: bool) -> None:
    """A word is kept with probability 0.1, else any comes: delta is 0.1 at epsilon 0."""
    matrix = 0.1 * torch.eye(6, dtype=torch.float64) + 0.9 / 6
    found = audit(Stated(matrix, "approximate-ldp", 0.0, delta))
    assert found.measured == pytest.approx(0.1, abs=1e-12)
    assert found.holds is holds


def test_delta_of_too_many_words_is_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pdss_fl.privacy.audit.WORK", 100)
    found = audit(Stated(some_matrix(6, 0, 1.0), "approximate-ldp", 0.5, 0.1))
    assert (found.measured, found.holds, found.tightness) == (None, None, None)


def two_clusters() -> Tensor:
    cluster = torch.tensor([[0.75, 0.25], [0.25, 0.75]], dtype=torch.float64)
    return torch.block_diag(cluster, cluster)


@pytest.mark.parametrize(
    ("classes", "epsilon", "holds"),
    [
        ([torch.tensor([0, 1]), torch.tensor([2, 3])], 1.1, True),
        ([torch.tensor([0, 1]), torch.tensor([2, 3])], 1.0, False),
        ([torch.tensor([0, 2]), torch.tensor([1, 3])], 1.1, False),
        (None, 1.1, True),  # words with the same outputs: the classes can be no larger
        (None, 1.0, None),  # they may be smaller
    ],
)
def test_a_claim_within_classes(classes: list[Tensor] | None, epsilon: float, holds: bool | None) -> None:
    found = audit(Stated(two_clusters(), "partition-ldp", epsilon, classes=classes))
    assert found.holds is holds
    assert found.support_mismatch


def test_custext_holds_within_its_clusters() -> None:
    found = audit(create_mechanism("custext", vocabulary(40), epsilon=3.0, neighbours=5))
    assert found.holds
    assert found.epsilon == math.inf
    assert found.tightness == pytest.approx(1.0, abs=1e-6)


def test_what_claims_nothing_is_measured_and_not_judged() -> None:
    found = audit(Stated(some_matrix(5, 0, 1.0), "none", math.inf))
    assert (found.measured, found.holds) == (None, None)
    assert 0 < found.epsilon < math.inf


@settings(max_examples=20, deadline=None)
@given(st.integers(3, 8), st.integers(0, 10**6), st.floats(0.01, 5))
def test_a_claim_by_distance_is_held_against_the_worst_pair(size: int, seed: int, spread: float) -> None:
    matrix = some_matrix(size, seed, spread)
    logs = matrix.log()
    pairs = itertools.permutations(range(size), 2)
    direct = max(float((logs[x] - logs[z]).max()) / abs(x - z) for x, z in pairs)
    for claimed, holds in ((direct * 1.001, True), (direct * 0.999, False)):
        found = audit(InLine(matrix, "metric-ldp", claimed))
        assert found.holds is holds
        assert found.measured == pytest.approx(direct, rel=1e-9)


def test_two_words_at_no_distance_must_not_be_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    same = create_mechanism("santext", Vocabulary(["a", "b", "c"], torch.eye(2)[[0, 0, 1]]), epsilon=3.0)
    assert audit(same).holds
    matrix = same.log_prob().exp()
    matrix[0, :2] = matrix[0, :2] * torch.tensor([1.5, 0.5]) * matrix[0, :2].sum() / (matrix[0, :2] * torch.tensor(
        [1.5, 0.5])).sum()  # fmt: skip

    class Telling(type(same)):  # type: ignore[misc]
        name = "telling"

        def log_prob_rows(self, ids: Tensor) -> Tensor:
            return matrix.log()[ids]

    assert audit(Telling(same.vocabulary, epsilon=3.0)).measured == math.inf
    monkeypatch.setattr("pdss_fl.privacy.audit.WORK", 100)
    assert audit(same).holds is None


def test_without_a_matrix_there_is_no_exact_audit() -> None:
    with pytest.raises(NotImplementedError, match="integral"):
        audit(create_mechanism("metric-laplace", vocabulary(10), epsilon=5.0))


@settings(max_examples=30)
@given(st.integers(3, 8), st.integers(0, 10**6), st.floats(0.01, 15), st.floats(1.001, 40))
def test_the_renyi_curve_is_that_of_all_pairs(size: int, seed: int, spread: float, order: float) -> None:
    matrix = some_matrix(size, seed, spread)
    logs = matrix.log()
    pairs = itertools.permutations(logs, 2)
    direct = max(float((order * x + (1 - order) * y).logsumexp(dim=0)) / (order - 1) for x, y in pairs)
    found = float(renyi_curve(Stated(matrix), [order])[0])
    if order * exact_epsilon(logs) <= 600:
        assert found == pytest.approx(direct, rel=1e-9, abs=1e-9)
    assert direct - 1e-9 <= found <= exact_epsilon(logs) + 1e-9


def test_the_renyi_curve_of_randomised_response_and_of_what_discloses() -> None:
    matrix = torch.tensor([[0.75, 0.25], [0.25, 0.75]]).repeat_interleave(2, 0).repeat_interleave(2, 1) / 2
    expected = [math.log(0.75**a * 0.25 ** (1 - a) + 0.25**a * 0.75 ** (1 - a)) / (a - 1) for a in (1.5, 2, 10)]
    assert renyi_curve(Stated(matrix), [1.5, 2, 10]).tolist() == pytest.approx(expected, abs=1e-7)
    assert renyi_curve(Stated(two_clusters()), [2.0]).tolist() == [math.inf]
    with pytest.raises(ValueError, match="above 1"):
        renyi_curve(Stated(matrix), [1.0])


def test_a_high_order_is_bounded_by_epsilon() -> None:
    mechanism = create_mechanism("staircase", vocabulary(20), epsilon=10.0, neighbours=3)
    low, high = renyi_curve(mechanism, [50.0, 5000.0]).tolist()
    assert low < high == pytest.approx(10.0, abs=1e-9)
