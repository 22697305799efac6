"""Which words of a text are sent when each one costs privacy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdss_fl.data.content import content_words
from pdss_fl.data.everyday import facts, private_examples
from pdss_fl.privacy.grammar import FUNCTION_WORDS


@pytest.mark.parametrize(
    ("text", "bound", "kept"),
    [
        ("what does a robin have", 3, "robin have"),
        ("where would you find a robin", 3, "where find robin"),
        ("where would you find a robin", 2, "find robin"),
        ("which group does a robin belong to", 3, "group robin belong"),
        ("is it what it is", 3, "it what it"),
        ("zyxomma", 1, "zyxomma"),
        ("", 3, ""),
    ],
)
def test_the_rarest_words_stay_in_their_order(text: str, bound: int, kept: str) -> None:
    assert content_words(text.split(), bound) == kept.split()


def test_an_unknown_word_is_the_rarest() -> None:
    assert content_words(["does", "an", "armadillo", "eat", "a", "qxzvolian"], 1) == ["qxzvolian"]


WORDS = st.lists(st.sampled_from(["a", "the", "where", "robin", "feathers", "tree", "qxz"]), max_size=12)


@given(WORDS, st.integers(1, 12))
def test_what_is_kept_is_part_of_the_text_and_within_the_bound(words: list[str], bound: int) -> None:
    kept = content_words(words, bound)
    assert len(kept) <= bound
    rest = iter(words)
    assert all(word in rest for word in kept)  # a subsequence
    if set(words) - FUNCTION_WORDS:
        assert not {"a", "the"} & set(kept)


def test_two_words_always_name_what_a_built_in_question_is_about() -> None:
    for fact, example in zip(facts("private"), private_examples(), strict=True):
        words = example.question.lower().strip("?").split()
        assert fact.thing in content_words(words, 2)
