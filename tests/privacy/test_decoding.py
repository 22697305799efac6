"""Drawing word by word: exact weights, the worst case of each form, and what each makes of its epsilon."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from pdss_fl.errors import SettingError
from pdss_fl.privacy import EncoderDecoding
from pdss_fl.privacy.accounting import staircase_document
from pdss_fl.privacy.audit import exact_epsilon
from pdss_fl.privacy.composition import non_adaptive, zcdp, zcdp_of_bounded_range
from pdss_fl.privacy.document_audit import audit_documents
from pdss_fl.privacy.sampling import TABLE_BITS, random_bytes, weight_table, weighted
from tests.privacy.rewriters import extreme, make, table, words

NONE = torch.empty(1, 0, dtype=torch.long)


@given(st.floats(1e-9, 500), st.integers(1, 5000))
def test_no_two_weights_of_a_table_are_further_apart_than_its_span(span: float, steps: int) -> None:
    found = weight_table(span, steps)
    assert (np.diff(found) >= 0).all()
    assert (len(found), found[0] >= 1, found[-1]) == (steps + 1, True, 2**TABLE_BITS)
    with localcontext() as context:
        context.prec = 60
        assert Decimal(int(found[-1])) / int(found[0]) <= Decimal(span).exp()
    if 0.01 < span < 10:
        assert math.log(found[-1] / found[0]) == pytest.approx(span, rel=1e-4)


def test_places_are_drawn_in_proportion_to_their_weights() -> None:
    weights = np.array([[1, 0, 3, 4], [2**60, 2**60, 0, 2**61]])
    drawn = weighted(weights.repeat(20_000, axis=0), random_bytes(np.random.default_rng(0))).reshape(2, -1)
    for row, own in zip(drawn, weights, strict=True):
        counts = np.bincount(row, minlength=4)
        assert not counts[own == 0].any()
        assert stats.chisquare(counts[own > 0], len(row) * (own / own.sum())[own > 0]).pvalue > 1e-9


@pytest.mark.parametrize("epsilon", [0.5, 4.0])
def test_clipped_differences_reach_their_claim_at_the_worst_documents(epsilon: float) -> None:
    """4C/tau between two documents; half of it between one and none."""
    mechanism: Any = make("encoder-difference-clipping", words(6), extreme(6), epsilon, temperature=0.1)
    assert mechanism.clip == pytest.approx(epsilon * 0.1 / 4)
    law = mechanism.log_prob_given(torch.tensor([[0], [1]]), NONE.expand(2, 0))
    assert exact_epsilon(law) == pytest.approx(epsilon, rel=0.02)
    assert exact_epsilon(law) <= epsilon
    assert audit_documents(mechanism, 3).holds

    def public(_: Tensor | None, prefixes: Tensor) -> Tensor:
        return extreme(6)(None, prefixes)

    unread: Any = make("encoder-difference-clipping", words(6), public, epsilon, temperature=0.1)
    none = unread.log_prob_given(torch.tensor([[0]]), NONE)
    assert float((law - none).abs().max()) == pytest.approx(epsilon / 2, rel=0.02)


def test_the_bounded_range_of_clipped_differences_is_reached_by_two_rare_words() -> None:
    def swaps(documents: Tensor | None, prefixes: Tensor) -> Tensor:
        logits = torch.tensor([-15.0, -15.0, 0.0, 0.0], dtype=torch.float64).repeat(len(prefixes), 1)
        if documents is not None:
            up = documents[:, :1].clamp(max=1)
            logits = logits.scatter_add(1, up, torch.full_like(logits[:, :1], 5.0))
            logits = logits.scatter_add(1, 1 - up, torch.full_like(logits[:, :1], -5.0))
        return logits

    mechanism: Any = make("encoder-difference-clipping", words(4), swaps, 3.0)
    first, second = mechanism.log_prob_given(torch.tensor([[0], [1]]), NONE.expand(2, 0))
    assert float((first - second).max() - (first - second).min()) == pytest.approx(mechanism.bounded_range, rel=1e-3)


def test_clipped_differences_fade_into_the_public_text() -> None:
    public = (table(8, 3.0)(None, NONE).double().log_softmax(dim=1) / 1.5).log_softmax(dim=1)[0]
    documents = torch.arange(8)[:, None]
    off = []
    for epsilon in (4.0, 0.4, 0.04, 1e-6):
        mechanism: Any = make("encoder-difference-clipping", words(8), table(8, 3.0), epsilon, temperature=1.5)
        law = mechanism.log_prob_given(documents, NONE.expand(8, 0))
        off.append(float((law - public).abs().max()))
    assert off == sorted(off, reverse=True)
    assert off[0] > 0.5
    assert off[-1] < 1e-4


def test_without_clipping_in_its_way_the_difference_gives_the_private_text() -> None:
    mechanism: Any = make("encoder-difference-clipping", words(8), table(8, 1.0), 40.0)
    law = mechanism.log_prob_given(torch.tensor([[3]]), NONE)
    private = table(8, 1.0)(torch.tensor([[3]]), NONE).double().log_softmax(dim=1)
    torch.testing.assert_close(law, private, rtol=0, atol=0.01)


def test_clipped_logits_are_a_softmax_at_the_temperature_that_epsilon_and_clip_amount_to() -> None:
    mechanism = make(
        "encoder-dp-decoding", words(5), lambda _, p: torch.tensor([[3.0, 1.0, -40.0, 2.0, 3.0]]), clip=4.0
    )
    assert isinstance(mechanism, EncoderDecoding)
    assert mechanism.temperature == pytest.approx(2 * 4.0 / 2.0)
    law = mechanism.log_prob_given(torch.tensor([[0]]), NONE)
    expected = (torch.tensor([[0.0, -2.0, -4.0, -1.0, 0.0]], dtype=torch.float64) / 4).log_softmax(dim=1)
    torch.testing.assert_close(law, expected, rtol=0, atol=1e-3)


def test_clipped_logits_need_the_factor_2_where_one_document_leaves_one_word_and_another_all_but_it() -> None:
    def one_or_all_others(documents: Tensor | None, prefixes: Tensor) -> Tensor:
        assert documents is not None
        favours = torch.where((documents == 0).all(dim=1), 1.0, -1.0)
        return 99 * favours[:, None] * torch.eye(400)[0]

    found = audit_documents(make("encoder-dp-decoding", words(400), one_or_all_others), 1)
    assert found.holds
    assert 0.99 * 2.0 < found.epsilon <= 2.0


@pytest.mark.parametrize("clip", [0.1, 2.0, 10.0])
@pytest.mark.parametrize("epsilon", [1.0, 6.0])
def test_the_best_words_have_more_mass_at_equal_epsilon_than_any_clip_gives_them(epsilon: float, clip: float) -> None:
    vocabulary, k = words(60), 3
    top: Any = make("encoder-top", vocabulary, table(60, 5.0), epsilon, neighbours=k)
    clipped: Any = make("encoder-dp-decoding", vocabulary, table(60, 5.0), epsilon, clip=clip)
    documents = torch.arange(60)[:, None]
    laws = [m.log_prob_given(documents, NONE.expand(60, 0)).exp() for m in (top, clipped)]
    best = laws[1].topk(k, dim=1).values.sum(dim=1)
    assert (laws[0].topk(k, dim=1).values.sum(dim=1) > best).all()
    half = math.exp(epsilon / 2)
    assert (best <= k * half / (k * half + 60 - k) * (1 + 1e-6)).all()


def test_equal_logits_leave_exactly_k_words_near_the_lower_ids_first() -> None:
    mechanism: Any = make("encoder-top", words(9), lambda _, p: torch.zeros(len(p), 9), neighbours=4)
    law = mechanism.log_prob_given(torch.tensor([[0]]), NONE)[0]
    assert (law > law.min()).tolist() == 4 * [True] + 5 * [False]


def test_copies_of_a_filling_word_take_one_place_unless_it_is_the_best_word() -> None:
    def after_the_best(height: float) -> list[bool]:
        logits = torch.tensor([[9.0, 3.0, 2.0, 1.0] + 4 * [height]])
        mechanism: Any = make("encoder-top", words(8, blanks=4), lambda _, p: logits, neighbours=3)
        law = mechanism.log_prob_given(torch.tensor([[0]]), NONE)[0]
        return (law > law.min()).tolist()

    assert after_the_best(0.0) == [True, True, True, False] + 4 * [False]
    assert after_the_best(5.0) == [True, True, False, False, True, False, False, False]
    assert after_the_best(10.0) == 4 * [False] + [True, True, True, False]
    everything: Any = make("encoder-top", words(8, blanks=4), table(8), neighbours=7)
    law = everything.log_prob_given(torch.arange(8)[:, None], NONE.expand(8, 0))
    assert ((law > law.min()).sum(dim=1) == 7).all()


def test_documents_are_composed_for_laws_that_depend_on_earlier_words() -> None:
    top = make("encoder-top", words(40), table(40), neighbours=3)
    assert top.compose(20, 1e-5) == staircase_document(2.0, 3, 40, 20, 1e-5)
    assert make("encoder-composed", words(40), table(40), neighbours=3).compose(20, 1e-5) == top.compose(20, 1e-5)
    for name in ("encoder-dp-decoding", "encoder-difference-clipping"):
        mechanism = make(name, words(40), table(40), 1.0)
        composed = mechanism.compose(30, 1e-5)
        assert composed.epsilon == pytest.approx(zcdp(30 * zcdp_of_bounded_range(1.0), 1e-5))
        assert composed.epsilon == pytest.approx(15.71, abs=0.01), "the reference table's tight rho"
        assert composed.epsilon > non_adaptive(1.0, 30, 1e-5)
        assert (mechanism.compose(30, 0.0).epsilon, mechanism.compose(30, 0.0).delta) == (30.0, 0.0)


@pytest.mark.parametrize(
    ("name", "given", "setting"),
    [
        ("encoder-dp-decoding", {"clip": 0.0}, "parameters: clip"),
        ("encoder-dp-decoding", {"clip": math.inf}, "parameters: clip"),
        ("encoder-difference-clipping", {"temperature": math.nan}, "parameters: temperature"),
        ("encoder-difference-clipping", {"epsilon": 1e-12}, r"privacy\.epsilon"),
        ("encoder-top", {"epsilon": 1e-60}, r"privacy\.epsilon"),
        ("encoder-composed", {"neighbours": 0}, r"privacy\.neighbours"),
    ],
)
def test_settings_are_checked(name: str, given: dict[str, Any], setting: str) -> None:
    with pytest.raises(SettingError, match=setting):
        make(name, words(8), table(8), **given)
