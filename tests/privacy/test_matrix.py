"""A matrix of weights: what comes out has exactly the law that the rows state, however far apart weights are."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import opendp.prelude as dp
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from pdss_fl.errors import SettingError
from pdss_fl.privacy import PrivacyGuarantee, Vocabulary, matrix
from pdss_fl.privacy.audit import exact_epsilon
from pdss_fl.privacy.matrix import MatrixMechanism
from pdss_fl.testing import check_mechanism

dp.enable_features("contrib")
CHANCE = 1e-9


def words(size: int) -> Vocabulary:
    return Vocabulary([f"w{i}" for i in range(size)], torch.zeros(size, 1), blanks=0)


class Table(MatrixMechanism):
    """Log-weights from a function of arrays of inputs (n, 1) and outputs (1, m)."""

    def __init__(self, size: int, log_weight: Callable[[Tensor, Tensor], Tensor], epsilon: float = 1.0) -> None:
        super().__init__(words(size), epsilon=epsilon, neighbours=1)
        self.log_weight = log_weight
        self.whole_rows: list[int] = []

    @property
    def guarantee(self) -> PrivacyGuarantee:
        return PrivacyGuarantee("none", math.inf, 0.0, "token", "A test.")

    def _log_weights(self, ids: Tensor, outputs: slice) -> Tensor:
        if outputs == slice(0, len(self.vocabulary)):
            self.whole_rows += ids.tolist()
        found = self.log_weight(ids[:, None], torch.arange(outputs.start, outputs.stop)[None, :])
        return found.double().expand(len(ids), outputs.stop - outputs.start)


def of_rows(rows: list[list[float]]) -> Table:
    table = torch.tensor(rows, dtype=torch.float64)
    return Table(len(rows), lambda x, y: table[x, y])


class Tape:
    """A generator whose bytes are prepared: whole numbers for draws of 64 bits, fractions for longer ones."""

    def __init__(self, *numbers: int | Fraction) -> None:
        self.numbers = list(numbers)

    def bytes(self, n: int) -> bytes:
        number = self.numbers.pop(0)
        return int(number if n == 8 else number * 2 ** (8 * n)).to_bytes(n, "little")


def released(mechanism: Table, token: int, *numbers: int | Fraction) -> int:
    """Return what comes out for a token if these are drawn, all of them."""
    tape = Tape(*numbers)
    (output,) = mechanism.perturb(torch.tensor([token]), tape).tolist()  # type: ignore[arg-type]
    assert not tape.numbers
    return int(output)


@pytest.mark.parametrize("size", [4, 32, 33, 70])
def test_every_draw_is_followed_to_its_output(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """The whole law, counted: all draws of a sampler with units so coarse that they can be listed.

    Each output gets as many of the equally likely numbers as its weight has whole units, and of one more the
    exact rest, to the last bit of the weight's float: with what is over, all is drawn again.
    """
    monkeypatch.setattr(Table, "_unit_bits", 3)
    log_weights = np.random.default_rng(0).uniform(-5, 0, size)
    log_weights[:4] = -1.2, 0.0, -math.inf, -690.0
    mechanism = of_rows([log_weights.tolist()] * size)
    weights = [Fraction(w) for w in np.exp(log_weights + 3 * math.log(2))]
    number = 0
    for output, weight in enumerate(weights):
        for place in range(math.ceil(weight)):
            if weight - place >= 1:
                assert released(mechanism, 2, number) == output
            else:
                assert released(mechanism, 2, number, weight - place - Fraction(1, 2**1088)) == output
                assert released(mechanism, 2, number, weight - place, 0) == 0
            number += 1
    assert released(mechanism, 2, number) == 0, "there are no more numbers: this one is 0 again"
    law = torch.tensor([float(weight / sum(weights)) for weight in weights], dtype=torch.float64)
    torch.testing.assert_close(mechanism.log_prob()[2].exp(), law, rtol=1e-12, atol=0)


def check_law(mechanism: MatrixMechanism, times: int, generator: np.random.Generator | None) -> None:
    """Counts of outputs follow ``log_prob``; what is expected less than 20 times is counted together."""
    size = len(mechanism.vocabulary)
    ids = torch.arange(size).repeat(times)
    counts = torch.bincount(ids * size + mechanism.perturb(ids, generator), minlength=size * size).numpy()
    expected = times * mechanism.log_prob().exp().flatten().numpy()
    often = expected > 20
    got, wanted = np.append(counts[often], counts[~often].sum()), np.append(expected[often], expected[~often].sum())
    assert not counts[expected == 0].any()
    assert stats.chisquare(got, wanted * got.sum() / wanted.sum()).pvalue > CHANCE


def jagged(x: Tensor, y: Tensor) -> Tensor:
    """Log-weights all over the place, some of them minus infinity."""
    value = (37 * x + 101 * y + x * y) % 97
    return torch.where((value < 10) & (x != y), -torch.inf, -value / 8.0)


@pytest.mark.parametrize("bits", [45, 6])
@pytest.mark.parametrize("seed", [None, 0])
def test_frequencies(monkeypatch: pytest.MonkeyPatch, bits: int, seed: int | None) -> None:
    monkeypatch.setattr(Table, "_unit_bits", bits)
    check_law(Table(150, jagged), 200, None if seed is None else np.random.default_rng(seed))


def test_frequencies_where_only_some_rows_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix, "_ROWS_BYTES", 7 * 8 * 3)  # seven rows of three blocks
    monkeypatch.setattr(matrix, "_WORK_BYTES", 3 * 8 * 70)
    check_law(Table(70, jagged), 100, None)


def test_frequencies_are_those_of_opendps_exponential_mechanism() -> None:
    """Its noisy maximum with Gumbel noise, which it offers under zero-concentrated privacy."""
    scores, scale, draws = [1.0, 0.3, -0.2, 0.9, 0.31], 3.0, 6000
    space = dp.vector_domain(dp.atom_domain(T=float, nan=False)), dp.linf_distance(T=float)
    theirs = dp.m.make_noisy_max(*space, dp.zero_concentrated_divergence(), scale=1 / scale)
    table = torch.tensor(scores)
    ours = Table(5, lambda x, y: scale * table[y] + 0 * x)
    counts = np.bincount([theirs(scores) for _ in range(draws)], minlength=5)
    mine = np.bincount(ours.perturb(torch.zeros(draws, dtype=torch.long)).numpy(), minlength=5)
    assert stats.chisquare(counts, draws * ours.log_prob()[0].exp().numpy()).pvalue > CHANCE
    assert stats.chi2_contingency([counts, mine]).pvalue > CHANCE


LOG_WEIGHTS = st.lists(st.floats(-690, 0), min_size=2, max_size=12)


@settings(max_examples=60)
@given(LOG_WEIGHTS, st.floats(-1e3, 1e3))
def test_rows_are_what_decimal_arithmetic_says(log_weights: list[float], offset: float) -> None:
    shifted = [weight + offset for weight in log_weights]
    rows = of_rows([shifted] * len(shifted)).log_prob()
    with localcontext() as context:
        context.prec = 60
        total = sum(Decimal(weight).exp() for weight in shifted).ln()
        exact = [float(Decimal(weight) - total) for weight in shifted]
    torch.testing.assert_close(rows[1], torch.tensor(exact, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("size", "epsilon"), [(20, 5.28), (11_400, 5.998), (2, 3.0)])
def test_known_epsilons_of_scores_that_fill_the_unit_interval(size: int, epsilon: float) -> None:
    """Method 4.0, factor eps/2 = 3: a + ln((1 + (V-1) e^a) / (e^a + V-1)). Rows from 2 on are all alike."""
    mechanism = Table(size, lambda x, y: 3.0 * (((x == 0) & (y > 0)) | ((x == 1) & (y == 0))))
    exact = 3.0 + math.log((1 + (size - 1) * math.exp(3.0)) / (math.exp(3.0) + size - 1))
    found = exact_epsilon(mechanism.log_prob_rows(torch.arange(min(size, 3))))
    assert found == pytest.approx(exact, abs=1e-12)
    assert found == pytest.approx(epsilon, abs=0.005)


def test_a_true_claim_about_a_table_passes() -> None:
    class Claimed(Table):
        @property
        def guarantee(self) -> PrivacyGuarantee:
            return PrivacyGuarantee("pure-ldp", 5.0, 0.0, "token", "A test.")

    def make(vocabulary: Vocabulary) -> Claimed:
        mechanism = Claimed(len(vocabulary), lambda x, y: ((x + 2 * y) % 5) * 0.625)
        mechanism.vocabulary = vocabulary
        return mechanism

    check_mechanism(make)


def test_a_word_that_could_never_come_out_is_refused() -> None:
    within = of_rows([[0.0, -699.9], [-699.9, 0.0]])
    assert exact_epsilon(within.log_prob()) == pytest.approx(699.9, abs=1e-9)
    beyond = of_rows([[0.0, -0.5], [-700.1, 0.0]])
    for refused in (beyond.log_prob, lambda: beyond.perturb(torch.tensor([1]))):
        with pytest.raises(SettingError, match=r"privacy\.epsilon = 1\.0: .* lower it"):
            refused()
    assert beyond.perturb(torch.tensor([0] * 9)).shape == (9,)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_row_of_log_weights_is_refused(bad: float) -> None:
    mechanism = of_rows([[bad, bad if math.isinf(bad) else 0.0], [0.0, 0.0]])
    with pytest.raises(ValueError, match="log-weights"):
        mechanism.perturb(torch.tensor([0]))
    with pytest.raises(ValueError, match="log-weights"):
        mechanism.log_prob()


def test_a_row_is_prepared_once_and_only_if_it_occurs() -> None:
    mechanism = Table(300, jagged)
    for ids in ([5, 9, 5, 299], [9, 5], [299, 7]):
        mechanism.perturb(torch.tensor(ids))
    assert sorted(mechanism.whole_rows) == [5, 7, 9, 299]


def test_the_share_that_is_kept_is_the_diagonals_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    mechanism = Table(90, jagged)
    kept = float(mechanism.log_prob().diagonal().exp().mean())
    monkeypatch.setattr(matrix, "_WORK_BYTES", 7 * 8 * 90)  # seven rows at a time
    assert mechanism.kept_tokens == pytest.approx(kept, rel=1e-12)


@pytest.mark.parametrize("ids", [torch.tensor([-1]), torch.tensor([4]), torch.tensor([[1]]), torch.tensor([1.0])])
def test_ids_of_another_vocabulary_are_refused(ids: Tensor) -> None:
    mechanism = Table(4, jagged)
    with pytest.raises(ValueError, match="ids must be"):
        mechanism.perturb(ids)
    with pytest.raises(ValueError, match="ids must be"):
        mechanism.log_prob_rows(ids)


def test_nothing_in_nothing_out() -> None:
    nothing = torch.empty(0, dtype=torch.long)
    assert Table(4, jagged).perturb(nothing).shape == (0,)
    assert Table(4, jagged).log_prob_rows(nothing).shape == (0, 4)
