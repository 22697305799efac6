"""The best context-free attack, on matrices whose answers are known by hand or by enumeration."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pdss_fl.privacy import Vocabulary, create_mechanism
from pdss_fl.privacy.attacks import (
    Document,
    Releases,
    candidates,
    optimal_success,
    run_attacks,
    stem_classes,
    text_classes,
    token_cap,
    word_prior,
)


def vocabulary_of(size: int, blanks: int = 2) -> Vocabulary:
    rows = torch.randn(size - blanks, 3, generator=torch.Generator().manual_seed(0))
    return Vocabulary([f"w{i}" for i in range(size - blanks)], rows, blanks=blanks)


def a_prior(size: int, seed: int = 0) -> Tensor:
    prior = torch.rand(size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    prior[::2] = 0.0  # words that never occur
    return prior / prior.sum()


def brute_force(log_prob: Tensor, prior: Tensor) -> float:
    joint = (prior[:, None] * log_prob.exp()).tolist()
    return float(sum(max(row[y] for row in joint) for y in range(len(joint))))


def test_the_best_attack_over_several_blocks_of_rows() -> None:
    mechanism = create_mechanism("staircase", vocabulary_of(1108, 8), epsilon=5.0, neighbours=3)
    prior = a_prior(1108)
    expected = brute_force(mechanism.log_prob(), prior)
    assert optimal_success(mechanism, prior) == pytest.approx(expected, rel=1e-12)
    assert float(prior.max()) < expected <= math.exp(5.0) * float(prior.max())


@pytest.mark.parametrize(("size", "members"), [(1100, 3), (1024, 512), (1024, 1024), (1025, 1)])
def test_the_best_attack_on_classes_over_several_blocks(size: int, members: int) -> None:
    mechanism = create_mechanism("staircase", vocabulary_of(size), epsilon=4.0, neighbours=2)
    prior, classes = a_prior(size), torch.arange(size) // members
    classes = classes[torch.randperm(size, generator=torch.Generator().manual_seed(1))]
    joint = prior[:, None] * mechanism.log_prob().exp()
    by_class = torch.zeros(int(classes.max()) + 1, size, dtype=torch.float64).index_add_(0, classes, joint)
    assert optimal_success(mechanism, prior, classes) == pytest.approx(float(by_class.amax(dim=0).sum()), rel=1e-12)


def test_without_perturbation_the_attack_never_fails() -> None:
    mechanism = create_mechanism("identity", Vocabulary(["dog", "cat"], torch.eye(2)))
    prior = torch.tensor([0.7, 0.3] + [0.0] * 8, dtype=torch.float64)
    assert optimal_success(mechanism, prior) == pytest.approx(1.0)
    assert optimal_success(mechanism, prior, text_classes(mechanism.vocabulary)) == pytest.approx(1.0)


@pytest.mark.parametrize("prior", [[0.5, 0.4], [1.5, -0.5], [1.0], [math.nan, 1.0]])
def test_what_is_no_prior_is_refused(prior: list[float]) -> None:
    mechanism = create_mechanism("identity", Vocabulary(["dog"], torch.eye(1), blanks=1))
    with pytest.raises(ValueError, match="prior"):
        optimal_success(mechanism, torch.tensor(prior, dtype=torch.float64))


@pytest.mark.parametrize(("epsilon", "k"), [(0.5, 1), (2.0, 5), (6.0, 3)])
def test_with_equal_words_the_staircase_allows_e_eps_over_z(epsilon: float, k: int) -> None:
    mechanism = create_mechanism("staircase", vocabulary_of(600), epsilon=epsilon, neighbours=k)
    allowed = math.exp(epsilon) / (k * math.exp(epsilon) + 600 - k)
    assert optimal_success(mechanism, torch.full((600,), 1 / 600, dtype=torch.float64)) == pytest.approx(allowed)
    cap = token_cap(mechanism)
    assert cap is not None
    assert cap.log_gain == pytest.approx(math.log(600 * allowed), abs=1e-9)


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(1, 8), st.floats(0.01, 8))
def test_the_candidates_are_the_likeliest_in_order(seed: int, k: int, epsilon: float) -> None:
    mechanism = create_mechanism("staircase", vocabulary_of(12), epsilon=epsilon, neighbours=3)
    prior = a_prior(12, seed)
    ids, scores = candidates(mechanism, prior, k)
    joint = mechanism.log_prob() + prior.log()[:, None]
    torch.testing.assert_close(scores, joint.sort(dim=0, descending=True).values[:k].T)
    torch.testing.assert_close(joint.T.gather(1, ids), scores)
    assert float(scores[:, 0].exp().sum()) == pytest.approx(optimal_success(mechanism, prior))


def test_the_candidates_over_several_blocks() -> None:
    mechanism = create_mechanism("staircase", vocabulary_of(1100), epsilon=3.0, neighbours=4)
    prior = word_prior([torch.arange(1100)[::3]], 1100)
    ids, _ = candidates(mechanism, prior, 1)
    joint = mechanism.log_prob() + prior.log()[:, None]
    torch.testing.assert_close(joint.gather(0, ids.T)[0], joint.amax(dim=0))


def test_word_frequencies_are_smoothed_by_one() -> None:
    documents = [torch.tensor([0, 0, 1]), torch.tensor([0])]
    assert word_prior(documents, 4).tolist() == [4 / 8, 2 / 8, 1 / 8, 1 / 8]
    assert word_prior(documents, 4, 0.0).tolist() == [3 / 4, 1 / 4, 0, 0]
    assert word_prior([], 4).tolist() == [1 / 4] * 4
    with pytest.raises(ValueError, match="undefined"):
        word_prior([], 4, 0.0)


def test_simulated_attacks_are_as_often_right_as_is_computed() -> None:
    """With the data's own frequencies the attacker is the optimal one: the interval holds its exact success."""
    vocabulary, noise = vocabulary_of(60), np.random.default_rng(0)
    mechanism = create_mechanism("staircase", vocabulary, epsilon=3.0, neighbours=3)
    words = torch.from_numpy(noise.choice(40, 20_000, p=np.arange(1, 41) / 820))
    raw = list(words.split(20))
    documents = [Document(d) for d in raw], [Document(d) for d in mechanism.perturb_documents(raw, noise)]
    results = {r.name: r for r in run_attacks(Releases(mechanism, *documents), confidence=0.9999, generator=noise)}
    own, exact = results["context-free Bayes, the data's own frequencies"], results["optimal context-free Bayes, exact"]
    for measured, computed in ((own.exact, exact.exact), (own.stem, exact.stem)):
        assert measured is not None
        assert computed is not None
        assert measured.low < computed.value < measured.high
        assert measured.high - measured.low < 0.03
    kept = mechanism.log_prob().diagonal().exp().mean()
    at_1 = results["embedding inversion at 1"].exact
    assert at_1.low < kept < at_1.high
    assert all(r.passes for r in results.values())


def test_one_suffix_more_or_less_is_a_leak() -> None:
    groups = [
        ["doctor", "doctors", "doctor's"],
        ["bake", "baked", "baking", "bakes"],
        ["city", "cities"],
        ["walks", "walked"],  # walk itself is not there
        ["bus"],
        ["gas"],
        ["is"],
        ["i"],
        ["class"],
    ]
    words = [word for group in groups for word in group]
    vocabulary = Vocabulary(words, torch.randn(len(words), 3), blanks=2)
    classes = stem_classes(vocabulary).tolist()
    group_of = [g for g, group in enumerate(groups) for _ in group] + [len(groups)] * 2
    for i in range(len(vocabulary)):
        for j in range(len(vocabulary)):
            assert (classes[i] == classes[j]) == (group_of[i] == group_of[j]), vocabulary.decode(torch.tensor([i, j]))
    assert text_classes(vocabulary).tolist() == [*range(len(words)), len(words), len(words)]
