"""The contextual staircase: tight after every prefix, blind to raw context, and no different without a model."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from pdss_fl.errors import SettingError
from pdss_fl.privacy import Vocabulary
from pdss_fl.privacy.audit import exact_epsilon
from pdss_fl.privacy.contextual import Contextual, NextWord
from pdss_fl.privacy.staircase import Staircase
from pdss_fl.testing import check_mechanism


@lru_cache
def words(size: int) -> Vocabulary:
    rows = torch.randn(size, 3, generator=torch.Generator().manual_seed(0))
    return Vocabulary([f"w{i}" for i in range(size)], rows, blanks=0)


def follows(size: int) -> Tensor:
    return torch.randn(size, size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def bigram(size: int) -> NextWord:
    """A model that looks at the last word and, a little, at how many there are."""
    table = follows(size)

    def next_word(prefix: Sequence[int]) -> Tensor:
        return table[prefix[-1]] - 0.1 * len(prefix) * table[0] if prefix else torch.zeros(size)

    return next_word


def contextual(size: int, epsilon: float, neighbours: int, weight: float = 1.0) -> Contextual:
    return Contextual(
        words(size), epsilon=epsilon, neighbours=neighbours, next_word=bigram(size), model="bigram", weight=weight
    )


@pytest.mark.parametrize(("epsilon", "neighbours"), [(0.5, 1), (2.0, 4), (12.0, 100)])
def test_it_passes_the_kit(epsilon: float, neighbours: int) -> None:
    check_mechanism(lambda v: Contextual(v, epsilon=epsilon, neighbours=neighbours))


def test_with_a_model_it_passes_the_kit() -> None:
    check_mechanism(lambda v: Contextual(v, epsilon=2.0, neighbours=3, next_word=bigram(len(v)), model="bigram"))


def test_without_a_model_it_is_the_staircase() -> None:
    vocabulary, ids = words(20), torch.arange(20)
    plain = Staircase(vocabulary, epsilon=2.0, neighbours=3)
    mechanism = Contextual(vocabulary, epsilon=2.0, neighbours=3)
    assert torch.equal(mechanism.log_prob(), plain.log_prob())
    assert torch.equal(mechanism.log_prob_given([1, 2]), plain.log_prob())
    assert mechanism.parameters == plain.parameters
    for seed in range(3):
        released = (m.perturb(ids, np.random.default_rng(seed)) for m in (mechanism, plain))
        assert torch.equal(*released)


@settings(max_examples=25)
@given(
    st.floats(1e-3, 20), st.integers(1, 30), st.lists(st.integers(0, 23), max_size=5), st.floats(0, 50)
)  # fmt: skip
def test_after_every_prefix_the_audit_returns_the_claim_and_sets_have_k_words(
    epsilon: float, k: int, prefix: list[int], weight: float
) -> None:
    mechanism = contextual(24, epsilon, k, weight)
    matrix = mechanism.log_prob_given(prefix)
    assert exact_epsilon(matrix) <= epsilon + 1e-9
    near = matrix > matrix.min()
    assert (near.sum(dim=1) == min(k, 23)).all()
    assert near.diagonal().all()
    torch.testing.assert_close(matrix.exp().sum(dim=1), torch.ones(24, dtype=torch.float64), rtol=0, atol=1e-12)


def test_context_chooses_among_the_nearest_and_a_weight_of_0_looks_at_nothing() -> None:
    vocabulary = words(40)
    mechanism, blind = contextual(40, 3.0, 3, weight=1.0), contextual(40, 3.0, 3, weight=0.0)
    sets = {}
    assert torch.equal(blind.log_prob_given([]), blind.log_prob_given([4, 5]))
    for prefix in ([], [4], [5], [5, 4]):
        matrix = mechanism.log_prob_given(prefix)
        sets[str(prefix)] = {tuple(row.nonzero()[:, 0].tolist()) for row in matrix > matrix.min()}
        candidates = torch.zeros(40, 40, dtype=torch.bool).scatter_(1, vocabulary.neighbours(12), True)
        assert candidates[matrix > matrix.min()].all(), "near words are among the 4k nearest"
    assert sets["[4]"] != sets["[5]"]


def test_a_document_is_drawn_from_the_stated_laws() -> None:
    """All documents of two words over a small vocabulary, against the product of the two stated rows."""
    size, draws = 5, 3_000
    mechanism, document = contextual(size, 1.5, 2), torch.tensor([3, 1])
    counts = np.zeros((size, size))
    generator = np.random.default_rng(0)
    for first, second in (mechanism.perturb(document, generator).tolist() for _ in range(draws)):
        counts[first, second] += 1
    expected = np.zeros((size, size))
    for first, second in itertools.product(range(size), repeat=2):
        after = mechanism.log_prob_given([first])[1, second]
        expected[first, second] = draws * math.exp(mechanism.log_prob_given([])[3, first] + after)
    assert stats.chisquare(counts.ravel(), expected.ravel()).pvalue > 1e-9


def document_law(mechanism: Contextual, document: tuple[int, ...]) -> Tensor:
    """The exact probability of every released document, flattened; a product over stated rows."""
    size = len(mechanism.vocabulary)
    law = torch.zeros((size,) * len(document), dtype=torch.float64)
    for released in itertools.product(range(size), repeat=len(document)):
        rows = (mechanism.log_prob_given(released[:i])[x, released[i]] for i, x in enumerate(document))
        law[released] = torch.stack(list(rows)).sum()
    return law.flatten()


def test_one_raw_word_changes_a_whole_document_by_no_more_than_epsilon() -> None:
    """The guarantee of a single word, over all released documents: what raw context would break."""
    mechanism = contextual(5, 2.0, 2)
    laws = torch.stack([document_law(mechanism, (x, 4, 2)) for x in range(5)])
    assert exact_epsilon(laws) == pytest.approx(2.0, abs=1e-9)


def test_a_document_is_worth_no_more_than_the_staircases_exact_pair() -> None:
    mechanism = contextual(6, 1.5, 2)
    laws = torch.stack([document_law(mechanism, pair) for pair in itertools.product(range(6), repeat=2)]).exp()
    for delta in (0.05, 0.2):
        composed = mechanism.compose(2, delta)
        assert composed.epsilon < 3.0
        worst = max(float((row - math.exp(composed.epsilon) * laws).clamp_min(0).sum(dim=1).max()) for row in laws)
        assert worst <= delta * (1 + 1e-9)


def test_documents_do_not_see_each_other() -> None:
    seen: list[int] = []

    def next_word(prefix: Sequence[int]) -> Tensor:
        seen.append(len(prefix))
        return torch.zeros(12)

    mechanism = Contextual(words(12), epsilon=1.0, neighbours=2, next_word=next_word, model="counts")
    out = mechanism.perturb_documents([torch.tensor([1, 2, 3]), torch.empty(0, dtype=torch.long), torch.tensor([4])])
    assert [len(document) for document in out] == [3, 0, 1]
    assert all(document.dtype == torch.long for document in out)
    assert seen == [0, 1, 2, 0]


def test_the_prefix_is_what_was_released() -> None:
    seen: list[list[int]] = []

    def next_word(prefix: Sequence[int]) -> Tensor:
        seen.append(list(prefix))
        return torch.zeros(12)

    mechanism = Contextual(words(12), epsilon=1e-3, neighbours=2, next_word=next_word, model="records")
    out = mechanism.perturb(torch.zeros(30, dtype=torch.long)).tolist()
    assert seen == [out[:i] for i in range(30)]
    assert len(set(out)) > 2, "hardly any of them are raw"


def test_there_is_no_matrix_with_a_model_and_the_parameters_name_it() -> None:
    mechanism = contextual(12, 2.0, 3)
    with pytest.raises(NotImplementedError, match="released before"):
        mechanism.log_prob()
    assert mechanism.parameters == "epsilon=2 neighbours=3 vocabulary=12 context=bigram weight=1.0"
    z = 3 * math.exp(2.0) + 9
    assert mechanism.kept_tokens == pytest.approx(math.exp(2.0) / z)


@pytest.mark.parametrize("scores", [torch.zeros(11), torch.zeros(12, 1), torch.full((12,), math.nan)])
def test_a_model_that_returns_something_else_is_an_error(scores: Tensor) -> None:
    mechanism = Contextual(words(12), epsilon=1.0, neighbours=2, next_word=lambda _: scores, model="wrong")
    with pytest.raises(ValueError, match="next_word"):
        mechanism.perturb(torch.tensor([1]))


@pytest.mark.parametrize(
    ("options", "setting"),
    [
        ({"next_word": lambda _: torch.zeros(12)}, "model is empty"),
        ({"weight": -1.0}, "parameters: weight"),
        ({"weight": math.nan}, "parameters: weight"),
    ],
)
def test_settings_are_checked(options: dict[str, object], setting: str) -> None:
    with pytest.raises(SettingError, match=setting):
        Contextual(words(12), epsilon=1.0, neighbours=2, **options)  # type: ignore[arg-type]
