"""Alignment of a rationale with the private prompt."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdss_fl.slm.alignment import FUNCTION_WORDS, align

WORD = st.text("bcdfgklmnprtv", min_size=3, max_size=6)
WORDS = st.lists(WORD, min_size=1, max_size=12)


@given(st.text())
def test_without_pairs_nothing_changes(rationale: str) -> None:
    assert align(rationale, []) == rationale


@given(st.text(), WORDS)
def test_pairs_of_equal_words_change_nothing(rationale: str, words: list[str]) -> None:
    assert align(rationale, [(word, word) for word in words]) == rationale


@given(WORDS, st.dictionaries(WORD, WORD, max_size=6))
def test_all_words_are_substituted_at_once_and_others_stay(text: list[str], table: dict[str, str]) -> None:
    expected = [table.get(word, word) for word in text]
    assert align(" ".join(text), list(table.items())) == " ".join(expected)


@given(st.text(), st.lists(st.tuples(st.text(), st.text()), max_size=6))
def test_any_text_can_be_aligned(rationale: str, pairs: list[tuple[str, str]]) -> None:
    aligned = align(rationale, pairs)
    repeated = {released.casefold() for released, _ in pairs}
    stems = {word.casefold().rstrip("s") for word in re.findall(r"\w+", rationale)}
    if not any(word and word[:2] == stem[:2] for word in repeated for stem in stems):
        assert aligned == rationale


@pytest.mark.parametrize(
    ("rationale", "pairs", "expected"),
    [
        ("A sparrow is a bird.", [("sparrow", "owl")], "An owl is a bird."),
        ("It is an owl", [("owl", "sparrow")], "It is a sparrow"),
        ("Dogs bark; the dog's bowl.", [("dog", "cat")], "Cats bark; the cat's bowl."),
        ("a dog and two foxes", [("dogs", "berries"), ("fox", "pony")], "a berry and two ponies"),
        ("A dog, DOG", [("dog", "Rex")], "A Rex, Rex"),
        ("hotdog dogma dog-like", [("dog", "cat")], "hotdog dogma cat-like"),
        ("don't stop", [("don't", "never"), ("don", "x")], "never stop"),
        ("b a c", [("b", "c"), ("c", "d")], "c a d"),
        ("glass gas bus", [("glas", "x"), ("ga", "y"), ("bu", "z")], "glass ys zes"),
    ],
)
def test_forms_of_words(rationale: str, pairs: list[tuple[str, str]], expected: str) -> None:
    assert align(rationale, pairs) == expected


def test_a_word_released_for_several_becomes_the_most_frequent_then_the_first() -> None:
    assert align("dog", [("dog", "cat"), ("dog", "cow"), ("Dog", "cow")]) == "cow"
    assert align("dog", [("dog", "cat"), ("dog", "cow")]) == "cat"


def test_a_word_that_also_stands_unchanged_stays_unless_it_is_outvoted() -> None:
    assert align("dog dogs", [("dog", "cat"), ("dog", "dog")]) == "dog dogs"
    assert align("dog dogs", [("dog", "cat"), ("dog", "dog"), ("dog", "cat")]) == "cat cats"


def test_words_of_grammar_are_neither_replaced_nor_put_back() -> None:
    assert {"the", "is", "what"} <= FUNCTION_WORDS
    pairs = [("the", "robin"), ("bird", "what"), ("bird", "robin"), ("is", "")]
    assert align("the bird is here", pairs) == "the robin is here"
