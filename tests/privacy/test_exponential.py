"""The graded mechanism: what it really has is just below what was asked for, whatever the vocabulary."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pdss_fl.errors import SettingError
from pdss_fl.privacy import Vocabulary, create_mechanism, exponential
from pdss_fl.privacy.audit import exact_epsilon
from pdss_fl.privacy.exponential import Exponential, Scores, audited_epsilon, epsilon_bound
from pdss_fl.testing import check_mechanism


def words(rows: Tensor, blanks: int = 8) -> Vocabulary:
    return Vocabulary([f"w{i}" for i in range(len(rows))], rows, blanks=blanks)


def at_random(size: int, width: int = 6, seed: int = 0, blanks: int = 8) -> Vocabulary:
    return words(torch.randn(size, width, generator=torch.Generator().manual_seed(seed)), blanks)


@pytest.mark.parametrize("epsilon", [1e-6, 0.5, 6.0, 30.0, 300.0])
def test_it_does_what_it_claims(epsilon: float) -> None:
    check_mechanism(lambda v: create_mechanism("exponential", v, epsilon=epsilon, neighbours=3))


def test_so_does_a_given_scale_and_a_truncated_score() -> None:
    check_mechanism(lambda v: Exponential(v, scale=5.0))
    check_mechanism(lambda v: Exponential(v, epsilon=3.0, truncate=0.2))


@st.composite
def awkward_vocabularies(draw: st.DrawFn) -> Vocabulary:
    """Duplicates, zero rows, opposite rows and single words are common; with and without blanks."""
    size, width = draw(st.integers(1, 12)), draw(st.integers(1, 3))
    cell = st.sampled_from([0.0, 1.0, -1.0, 0.5, 1e30, 1e-30])
    rows = draw(st.lists(st.lists(cell, min_size=width, max_size=width), min_size=size, max_size=size))
    return words(torch.tensor(rows), blanks=draw(st.integers(1 if size == 1 else 0, 4)))


@settings(max_examples=80)
@given(
    awkward_vocabularies(), st.floats(-6, math.log10(350)), st.one_of(st.none(), st.floats(-1, 0.9), st.just(0.999999))
)
def test_the_exact_worst_case_is_within_the_target(
    vocabulary: Vocabulary, log_epsilon: float, truncate: float | None
) -> None:
    epsilon = 10.0**log_epsilon
    mechanism = Exponential(vocabulary, epsilon=epsilon, truncate=truncate)
    matrix = mechanism.log_prob()
    assert exact_epsilon(matrix) <= epsilon
    assert mechanism.guarantee.epsilon == epsilon
    assert bool((matrix > -torch.inf).all()), "every word can come out"


@pytest.mark.parametrize("epsilon", [1e-6, 0.1, 2.0, 6.0, 10.0, 50.0, 400.0])
@pytest.mark.parametrize("size", [30, 700])
def test_the_exact_worst_case_is_close_to_the_target_in_a_few_passes(
    monkeypatch: pytest.MonkeyPatch, size: int, epsilon: float
) -> None:
    vocabulary, passes = at_random(size), []
    evaluate: Callable[[Scores, float], float] = exponential.audited_epsilon
    monkeypatch.setattr(exponential, "audited_epsilon", lambda *a: passes.append(a) or evaluate(*a))
    matrix = Exponential(vocabulary, epsilon=epsilon).log_prob()
    assert 0.99 * epsilon <= exact_epsilon(matrix) <= epsilon
    assert len(passes) <= 6


@pytest.mark.parametrize("epsilon", [1e-6, 1.0, 20.0, 200.0])
@pytest.mark.parametrize("zeros", [1, 6, 30])
def test_it_is_close_among_words_without_a_direction_too(zeros: int, epsilon: float) -> None:
    """Their rows are flat, so the worst case is far above half of the textbook's."""
    rows = torch.cat([torch.zeros(zeros, 3), torch.randn(6, 3, generator=torch.Generator().manual_seed(0))])
    assert 0.99 * epsilon <= exact_epsilon(Exponential(words(rows, blanks=0), epsilon=epsilon).log_prob()) <= epsilon


def test_it_is_calibrated_to_about_twice_the_textbooks_scale() -> None:
    mechanism = Exponential(at_random(700, width=32), epsilon=8.0)
    cosines = mechanism.vocabulary.cosines(torch.arange(708), slice(0, 708))
    textbook = 8.0 / (2 * float(np.ptp(cosines, axis=0).max()))
    assert 1.5 < mechanism.scale / textbook < 2.0


def test_the_matrix_is_the_softmax_of_the_scaled_cosines() -> None:
    rows = torch.randn(40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    directions = torch.nn.functional.normalize(rows - rows.mean(dim=0), dim=1)
    expected = (5.0 * directions @ directions.T).log_softmax(dim=1)
    found = Exponential(words(rows, blanks=0), scale=5.0).log_prob()
    torch.testing.assert_close(found, expected, rtol=0, atol=0.01)  # cosines are rounded


def test_truncated_scores_do_not_tell_far_words_apart() -> None:
    vocabulary = at_random(40)
    mechanism = Exponential(vocabulary, epsilon=4.0, truncate=0.5)
    far = torch.from_numpy(vocabulary.cosines(torch.arange(48), slice(0, 48))) <= 0.5
    for row, is_far in zip(mechanism.log_prob(), far, strict=True):
        assert row[is_far].unique().numel() == 1
        assert float(row[~is_far].min()) > float(row[is_far].max())


@pytest.mark.parametrize("truncate", [None, 0.1])
@pytest.mark.parametrize("scale", [0.01, 3.0, 40.0])
def test_the_blockwise_audit_is_that_of_the_matrix_and_the_bound_above_it(scale: float, truncate: float | None) -> None:
    """400 words: several blocks of rows."""
    mechanism = Exponential(at_random(400), scale=scale, truncate=truncate)
    exact, scores = exact_epsilon(mechanism.log_prob()), Scores(mechanism.vocabulary, truncate)
    assert audited_epsilon(scores, scale) == pytest.approx(exact, abs=1e-11)
    bound = epsilon_bound(scores, scale)
    assert mechanism.guarantee.epsilon == bound
    assert exact <= bound <= 2 * exact


def test_a_row_does_not_depend_on_what_else_is_asked_for_nor_on_threads() -> None:
    mechanism = Exponential(at_random(300, width=577), scale=9.0)
    whole, threads = mechanism.log_prob(), torch.get_num_threads()
    assert torch.equal(mechanism.log_prob_rows(torch.tensor([7])), whole[7:8])
    assert torch.equal(mechanism.log_prob_rows(torch.tensor([250, 7, 7])), whole[[250, 7, 7]])
    scores = mechanism.vocabulary.cosines
    everything = scores(torch.arange(308), slice(0, 308))
    np.testing.assert_array_equal(everything, everything.T)
    np.testing.assert_array_equal(scores(torch.tensor([3]), slice(60, 75)), everything[3:4, 60:75])
    assert torch.get_num_threads() == threads


def test_equal_embeddings_are_released_equally_often() -> None:
    rows = torch.randn(5, 3, generator=torch.Generator().manual_seed(2)).repeat(2, 1)
    matrix = Exponential(words(rows), epsilon=5.0).log_prob()
    assert torch.equal(matrix[:5], matrix[5:10])
    assert torch.equal(matrix[:, :5], matrix[:, 5:10])


def test_where_nothing_is_nearer_anything_comes_out() -> None:
    matrix = Exponential(words(torch.zeros(6, 2), blanks=0), epsilon=3.0).log_prob()
    torch.testing.assert_close(matrix, torch.full((6, 6), -math.log(6), dtype=torch.float64), rtol=0, atol=1e-14)


def test_a_scale_is_searched_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = at_random(50, seed=9)
    first = Exponential(vocabulary, epsilon=3.21)
    first.perturb(torch.tensor([1]))
    monkeypatch.setattr(exponential, "audited_epsilon", None)  # a second search would call it
    assert Exponential(at_random(50, seed=9), epsilon=3.21).scale == first.scale


def test_parameters_tell_recipes_apart() -> None:
    vocabulary = at_random(12)
    made = [
        Exponential(vocabulary, epsilon=2.0),
        Exponential(vocabulary, epsilon=2.0000001),
        Exponential(vocabulary, scale=2.0),
        Exponential(vocabulary, epsilon=2.0, truncate=0.0),
        Exponential(vocabulary, epsilon=2.0, truncate=0.1),
        Exponential(at_random(13), epsilon=2.0),
    ]
    assert len({mechanism.parameters for mechanism in made}) == 6


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, "privacy.epsilon is missing"),
        ({"epsilon": 0.0}, "privacy.epsilon = 0.0"),
        ({"epsilon": math.nan}, "privacy.epsilon = nan"),
        ({"epsilon": math.inf}, "privacy.epsilon = inf"),
        ({"epsilon": 1e-12}, "privacy.epsilon = 1e-12"),
        ({"epsilon": 1e6}, "privacy.epsilon = 1000000.0"),
        ({"epsilon": 1.0, "neighbours": 0}, "privacy.neighbours"),
        ({"scale": 0.0}, "privacy.parameters: scale"),
        ({"scale": math.nan}, "privacy.parameters: scale"),
        ({"scale": 701.0}, "privacy.parameters: scale"),
        ({"epsilon": 1.0, "truncate": 1.0}, "privacy.parameters: truncate"),
        ({"epsilon": 1.0, "truncate": math.nan}, "privacy.parameters: truncate"),
    ],
)
def test_what_is_out_of_range_is_refused(options: dict[str, float], named: str) -> None:
    with pytest.raises(SettingError, match=named):
        Exponential(at_random(5), **options)  # type: ignore[arg-type]


def test_a_target_that_weights_cannot_reach_is_refused_with_the_one_they_can() -> None:
    with pytest.raises(SettingError, match=r"privacy\.epsilon = 1300\.0: .* reach 7\d\d.* ask for no more"):
        Exponential(at_random(50), epsilon=1300.0).perturb(torch.tensor([0]))


def test_a_scale_that_weights_cannot_hold_is_refused() -> None:
    with pytest.raises(SettingError, match="lower it"):
        Exponential(words(torch.tensor([[1.0], [-1.0]])), scale=600.0).perturb(torch.tensor([0]))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_embeddings_that_are_no_numbers_are_refused(bad: float) -> None:
    with pytest.raises(SettingError, match=r"privacy\.embeddings"):
        Exponential(words(torch.tensor([[bad, 0.0], [0.0, 1.0]])), epsilon=1.0)
