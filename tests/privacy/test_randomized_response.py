"""k-ary randomised response: its formula, its tight epsilon, and the composition it shares with the staircase."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pdss_fl.errors import SettingError
from pdss_fl.privacy import PrivacyMechanism, Vocabulary, create_mechanism, randomized_response
from pdss_fl.privacy.audit import exact_epsilon
from pdss_fl.testing import check_mechanism

NAME = randomized_response.RandomizedResponse.name


def response(size: int, epsilon: float, neighbours: int = 5) -> PrivacyMechanism:
    vocabulary = Vocabulary([f"w{i}" for i in range(size)], torch.zeros(size, 1), blanks=0)
    return create_mechanism(NAME, vocabulary, epsilon=epsilon, neighbours=neighbours)


@pytest.mark.parametrize("epsilon", [1e-6, 1.0, 4.0, 30.0])
def test_it_does_what_it_claims(epsilon: float) -> None:
    check_mechanism(lambda v: create_mechanism("randomized-response", v, epsilon=epsilon, neighbours=3))


@given(st.integers(2, 60), st.floats(1e-6, 60))
def test_the_matrix_is_the_formula_and_its_epsilon_is_tight(size: int, epsilon: float) -> None:
    mechanism = response(size, epsilon)
    z = math.exp(epsilon) + size - 1
    formula = torch.full((size, size), -math.log(z), dtype=torch.float64).fill_diagonal_(epsilon - math.log(z))
    torch.testing.assert_close(mechanism.log_prob(), formula, rtol=0, atol=1e-9)
    assert exact_epsilon(mechanism.log_prob()) == pytest.approx(epsilon, abs=1e-9)
    assert mechanism.kept_tokens == pytest.approx(math.exp(epsilon) / z, rel=1e-9)


def test_the_number_of_neighbours_does_not_matter() -> None:
    few, many = response(20, 2.0, 1), response(20, 2.0, 99)
    ids = torch.arange(20).repeat(50)
    assert torch.equal(few.perturb(ids, np.random.default_rng(0)), many.perturb(ids, np.random.default_rng(0)))
    assert few.parameters == many.parameters


def test_two_words_are_warners_coin() -> None:
    out = response(2, math.log(3)).perturb(torch.zeros(40_000, dtype=torch.long))
    assert float(out.double().mean()) == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("neighbours", [1, 5])
def test_a_document_is_worth_what_the_convolution_says(neighbours: int) -> None:
    """Two tokens over three words: all pairs of documents, in the plain."""
    mechanism = response(3, 1.0, neighbours)
    token = mechanism.log_prob().exp()
    document = torch.einsum("ac,bd->abcd", token, token).reshape(9, 9)
    composed = mechanism.compose(2, 0.1)
    assert composed.epsilon < 1.98
    worst = max(float((row - math.exp(composed.epsilon) * document).clamp_min(0).sum(dim=1).max()) for row in document)
    assert worst == pytest.approx(0.1, abs=1e-3)
    assert worst <= 0.1 * (1 + 1e-9)


def test_a_large_vocabulary_needs_no_neighbour_sets() -> None:
    """No product of embeddings: 200,000 words at once."""
    mechanism = response(200_000, 14.0)
    out = mechanism.perturb(torch.arange(200_000))
    kept = float((out == torch.arange(200_000)).double().mean())
    assert kept == pytest.approx(mechanism.kept_tokens, abs=0.01)


@pytest.mark.parametrize(
    ("epsilon", "neighbours", "named"),
    [(0.0, 1, "epsilon"), (math.nan, 1, "epsilon"), (1e-40, 1, "epsilon"), (1.0, 0, "neighbours")],
)
def test_what_is_out_of_range_is_refused(epsilon: float, neighbours: int, named: str) -> None:
    with pytest.raises(SettingError, match=rf"privacy\.{named}"):
        response(5, epsilon, neighbours)
