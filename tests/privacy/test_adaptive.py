"""The adaptive staircase: one claim over all types, more cover for salient words, exact thresholds."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pdss_fl.errors import SettingError
from pdss_fl.privacy import Vocabulary
from pdss_fl.privacy.adaptive import AdaptiveStaircase, _thresholds
from pdss_fl.privacy.attacks import optimal_success
from pdss_fl.privacy.audit import exact_epsilon
from pdss_fl.privacy.staircase import Staircase, near_threshold
from pdss_fl.testing import check_mechanism


def words(size: int) -> Vocabulary:
    rows = torch.randn(size, 3, generator=torch.Generator().manual_seed(0))
    return Vocabulary([f"w{i}" for i in range(size)], rows, blanks=0)


def steps(size: int) -> list[float]:
    return [i / (size - 1) for i in range(size)]


@pytest.mark.parametrize(("epsilon", "neighbours"), [(1e-6, 3), (0.5, 1), (2.0, 4), (6.0, 3), (12.0, 100), (30.0, 5)])
def test_it_passes_the_kit(epsilon: float, neighbours: int) -> None:
    check_mechanism(lambda v: AdaptiveStaircase(v, epsilon=epsilon, neighbours=neighbours))
    check_mechanism(lambda v: AdaptiveStaircase(v, epsilon=epsilon, neighbours=neighbours, salience=steps(len(v))))


@settings(max_examples=60)
@given(st.floats(1e-6, 30), st.integers(1, 30), st.data())
def test_the_audit_over_all_types_returns_the_claim(epsilon: float, k: int, data: st.DataObject) -> None:
    salience = [0.0, 0.0, *data.draw(st.lists(st.floats(0, 1), min_size=22, max_size=22))]
    lowest = data.draw(st.floats(1e-7, 1)) * epsilon
    mechanism = AdaptiveStaircase(words(24), epsilon=epsilon, neighbours=k, salience=salience, epsilon_min=lowest)
    matrix = mechanism.log_prob()
    assert exact_epsilon(matrix) == pytest.approx(epsilon, abs=1e-9)
    torch.testing.assert_close(matrix.exp().sum(dim=1), torch.ones(24, dtype=torch.float64), rtol=0, atol=1e-12)


@settings(max_examples=200)
@given(st.floats(1e-30, 200), st.integers(1, 1000), st.integers(1, 50_000), st.lists(st.floats(0, 1), max_size=6))
def test_the_sampler_never_has_more_than_the_claim(epsilon: float, k: int, others: int, at: list[float]) -> None:
    """In exact arithmetic, over near and far of all types."""
    size = k + others
    sizes = sorted({k, *(k + int(share * (others - 1)) for share in at)})
    try:
        thresholds = _thresholds(sizes, near_threshold(epsilon, k, size), k, size)
    except SettingError:
        assume(False)
    levels = [Fraction(t, n) for n, t in thresholds.items()]
    levels += [Fraction(2**128 - t, size - n) for n, t in thresholds.items()]
    worst = max(levels) / min(levels)
    with localcontext() as context:
        context.prec = 200
        assert Decimal(worst.numerator) / Decimal(worst.denominator) <= Decimal(epsilon).exp()


def test_thresholds_are_refused_only_where_epsilon_is_next_to_0() -> None:
    for epsilon in (1e-30, 1e-9, 1.0, 50.0, 1e6):
        assert set(_thresholds([3, 4, 12, 19], near_threshold(epsilon, 3, 20), 3, 20)) == {3, 4, 12, 19}


def test_salience_is_what_a_word_has_less_of() -> None:
    """eps_x = eps_min + (eps_max - eps_min)(1 - s), up to whole words, and two salient ones are closer."""
    salience = [0.0] * 100 + [0.5] * 100 + [1.0] * 100
    mechanism = AdaptiveStaircase(words(300), epsilon=6.0, neighbours=3, salience=salience, epsilon_min=4.0)
    own = mechanism.word_epsilons()
    assert own[0] == pytest.approx(6.0, abs=1e-9)
    assert own[100] == pytest.approx(5.0, abs=0.1)
    assert own[200] == pytest.approx(4.0, abs=0.1)
    assert (own[100] <= 5.0) & (own[200] <= 4.0)
    matrix = mechanism.log_prob()
    for group, epsilon in ((slice(0, 100), 6.0), (slice(100, 200), own[100]), (slice(200, 300), own[200])):
        assert exact_epsilon(matrix[group]) == pytest.approx(float(epsilon), abs=1e-9)


def test_constant_salience_0_is_the_plain_staircase() -> None:
    vocabulary = words(30)
    mechanism = AdaptiveStaircase(vocabulary, epsilon=3.0, neighbours=3, salience=[0.0] * 30)
    torch.testing.assert_close(mechanism.log_prob(), Staircase(vocabulary, epsilon=3.0, neighbours=3).log_prob())


def test_near_mass_stays_and_the_attack_on_salient_words_falls() -> None:
    vocabulary = words(200)
    plain = Staircase(vocabulary, epsilon=6.0, neighbours=3)
    mechanism = AdaptiveStaircase(vocabulary, epsilon=6.0, neighbours=3, salience=[1.0] * 200)
    assert mechanism.sizes.tolist() == [12] * 200
    assert mechanism.near_tokens >= plain.near_tokens
    prior = torch.full((200,), 1 / 200, dtype=torch.float64)
    assert optimal_success(mechanism, prior) < optimal_success(plain, prior) / 3.9


def test_the_default_table_knows_grammar_and_blanks() -> None:
    vocabulary = Vocabulary(["the", "river", "of", "banks"] + [f"w{i}" for i in range(60)], torch.randn(64, 4))
    mechanism = AdaptiveStaircase(vocabulary, epsilon=4.0, neighbours=2)
    assert mechanism.sizes[[0, 2]].tolist() == [2, 2]
    assert mechanism.sizes[[1, 3, 10]].tolist() == [8, 8, 8]
    assert mechanism.sizes[64:].tolist() == [2] * 8


def test_shares_are_what_the_matrix_says() -> None:
    mechanism = AdaptiveStaircase(words(40), epsilon=3.0, neighbours=2, salience=steps(40))
    probability = mechanism.log_prob().exp()
    near = [probability[x, mechanism.vocabulary.neighbours(int(k))[x]].sum() for x, k in enumerate(mechanism.sizes)]
    assert mechanism.near_tokens == pytest.approx(float(torch.stack(near).mean()), rel=1e-12)
    assert mechanism.kept_tokens == pytest.approx(float(probability.diagonal().mean()), rel=1e-12)


def test_a_document_of_any_types_is_worth_no_more_than_the_plain_one() -> None:
    """All pairs of two-word documents over a small vocabulary, no dominating pair assumed."""
    mechanism = AdaptiveStaircase(words(12), epsilon=1.5, neighbours=2, salience=[0.0] * 6 + [0.5] * 3 + [1.0] * 3)
    token = mechanism.log_prob().exp()
    document = torch.einsum("ac,bd->abcd", token, token).reshape(144, 144)
    for delta in (0.05, 0.2):
        epsilon = mechanism.compose(2, delta).epsilon
        assert epsilon == Staircase(mechanism.vocabulary, epsilon=1.5, neighbours=2).compose(2, delta).epsilon < 3.0
        worst = max(float((row - math.exp(epsilon) * document).clamp_min(0).sum(dim=1).max()) for row in document)
        assert worst <= delta * (1 + 1e-9)
    assert mechanism.compose(30, 0.0).epsilon == 45.0


def test_parameters_tell_tables_apart() -> None:
    vocabulary = words(20)
    parameters = {
        AdaptiveStaircase(vocabulary, epsilon=2.0, neighbours=2, salience=table, epsilon_min=lowest).parameters
        for table in ([0.0] * 20, steps(20))
        for lowest in (None, 1.0)
    }
    assert len(parameters) == 4


@pytest.mark.parametrize(
    ("options", "setting"),
    [
        ({"salience": [0.5] * 19}, "adaptive-staircase: salience"),
        ({"salience": [0.5] * 19 + [1.1]}, "salience"),
        ({"salience": [0.5] * 19 + [math.nan]}, "salience"),
        ({"epsilon_min": 0.0}, "parameters: epsilon-min"),
        ({"epsilon_min": 2.1}, "parameters: epsilon-min"),
        ({"epsilon_min": math.nan}, "parameters: epsilon-min"),
    ],
)
def test_settings_are_checked(options: dict[str, object], setting: str) -> None:
    with pytest.raises(SettingError, match=setting):
        AdaptiveStaircase(words(20), epsilon=2.0, neighbours=2, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("epsilon", [500.0, 1e6, 1e308])
def test_at_any_epsilon_something_far_is_possible(epsilon: float) -> None:
    mechanism = AdaptiveStaircase(words(20), epsilon=epsilon, neighbours=2)
    assert exact_epsilon(mechanism.log_prob()) <= epsilon


def test_ids_of_another_vocabulary_are_refused() -> None:
    mechanism = AdaptiveStaircase(words(20), epsilon=2.0, neighbours=2)
    assert mechanism.perturb(torch.empty(0, dtype=torch.long)).shape == (0,)
    with pytest.raises(ValueError, match="ids must be"):
        mechanism.perturb(torch.tensor([20]), np.random.default_rng(0))
