"""Blocks: the exact epsilon, perfect likeness inside a block, its sizes, and what many releases tell."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pdss_fl.errors import SettingError
from pdss_fl.privacy import Vocabulary
from pdss_fl.privacy.attacks import optimal_success
from pdss_fl.privacy.audit import exact_epsilon
from pdss_fl.privacy.blocks import Blocks, partition
from pdss_fl.privacy.staircase import Staircase
from pdss_fl.testing import check_mechanism


def clustered(sizes: list[int], blanks: int = 8) -> tuple[Vocabulary, Tensor]:
    """Words in clusters of these sizes, far from each other, and the cluster of each; a first word is its middle."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for size in sizes:
        around = 0.4 * torch.randn(size, 24, generator=generator)
        around[0] = 0.0
        rows.append(torch.randn(24, generator=generator) + around)
    cluster = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return Vocabulary([f"w{i}" for i in range(len(cluster))], torch.cat(rows), blanks=blanks), cluster


def scattered(size: int) -> Vocabulary:
    rows = torch.randn(size, 3, generator=torch.Generator().manual_seed(0))
    return Vocabulary([f"w{i}" for i in range(size)], rows, blanks=0)


@pytest.mark.parametrize(("epsilon", "neighbours"), [(1e-6, 3), (0.5, 1), (2.0, 4), (8.0, 3), (12.0, 100)])
def test_it_passes_the_kit(epsilon: float, neighbours: int) -> None:
    check_mechanism(lambda v: Blocks(v, epsilon=epsilon, neighbours=neighbours))


@settings(max_examples=40)
@given(st.floats(1e-6, 30), st.integers(1, 30), st.integers(2, 40))
def test_the_audit_returns_the_claimed_epsilon(epsilon: float, k: int, size: int) -> None:
    mechanism = Blocks(scattered(size), epsilon=epsilon, neighbours=k)
    assert exact_epsilon(mechanism.log_prob()) == pytest.approx(epsilon, abs=1e-9)
    assert mechanism.kept_tokens == pytest.approx(float(mechanism.log_prob().diagonal().exp().mean()), rel=1e-9)


@settings(max_examples=40)
@given(st.integers(1, 30), st.integers(2, 60))
def test_blocks_are_a_partition_with_heads_inside_and_none_too_small(k: int, size: int) -> None:
    k = min(k, size - 1)
    heads, block = partition(scattered(size), k)
    assert len(heads) == max(2, size // k)
    assert sorted(heads.tolist()) == sorted(set(heads.tolist()))
    assert block[heads].tolist() == list(range(len(heads)))
    sizes = np.bincount(block)
    assert sizes.sum() == size
    assert sizes.min() >= (k + 1) // 2


def test_clusters_are_found() -> None:
    vocabulary, cluster = clustered([2, 6] * 6, blanks=4)
    heads, block = partition(vocabulary, 4)
    assert len(heads) == 13
    pairs = {(int(b), int(c)) for b, c in zip(block[:48], cluster, strict=True)}
    assert len(pairs) == 12, "every cluster is one block, and no two are the same one"
    assert len(set(block[48:].tolist())) == 1, "blanks are alike"


def test_two_words_of_a_block_are_never_told_apart() -> None:
    mechanism = Blocks(clustered([4] * 12)[0], epsilon=5.0, neighbours=4)
    rows = mechanism.log_prob()
    for b in range(len(mechanism.heads)):
        members = rows[torch.from_numpy(np.flatnonzero(mechanism.block == b))]
        assert torch.equal(members, members[:1].expand_as(members))


def after_two(matrix: Tensor) -> float:
    """The best attack on two releases of one word, all words equally likely."""
    probability = matrix.exp()
    return sum(float((probability * probability[:, [y]]).amax(dim=0).sum()) for y in range(len(matrix))) / len(matrix)


def test_a_second_release_tells_nothing_more_and_the_staircase_something() -> None:
    vocabulary = scattered(60)
    blocks, staircase = (kind(vocabulary, epsilon=6.0, neighbours=3) for kind in (Blocks, Staircase))
    uniform = torch.full((60,), 1 / 60, dtype=torch.float64)
    once = [optimal_success(mechanism, uniform) for mechanism in (blocks, staircase)]
    assert once[0] == pytest.approx(once[1], rel=1e-9), "a single release is attacked equally well"
    assert after_two(blocks.log_prob()) <= 1 / 3
    assert after_two(staircase.log_prob()) > 0.4


def test_more_comes_out_of_the_same_cluster_than_from_the_staircase() -> None:
    """At equal epsilon and equal attack: blocks take the size of a cluster, nearest sets cannot."""
    vocabulary, cluster = clustered([2, 6] * 6, blanks=0)
    same = cluster[:, None] == cluster
    found = [
        float((kind(vocabulary, epsilon=3.0, neighbours=4).log_prob().exp() * same).sum(dim=1).mean())
        for kind in (Blocks, Staircase)
    ]
    assert found[0] > found[1] + 0.05


def test_a_document_is_exact_for_the_worst_documents_of_a_real_matrix() -> None:
    mechanism = Blocks(scattered(12), epsilon=1.5, neighbours=2)
    token = mechanism.log_prob().exp()
    document = torch.einsum("ac,bd->abcd", token, token).reshape(144, 144)
    for delta in (0.05, 0.2):
        composed = mechanism.compose(2, delta)
        assert composed.epsilon < 3.0
        level = math.exp(composed.epsilon)
        worst = max(float((row - level * document).clamp_min(0).sum(dim=1).max()) for row in document)
        assert worst == pytest.approx(delta, rel=1e-3)


@pytest.mark.parametrize(("tokens", "delta", "epsilon"), [(30, 0.0, 60.0), (0, 1e-5, 0.0)])
def test_basic_composition_without_a_delta(tokens: int, delta: float, epsilon: float) -> None:
    composed = Blocks(scattered(20), epsilon=2.0, neighbours=3).compose(tokens, delta)
    assert (composed.epsilon, composed.delta, composed.composition) == (epsilon, 0.0, "basic composition")


@pytest.mark.parametrize("epsilon", [5e-324, 1e-40, 0.0, math.nan])
def test_an_epsilon_out_of_range_is_refused(epsilon: float) -> None:
    with pytest.raises(SettingError, match=r"privacy\.epsilon"):
        Blocks(scattered(20), epsilon=epsilon, neighbours=3)
