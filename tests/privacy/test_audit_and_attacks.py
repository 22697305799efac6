"""The worst case and the best attack, on matrices whose answers are known by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pdss_fl.privacy import Vocabulary, create_mechanism
from pdss_fl.privacy.attacks import optimal_success
from pdss_fl.privacy.audit import exact_epsilon


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


def brute_force(log_prob: Tensor, prior: Tensor) -> float:
    joint = (prior[:, None] * log_prob.exp()).tolist()
    return float(sum(max(row[y] for row in joint) for y in range(len(joint))))


def test_the_best_attack_over_several_blocks_of_rows() -> None:
    words = [f"w{i}" for i in range(1100)]
    generator = torch.Generator().manual_seed(0)
    vocabulary = Vocabulary(words, torch.randn(1100, 3, generator=generator))
    mechanism = create_mechanism("staircase", vocabulary, epsilon=5.0, neighbours=3)
    prior = torch.rand(len(vocabulary), dtype=torch.float64, generator=generator)
    prior[::2] = 0.0  # words that never occur
    prior /= prior.sum()
    expected = brute_force(mechanism.log_prob(), prior)
    assert optimal_success(mechanism, prior) == pytest.approx(expected, rel=1e-12)
    assert float(prior.max()) < expected <= math.exp(5.0) * float(prior.max())


def test_without_perturbation_the_attack_never_fails() -> None:
    mechanism = create_mechanism("identity", Vocabulary(["dog", "cat"], torch.eye(2)))
    prior = torch.tensor([0.7, 0.3] + [0.0] * 8, dtype=torch.float64)
    assert optimal_success(mechanism, prior) == pytest.approx(1.0)


@pytest.mark.parametrize("prior", [[0.5, 0.4], [1.5, -0.5], [1.0], [math.nan, 1.0]])
def test_what_is_no_prior_is_refused(prior: list[float]) -> None:
    mechanism = create_mechanism("identity", Vocabulary(["dog"], torch.eye(1), blanks=1))
    with pytest.raises(ValueError, match="prior"):
        optimal_success(mechanism, torch.tensor(prior, dtype=torch.float64))
