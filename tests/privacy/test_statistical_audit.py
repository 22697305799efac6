"""Lower bounds from samples: valid at their confidence, and sharp enough to refute false claims."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pdss_fl.privacy import Vocabulary, create_mechanism
from pdss_fl.privacy.statistical_audit import pairs_to_try, statistical_audit, statistical_lower_bound


def token(i: int) -> Tensor:
    return torch.tensor([i])


def response(share: float, size: int = 2) -> object:
    """Return a black box that keeps each of its tokens with probability ``share``, else releases any other."""

    def release(ids: Tensor, generator: np.random.Generator | None) -> Tensor:
        assert generator is not None
        kept = torch.from_numpy(generator.random(len(ids)) < share)
        other = torch.from_numpy(generator.integers(1, size, size=len(ids)))
        return torch.where(kept, ids, (ids + other) % size)

    return release


def test_the_bound_is_valid_as_often_as_it_says() -> None:
    """Confidence 0.8, epsilon ln 3: no more than 20 percent of the bounds are above it, and none says nothing."""
    generator, truth = np.random.default_rng(0), math.log(3)
    bounds = [
        statistical_lower_bound(response(0.75), token(0), token(1), 100, 0.8, generator)  # type: ignore[arg-type]
        for _ in range(100)
    ]
    wrong = sum(bound.epsilon > truth for bound in bounds)
    assert wrong <= 0.2 * 100 + 3 * math.sqrt(100 * 0.2 * 0.8)
    assert np.mean([bound.epsilon for bound in bounds]) > 0.3


def test_many_rare_outputs_do_not_make_a_bound_false() -> None:
    """400 outputs and few samples: the event that was chosen looks far better on the samples that chose it.

    True epsilon 0.1. Counted on those samples, nearly all of the bounds would be above it.
    """
    vocabulary = Vocabulary([f"w{i}" for i in range(400)], torch.zeros(400, 1), blanks=0)
    mechanism, generator = (
        create_mechanism("staircase", vocabulary, epsilon=0.1, neighbours=100),
        np.random.default_rng(0),
    )
    bounds = [
        statistical_lower_bound(mechanism, token(0), token(300), 200, confidence, generator)
        for confidence in (0.5, 0.8)
        for _ in range(150)
    ]
    wrong = [sum(bound.epsilon > 0.1 for bound in bounds[part]) for part in (slice(0, 150), slice(150, 300))]
    assert wrong[0] <= 150 * 0.5 + 3 * math.sqrt(150 * 0.5 * 0.5)
    assert wrong[1] <= 150 * 0.2 + 3 * math.sqrt(150 * 0.2 * 0.8)


def test_documents_bounds_are_valid_as_often_as_they_say() -> None:
    """Three tokens of ln 2 each, the event a threshold on the sum of three estimated ratios."""
    generator, truth = np.random.default_rng(1), 3 * math.log(2)
    first, second = torch.zeros(3, dtype=torch.long), torch.ones(3, dtype=torch.long)
    bounds = [
        statistical_lower_bound(response(2 / 3), first, second, 60, 0.5, generator)  # type: ignore[arg-type]
        for _ in range(60)
    ]
    assert sum(bound.epsilon > truth for bound in bounds) <= 30 + 3 * math.sqrt(15)
    assert max(bound.epsilon for bound in bounds) > 0.7


@pytest.mark.parametrize("swapped", [False, True])
def test_much_data_comes_close_to_the_truth(swapped: bool) -> None:
    vocabulary = Vocabulary([f"w{i}" for i in range(20)], torch.eye(20))
    mechanism = create_mechanism("randomized-response", vocabulary, epsilon=4.0)
    first, second = (token(3), token(9)) if swapped else (token(9), token(3))
    bound = statistical_lower_bound(mechanism, first, second, 20_000, 0.99, np.random.default_rng(1))
    assert 3.4 < bound.epsilon <= 4.0
    assert bound.trials == 10_000
    assert bound.first_count / bound.trials > 10 * bound.second_count / bound.trials
    assert {bound.first, bound.second} == {(3,), (9,)}
    assert bound.event == f"one of 1 ids is released: {bound.first[0]}"


def test_equal_inputs_tell_nothing() -> None:
    generator = np.random.default_rng(2)
    bound = statistical_lower_bound(response(0.75), token(0), token(0), 2000, 0.99, generator)  # type: ignore[arg-type]
    assert bound.epsilon == 0.0


def test_documents_add_up() -> None:
    """Six tokens of ln 3 each: the bound is far beyond that of one, and below all of them."""
    generator = np.random.default_rng(3)
    first, second = torch.zeros(6, dtype=torch.long), torch.ones(6, dtype=torch.long)
    bound = statistical_lower_bound(response(0.75), first, second, 2000, 0.99, generator)  # type: ignore[arg-type]
    assert 2 < bound.epsilon < 6 * math.log(3)
    assert bound.first in ((0,) * 6, (1,) * 6)


def test_the_length_of_a_release_counts() -> None:
    """A black box that drops a rare word, as some published code does, discloses it."""

    def drop(ids: Tensor, generator: np.random.Generator | None) -> Tensor:
        return ids[ids != 1] * 0

    bound = statistical_lower_bound(drop, torch.tensor([0, 0]), torch.tensor([0, 1]), 4000)
    assert bound.epsilon > 5
    nothing = statistical_lower_bound(drop, token(1), token(1), 100)
    assert nothing.epsilon == 0.0


def test_delta_is_subtracted() -> None:
    """Kept with probability 0.1, else the same for all: (0, 0.1)-LDP, so at delta 0.1 nothing is left."""

    def leaky(ids: Tensor, generator: np.random.Generator | None) -> Tensor:
        assert generator is not None
        return ids if generator.random() < 0.1 else ids * 0 + 5

    one, other = (
        statistical_lower_bound(leaky, token(0), token(1), 4000, 0.99, np.random.default_rng(4), delta)
        for delta in (0.0, 0.1)
    )
    assert one.epsilon > 2
    assert (other.epsilon, other.delta) == (0.0, 0.1)


def test_a_seed_repeats_an_audit() -> None:
    one, again = (
        statistical_lower_bound(response(0.6, 9), token(0), token(1), 500, 0.9, np.random.default_rng(5))  # type: ignore[arg-type]
        for _ in range(2)
    )
    assert one == again


@pytest.mark.parametrize(("samples", "confidence", "delta"), [(3, 0.9, 0.0), (10, 1.0, 0.0), (10, 0.9, 1.0)])
def test_what_cannot_be_audited_is_refused(samples: int, confidence: float, delta: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        statistical_lower_bound(response(0.5), token(0), token(1), samples, confidence, None, delta)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no pairs"):
        statistical_audit(response(0.5), [], 10)  # type: ignore[arg-type]


def test_the_best_of_several_pairs_pays_for_all() -> None:
    """Its bound is the one at a confidence of 1 - 0.1/2, stated at 0.9."""
    pairs = [(token(0), token(0)), (token(0), token(1))]
    best = statistical_audit(response(0.75), pairs, 1000, 0.9, np.random.default_rng(6))  # type: ignore[arg-type]
    generator = np.random.default_rng(6)
    bounds = [statistical_lower_bound(response(0.75), *pair, 1000, 0.95, generator) for pair in pairs]  # type: ignore[arg-type]
    assert best.epsilon == bounds[1].epsilon > bounds[0].epsilon
    assert best.confidence == 0.9


def test_pairs_are_nearest_and_farthest() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.99, 0.1], [-1.0, 0.0], [0.0, 1.0]])
    vocabulary = Vocabulary(["a", "b", "c", "d"], rows, blanks=0)
    pairs = pairs_to_try(vocabulary, 4, np.random.default_rng(0))
    assert len(pairs) == 8
    of_first = [other.tolist() for x, other in pairs if x.tolist() == [0]]
    assert of_first == [[2], [1]]


def clustered() -> Vocabulary:
    rng = np.random.default_rng(7)
    rows = rng.standard_normal((10, 48))[rng.integers(10, size=200)] + 0.5 * rng.standard_normal((200, 48))
    return Vocabulary([f"w{i}" for i in range(200)], torch.from_numpy(rows))


@pytest.mark.parametrize("name", ["rantext", "rantext-fate"])
def test_rantext_exceeds_its_nominal_epsilon(name: str) -> None:
    """Public synthetic words, epsilon 2: far words are told apart with more than that, at 99 percent confidence."""
    vocabulary = clustered()
    mechanism = create_mechanism(name, vocabulary, epsilon=2.0, neighbours=1)
    pairs = pairs_to_try(vocabulary, 2, np.random.default_rng(8))
    bound = statistical_audit(mechanism, pairs, 2000, 0.99, np.random.default_rng(9))
    assert bound.epsilon > 2.0
