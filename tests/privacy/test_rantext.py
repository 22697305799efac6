"""RANTEXT as published: its curve, its law against a plain second implementation, and why it guarantees nothing."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from pdss_fl.privacy import PrivacyMechanism, Vocabulary, create_mechanism
from pdss_fl.privacy.rantext import noise_divisor
from pdss_fl.testing import check_mechanism

NAMES = ["rantext", "rantext-fate"]
DRAWS = 4000


@pytest.mark.parametrize(("epsilon", "divisor"), [(1.9, 1.9), (2.0, 9.12), (3.0, 9.36), (6.0, 9.38), (14.0, 9.40)])
def test_known_divisors(epsilon: float, divisor: float) -> None:
    assert noise_divisor(epsilon) == pytest.approx(divisor, abs=0.005)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("epsilon", [0.5, 6.0, 500.0])
def test_rantext_passes_for_what_it_claims(name: str, epsilon: float) -> None:
    check_mechanism(lambda v: create_mechanism(name, v, epsilon=epsilon, neighbours=3))


@pytest.mark.parametrize("name", NAMES)
def test_there_is_no_matrix_for_a_reason_and_no_guarantee(name: str) -> None:
    mechanism = create_mechanism(name, Vocabulary(["dog", "cat"], torch.eye(2)), epsilon=6.0)
    with pytest.raises(NotImplementedError, match="random"):
        mechanism.log_prob()
    assert (mechanism.guarantee.kind, mechanism.guarantee.epsilon) == ("none", math.inf)
    assert mechanism.compose(30, 1e-5).epsilon == math.inf
    assert "epsilon 6 is nominal" in mechanism.guarantee.statement


def official(rows: NDArray[np.float64], t: int, epsilon: float, random: np.random.Generator) -> int:
    scale = np.ptp(rows, axis=0) / noise_divisor(epsilon)
    radius = np.linalg.norm(random.laplace(0.0, scale))
    distance = np.linalg.norm(rows - rows[t], axis=1)
    near = np.flatnonzero(distance < radius)
    weight = np.exp(epsilon / 2 * (1 - distance[near] / radius))
    return int(random.choice(near, p=weight / weight.sum()))


def fate(rows: NDArray[np.float64], t: int, epsilon: float, random: np.random.Generator) -> int:
    noisy = rows[t] + random.laplace(0.0, np.ptp(rows, axis=0) / (0.5 * epsilon))
    cosine = rows @ rows[t]
    near = np.flatnonzero(cosine >= noisy @ rows[t] / np.linalg.norm(noisy))
    weight = np.exp(epsilon / 2 * cosine[near])
    return int(random.choice(near, p=weight / weight.sum()))


@pytest.mark.parametrize(("name", "plain"), [("rantext", official), ("rantext-fate", fate)])
@pytest.mark.parametrize("epsilon", [1.9, 3.0])
def test_outputs_are_distributed_like_those_of_a_plain_implementation(
    name: str, plain: Callable[..., int], epsilon: float
) -> None:
    """As far from the word, over 400 words on a sphere: a radius that is a tenth smaller would be found."""
    rows = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    vocabulary = Vocabulary([f"w{i}" for i in range(400)], rows, blanks=0)
    centred = (rows - rows.mean(dim=0)).double().numpy()
    unit, random = centred / np.linalg.norm(centred, axis=1, keepdims=True), np.random.default_rng(1)
    drawn = create_mechanism(name, vocabulary, epsilon=epsilon).perturb(
        torch.full((10_000,), 7), np.random.default_rng(2)
    )
    again = [plain(unit, 7, epsilon, random) for _ in drawn]
    distance = np.linalg.norm(unit - unit[7], axis=1)
    assert stats.ks_2samp(distance[drawn], distance[again]).pvalue > 1e-3


def clustered(size: int = 600, dimensions: int = 64) -> Vocabulary:
    """Public words in 20 clusters, like embeddings of a language."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(20, dimensions, generator=generator).repeat_interleave(size // 20, dim=0)
    rows = centres + 0.7 * torch.randn(size, dimensions, generator=generator)
    return Vocabulary([f"w{i}" for i in range(size)], rows, blanks=0)


def far_apart(mechanism: PrivacyMechanism) -> tuple[float, float]:
    """Return how often what comes of a word t is in a public set of words, and how often what comes of t' is.

    t' is the word that is farthest from t, and the set is what came of t and not of t' in other draws.
    """
    vocabulary, seeds = mechanism.vocabulary, np.random.default_rng(3).spawn(4)
    other = int(vocabulary.distances(torch.tensor([0]), slice(0, len(vocabulary))).argmax())
    of_t, of_other = torch.full((DRAWS,), 0), torch.full((DRAWS,), other)
    telling = torch.tensor(
        sorted(set(mechanism.perturb(of_t, seeds[0]).tolist()) - set(mechanism.perturb(of_other, seeds[1]).tolist()))
    )
    return tuple(  # type: ignore[return-value]
        float(torch.isin(mechanism.perturb(ids, seed), telling).double().mean())
        for ids, seed in ((of_t, seeds[2]), (of_other, seeds[3]))
    )


@pytest.mark.parametrize(("name", "epsilon"), [("rantext", 3.0), ("rantext", 6.0), ("rantext-fate", 6.0)])
def test_its_epsilon_does_not_hold(name: str, epsilon: float) -> None:
    """Pr[set|t] <= e^eps Pr[set|t'] would give t' hits: none in 4,000 has a chance of e^-9 or less."""
    of_t, of_other = far_apart(create_mechanism(name, clustered(), epsilon=epsilon))
    assert of_t > 0.5
    assert of_other == 0
    assert DRAWS * of_t * math.exp(-epsilon) > 9


def test_below_the_jump_of_the_curve_the_list_is_the_whole_vocabulary() -> None:
    """At epsilon 1 no output is telling but by chance: the check above finds no difference where there is none."""
    of_t, of_other = far_apart(create_mechanism("rantext", clustered(), epsilon=1.0))
    assert of_t < 0.01
    assert of_other < 0.01


@pytest.mark.parametrize("name", NAMES)
def test_without_a_generator_no_two_draws_are_alike(name: str) -> None:
    mechanism, ids = create_mechanism(name, clustered(200, 16), epsilon=1.0), torch.arange(200)
    assert not torch.equal(mechanism.perturb(ids), mechanism.perturb(ids))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_kept_rises_with_epsilon(name: str) -> None:
    kept = [create_mechanism(name, clustered(200, 16), epsilon=epsilon).kept_tokens for epsilon in (1.0, 3.0, 30.0)]
    assert kept == sorted(kept)
    assert kept[0] < 0.1 < kept[-1]
