"""CusText: exact within its clusters, nothing across them, and nothing at all where lists overlap."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pdss_fl.errors import SettingError
from pdss_fl.privacy import PrivacyMechanism, Vocabulary, create_mechanism
from pdss_fl.privacy.audit import audit, exact_epsilon
from pdss_fl.testing import check_mechanism


def words(size: int, seed: int = 0) -> Vocabulary:
    rows = torch.randn(size - 2, 4, generator=torch.Generator().manual_seed(seed))
    return Vocabulary([f"w{i}" for i in range(size - 2)], rows, blanks=2)


def custext(size: int, epsilon: float, neighbours: int, seed: int = 0) -> PrivacyMechanism:
    return create_mechanism("custext", words(size, seed), epsilon=epsilon, neighbours=neighbours)


def clusters(matrix: Tensor) -> list[list[int]]:
    """Return the sets of inputs with equal possible outputs."""
    supports = [tuple((row > -torch.inf).nonzero()[:, 0].tolist()) for row in matrix]
    return [[x for x, own in enumerate(supports) if own == support] for support in dict.fromkeys(supports)]


@pytest.mark.parametrize("name", ["custext", "custext-overlapping"])
@pytest.mark.parametrize(("epsilon", "neighbours"), [(1e-6, 2), (1.0, 3), (10.0, 5), (30.0, 100)])
def test_custext_passes(name: str, epsilon: float, neighbours: int) -> None:
    check_mechanism(lambda v: create_mechanism(name, v, epsilon=epsilon, neighbours=neighbours))


@settings(max_examples=50)
@given(st.floats(1e-3, 60), st.integers(2, 30), st.integers(4, 24), st.integers(0, 2**32))
def test_the_claim_is_the_exact_epsilon_of_the_worst_cluster(epsilon: float, k: int, size: int, seed: int) -> None:
    mechanism = custext(size, epsilon, k, seed)
    matrix, k = mechanism.log_prob(), min(k, size - 1)
    found = clusters(matrix)
    assert sorted(x for cluster in found for x in cluster) == list(range(size))
    within = []
    for cluster in found:
        assert k <= len(cluster) < 2 * k
        assert torch.equal(torch.tensor(cluster), (matrix[cluster[0]] > -torch.inf).nonzero()[:, 0])
        within.append(exact_epsilon(matrix[cluster]))
    guarantee = mechanism.guarantee
    assert guarantee.kind == "partition-ldp"
    assert guarantee.epsilon == pytest.approx(max(within), abs=1e-9)
    assert guarantee.epsilon <= epsilon + 1e-9
    if len(found) > 1:
        assert exact_epsilon(matrix) == math.inf
    assert sorted(sorted(ids.tolist()) for ids in mechanism.classes or ()) == sorted(found)


def test_the_audit_of_its_classes_finds_the_claim() -> None:
    found = audit(custext(40, 6.0, 5))
    assert (found.epsilon, found.holds) == (math.inf, True)
    assert found.tightness == pytest.approx(1, abs=1e-9)


def test_clusters_are_the_most_important_word_left_and_its_nearest() -> None:
    """Words on a circle around their mean: 0 degrees takes 20, so 30 is left with 90, though 20 is nearer to it."""
    angles = torch.tensor([0.0, 20.0, 30.0, 180.0, 200.0, 210.0, 90.0, 270.0]).deg2rad()
    vocabulary = Vocabulary([f"w{i}" for i in range(8)], torch.stack([angles.cos(), angles.sin()], dim=1), blanks=0)
    matrix = create_mechanism("custext", vocabulary, epsilon=2.0, neighbours=2).log_prob()
    assert clusters(matrix) == [[0, 1], [2, 6], [3, 4], [5, 7]]


def test_equal_words_share_a_cluster_in_the_order_of_their_importance() -> None:
    vocabulary = Vocabulary([f"w{i}" for i in range(9)], torch.zeros(9, 1), blanks=0)
    mechanism = create_mechanism("custext", vocabulary, epsilon=2.0, neighbours=4)
    matrix = mechanism.log_prob()
    assert clusters(matrix) == [[0, 1, 2, 3], [4, 5, 6, 7, 8]]
    assert mechanism.guarantee.epsilon == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", ["custext", "custext-overlapping"])
def test_the_law_is_the_papers(name: str) -> None:
    mechanism = create_mechanism(name, words(20), epsilon=5.0, neighbours=4)
    for x, row in enumerate(mechanism.log_prob()):
        outputs = (row > -torch.inf).nonzero()[:, 0]
        distance = torch.from_numpy(mechanism.vocabulary.distances(torch.tensor([x]), slice(0, 20)))[0, outputs]
        u = -(distance - distance.min()) / (distance.max() - distance.min())
        torch.testing.assert_close(row[outputs], (2.5 * u).log_softmax(dim=0))


def test_overlapping_lists_guarantee_nothing() -> None:
    mechanism = create_mechanism("custext-overlapping", words(20), epsilon=5.0, neighbours=4)
    matrix = mechanism.log_prob()
    possible = torch.zeros(20, 20, dtype=torch.bool).scatter_(1, mechanism.vocabulary.neighbours(4), True)
    assert torch.equal(matrix > -torch.inf, possible)
    assert exact_epsilon(matrix) == math.inf
    assert (mechanism.guarantee.kind, mechanism.guarantee.epsilon) == ("none", math.inf)


@pytest.mark.parametrize("name", ["custext", "custext-overlapping"])
def test_a_list_of_one_word_is_refused(name: str) -> None:
    with pytest.raises(SettingError, match=r"privacy\.neighbours = 1"):
        create_mechanism(name, words(20), epsilon=1.0, neighbours=1)
