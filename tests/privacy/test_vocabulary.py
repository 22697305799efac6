"""Every string becomes ids of the closed vocabulary, and neighbour sets are exact whatever the embeddings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pdss_fl.errors import SettingError
from pdss_fl.privacy import BLANK, Vocabulary

WORDS = ["thing", "dog", "puppy", "bake", "stop", "church", "can't", "für", "2026"]
ANY_TEXT = st.text(st.characters(exclude_categories=()))  # every code point, lone surrogates too


def vocabulary(words: list[str] = WORDS, embeddings: Tensor | None = None, **options: Any) -> Vocabulary:
    rows = torch.randn(len(words), 4, generator=torch.Generator().manual_seed(0))
    return Vocabulary(words, rows if embeddings is None else embeddings, **options)


@given(ANY_TEXT)
def test_any_string_encodes_to_ids_of_words(text: str) -> None:
    known = vocabulary()
    ids = known.encode(text)
    assert ids.dtype == torch.long
    assert ids.shape == (len(known.split(text)),)
    assert all(0 <= i < len(WORDS) for i in ids.tolist()), "no text becomes a filling word"


@given(ANY_TEXT)
def test_splitting_is_stable(text: str) -> None:
    words = Vocabulary.split(text)
    assert Vocabulary.split(" ".join(words)) == words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Does the DOG bark?!", ["does", "the", "dog", "bark"]),
        ("don’t 'quote' rock'n'roll dogs'", ["don't", "quote", "rock'n'roll", "dogs"]),
        ("snake_case well-known 3.5", ["snake", "case", "well", "known", "3", "5"]),
        ("हिन्दी ❤️ 日本語 Ｆｕｌｌ", ["हिन्दी", "日本語", "full"]),
        ("cafe\u0301", ["café"]),
        ("a\ud800b", ["a", "b"]),
        (" \n_ ''", []),
    ],
)
def test_the_public_rule_from_text_to_words(text: str, words: list[str]) -> None:
    assert Vocabulary.split(text) == words


@pytest.mark.parametrize(
    ("word", "becomes"),
    [
        ("dog", "dog"),
        ("hound", "dog"),  # an alias
        ("hounds", "dog"),
        ("dogs", "dog"),
        ("dog's", "dog"),
        ("puppies", "puppy"),
        ("churches", "church"),
        ("baked", "bake"),
        ("baking", "bake"),
        ("zanzibarqx", "thing"),
        ("日本語", "thing"),
        ("\ud800", "thing"),
        (BLANK, "thing"),
        ("", "thing"),
        ("s", "thing"),
    ],
)
def test_unknown_words_become_public_ones(word: str, becomes: str) -> None:
    known = vocabulary(aliases={"hound": "dog"})
    assert known.decode(known.word_ids([word])) == [becomes]


def test_a_chosen_fallback_takes_the_rest() -> None:
    known = vocabulary(fallback="dog")
    assert known.decode(known.encode("Zanzibarqx 日本語")) == ["dog", "dog"]


def test_blanks_fill_and_are_nearest_to_each_other() -> None:
    known = vocabulary(blanks=3)
    assert len(known) == len(known.tokens) == len(WORDS) + 3
    ids = known.blank_ids(5)
    assert known.decode(ids) == [BLANK] * 5
    near = known.neighbours(3)[ids[0]]
    assert sorted(near.tolist()) == [len(WORDS), len(WORDS) + 1, len(WORDS) + 2]


@pytest.mark.parametrize("ids", [torch.tensor([-1]), torch.tensor([99]), torch.tensor([0.0]), torch.tensor([[0]])])
def test_what_is_no_id_is_refused(ids: Tensor) -> None:
    with pytest.raises(ValueError, match="ids must be"):
        vocabulary().decode(ids)


@st.composite
def awkward_embeddings(draw: st.DrawFn) -> Tensor:
    """Rows out of a few values, so that equal rows, zero rows and opposite rows are common."""
    size, width = draw(st.integers(1, 12)), draw(st.integers(1, 3))
    cell = st.sampled_from([0.0, 1.0, -1.0, 0.5, 1e30, 1e-30])
    return torch.tensor(draw(st.lists(st.lists(cell, min_size=width, max_size=width), min_size=size, max_size=size)))


@given(awkward_embeddings(), st.integers(1, 20), st.integers(1, 4))
def test_every_word_has_exactly_k_different_neighbours_itself_first(rows: Tensor, k: int, blanks: int) -> None:
    known = vocabulary([f"w{i}" for i in range(len(rows))], rows, blanks=blanks)
    near = known.neighbours(k)
    assert near.shape == (len(known), min(k, len(known) - 1))
    assert near[:, 0].tolist() == list(range(len(known)))
    assert all(len(set(row)) == len(row) for row in near.tolist())
    assert int(near.min()) >= 0
    assert int(near.max()) < len(known)


def test_neighbours_are_those_of_the_centred_cosine() -> None:
    rows = torch.tensor([[10.0, 1.0], [10.0, 0.9], [10.0, -1.0], [10.0, -0.9]])  # a common offset hides the pairs
    assert vocabulary(["up", "upper", "down", "downer"], rows).neighbours(2)[:4].tolist() == [
        [0, 1], [1, 0], [2, 3], [3, 2],
    ]  # fmt: skip


def test_ties_go_to_the_lower_id_wherever_a_row_stands() -> None:
    """1,500 copies of four directions: several blocks, nothing but ties."""
    rows = torch.randn(4, 33, generator=torch.Generator().manual_seed(1)).repeat(1500, 1)
    near = vocabulary([f"w{i}" for i in range(6000)], rows).neighbours(4)
    assert near[5003].tolist() == [5003, 3, 7, 11]
    assert near[3].tolist() == [3, 7, 11, 15]


def test_neighbours_do_not_depend_on_the_number_of_threads() -> None:
    rows = torch.randn(700, 48, generator=torch.Generator().manual_seed(2))
    words = [f"w{i}" for i in range(700)]
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(vocabulary(words, rows).neighbours(5))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


def test_the_hash_names_everything_that_is_public() -> None:
    rows = torch.eye(len(WORDS))
    base = vocabulary(WORDS, rows)
    assert vocabulary(WORDS, rows.clone()).sha256 == base.sha256
    assert len(base.sha256) == 64
    others = [
        vocabulary(WORDS[::-1], rows),
        vocabulary(WORDS, torch.eye(len(WORDS)).roll(1, 0) + 0.1 * rows),
        vocabulary(WORDS, rows, aliases={"hound": "dog"}),
        vocabulary(WORDS, rows, fallback="dog"),
        vocabulary(WORDS, rows, blanks=9),
    ]
    assert len({base.sha256, *(other.sha256 for other in others)}) == 6


@pytest.mark.parametrize(
    ("words", "rows", "options", "names"),
    [
        ([], torch.zeros(0, 2), {}, "privacy.vocabulary"),
        (["dog", "dog"], torch.zeros(2, 2), {}, "'dog' stands there twice"),
        (["Dog"], torch.zeros(1, 2), {}, "'Dog'"),
        (["hot dog"], torch.zeros(1, 2), {}, "'hot dog'"),
        ([""], torch.zeros(1, 2), {}, "''"),
        ([BLANK], torch.zeros(1, 2), {}, "'_'"),
        (["dog"], torch.zeros(2, 2), {}, "privacy.embeddings"),
        (["dog"], torch.zeros(1), {}, "privacy.embeddings"),
        (["dog"], torch.tensor([[float("nan")]]), {}, "privacy.embeddings"),
        (["dog"], torch.tensor([[float("inf")]]), {}, "privacy.embeddings"),
        (["dog"], torch.zeros(1, 2), {"fallback": "cat"}, "'cat'"),
        (["dog"], torch.zeros(1, 2), {"aliases": {"hound": "cat"}}, "'cat'"),
        (["dog"], torch.zeros(1, 2), {"blanks": 0}, "at least 2 words"),
    ],
)
def test_what_is_no_vocabulary_is_refused(words: list[str], rows: Tensor, options: dict[str, Any], names: str) -> None:
    with pytest.raises(SettingError, match=names):
        vocabulary(words, rows, **options)


@settings(max_examples=25)
@given(st.floats(1e-30, 1e30))
def test_the_scale_of_the_embeddings_does_not_matter(scale: float) -> None:
    rows = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    words = [f"w{i}" for i in range(20)]
    assert torch.equal(vocabulary(words, rows * scale).neighbours(4), vocabulary(words, rows).neighbours(4))
