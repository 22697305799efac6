"""Every string becomes ids of the vocabulary, and every nearest set has exactly its members."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pdss_fl.errors import SettingError
from pdss_fl.privacy import BLANK, Vocabulary

ENGLISH = Vocabulary(
    ["robin", "berry", "box", "bake", "walk", "thing"],
    torch.eye(6),
    aliases={"doctor": "walk"},
    fallback="thing",
)


@given(st.text(st.characters(), max_size=60))
def test_every_string_is_encoded_inside_the_vocabulary(text: str) -> None:
    ids = ENGLISH.encode(text)
    assert ids.dtype == torch.long
    assert len(ids) == len(ENGLISH.split(text))
    assert all(0 <= i < ENGLISH.words for i in ids.tolist())


def test_lone_surrogates_and_foreign_scripts_are_encoded() -> None:
    assert ENGLISH.decode(ENGLISH.encode("\ud800 日本語 4471 Müller")) == ["thing"] * 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Robin!", ["robin"]),
        ("robins' berries", ["robin", "berry"]),
        ("a robin's boxes", ["thing", "robin", "box"]),
        ("baking, baked; walked", ["bake", "bake", "walk"]),
        ("Doctor", ["walk"]),
        ("well-known", ["thing", "thing"]),
        ("...", []),
    ],
)
def test_the_public_rule_from_text_to_words(text: str, expected: list[str]) -> None:
    assert ENGLISH.decode(ENGLISH.encode(text)) == expected


def embeddings(draw: st.DrawFn) -> torch.Tensor:
    rows = draw(st.lists(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=3, max_size=3), min_size=2, max_size=12))
    return torch.tensor(rows)


@settings(max_examples=60)
@given(st.composite(embeddings)(), st.integers(0, 4), st.data())
def test_nearest_sets_are_whole_also_with_equal_and_zero_embeddings(
    rows: torch.Tensor, blanks: int, data: st.DataObject
) -> None:
    vocabulary = Vocabulary([f"w{i}" for i in range(len(rows))], rows, blanks=blanks)
    k = data.draw(st.integers(1, len(vocabulary) - 1))
    near = vocabulary.neighbours(k)
    assert near.shape == (len(vocabulary), k)
    assert near[:, 0].tolist() == list(range(len(vocabulary)))
    assert all(len(set(row)) == k for row in near.tolist())


def test_neighbours_are_the_nearest_by_centred_cosine() -> None:
    rows = torch.tensor([[0.0, 1.0], [0.1, 1.0], [5.0, 0.0], [5.0, 0.2]])
    near = Vocabulary(["a", "b", "c", "d"], rows, blanks=0).neighbours(2)
    assert near.tolist() == [[0, 1], [1, 0], [2, 3], [3, 2]]


def test_filling_words_are_nearest_to_each_other_and_read_alike(vocabulary: Vocabulary) -> None:
    near = vocabulary.neighbours(5)
    assert (near[vocabulary.words :] >= vocabulary.words).all()
    assert (near[: vocabulary.words] < vocabulary.words).all()
    assert vocabulary.decode(vocabulary.blank_ids(3)) == [BLANK] * 3


def test_the_hash_depends_on_everything_that_decides_a_release() -> None:
    tokens, rows = ["a", "b", "c"], torch.eye(3)
    hashes = {
        Vocabulary(tokens, rows).sha256,
        Vocabulary(["a", "b", "d"], rows).sha256,
        Vocabulary(tokens, rows.flip(0) + torch.rand(3, 3, generator=torch.Generator().manual_seed(1))).sha256,
        Vocabulary(tokens, rows, aliases={"x": "a"}).sha256,
        Vocabulary(tokens, rows, fallback="b").sha256,
        Vocabulary(tokens, rows, blanks=3).sha256,
    }
    assert len(hashes) == 6
    assert Vocabulary(tokens, rows).sha256 in hashes


@pytest.mark.parametrize(
    ("tokens", "rows", "options"),
    [
        ([], torch.empty(0, 2), {}),
        (["a", "a"], torch.eye(2), {}),
        (["a", "B"], torch.eye(2), {}),
        (["a", ""], torch.eye(2), {}),
        (["a", "_"], torch.eye(2), {}),
        (["a", "b"], torch.eye(3), {}),
        (["a", "b"], torch.tensor([[1.0], [float("nan")]]), {}),
        (["a", "b"], torch.eye(2), {"fallback": "c"}),
        (["a", "b"], torch.eye(2), {"aliases": {"x": "c"}}),
    ],
)
def test_a_vocabulary_that_cannot_be_closed_is_refused(
    tokens: list[str], rows: torch.Tensor, options: dict[str, object]
) -> None:
    with pytest.raises(SettingError, match="vocabulary"):
        Vocabulary(tokens, rows, **options)  # type: ignore[arg-type]
