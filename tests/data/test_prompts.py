"""Of an example only question and choices are rendered, at public lengths."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdss_fl.data.example import Example
from pdss_fl.data.prompts import PromptShape, choice_order, public_labels, render
from pdss_fl.errors import DataError

ROBIN = Example(
    "What does a robin have?", ("feathers", "four wheels", "petals"), "feathers", "CONTEXT", "PERSON", "WHY"
)


def shape(length: str = "fixed", choices: int = 4, public: bool = False) -> PromptShape:
    return PromptShape(length, question_words=8, choice_words=2, choices=choices, public_choices=public)


def words_of(example: Example, public: PromptShape, seed: int = 0) -> list[str | None]:
    order = choice_order(example, public, random.Random(seed).shuffle)
    prompt = render(example, order, public, str.split)
    return [w for text in (prompt.question, *prompt.choices) for w in text]


def test_answer_context_person_and_rationale_have_no_way_in() -> None:
    changed = Example(ROBIN.question, ROBIN.choices, "petals", "other", "somebody", "because")
    assert words_of(ROBIN, shape()) == words_of(changed, shape())
    assert not {"CONTEXT", "PERSON", "WHY"} & set(words_of(ROBIN, shape()))


@given(st.integers(1, 20), st.integers(2, 6), st.integers(0, 9))
def test_fixed_length_tells_nothing(words: int, choices: int, seed: int) -> None:
    example = Example("w " * words, tuple(f"c{i} d e" for i in range(choices)), "c0 d e")
    assert len(words_of(example, shape(), seed)) == shape().tokens == 16


@given(st.integers(1, 20))
def test_buckets_are_powers_of_two_up_to_the_bound(words: int) -> None:
    example = Example("w " * words, ("a", "b"), "a")
    prompt = render(example, [0, 1], shape("bucket"), str.split)
    assert len(prompt.question) in (1, 2, 4, 8)
    assert len(prompt.question) >= min(words, 8)
    assert len(prompt.question) < 2 * words or words >= 8


def test_exact_length_is_told_and_truncation_is_counted() -> None:
    example = Example("one two three four five six seven eight nine ten", ("a b c", "d"), "d")
    prompt = render(example, [1, 0], shape("exact"), str.split)
    assert [len(c) for c in prompt.choices] == [1, 2]
    assert len(prompt.question) == 8
    assert prompt.truncated == 3


def test_content_words_are_sent_alone_and_the_rest_is_counted() -> None:
    public = PromptShape("fixed", question_words=3, choice_words=1, choices=3, words="content")
    prompt = render(ROBIN, [0, 1, 2], public, lambda text: text.lower().strip("?").split())
    assert prompt.question == ("robin", "have", None)
    assert prompt.choices == (("feathers",), ("wheels",), ("petals",))
    assert prompt.truncated == 4


def test_no_choice_is_sent_where_none_is_asked_for() -> None:
    public = PromptShape("fixed", 3, 1, 0, "content")
    assert render(ROBIN, choice_order(ROBIN, public, random.shuffle), public, str.split).choices == ()
    assert public.tokens == 3


def test_which_choices_are_sent_does_not_depend_on_the_answer() -> None:
    seen: dict[int | None, int] = {}
    for seed in range(600):
        order = choice_order(ROBIN, shape(choices=2), random.Random(seed).shuffle)
        assert len(order) == 2
        for index in order:
            seen[index] = seen.get(index, 0) + 1
    assert set(seen) == {0, 1, 2}
    assert min(seen.values()) > 340  # 400 expected of each, standard deviation 11.5


def test_missing_choices_are_filled_at_random_places() -> None:
    places = {choice_order(ROBIN, shape(), random.Random(seed).shuffle).index(None) for seed in range(80)}
    assert places == {0, 1, 2, 3}


def test_public_labels_are_sent_in_their_own_order_and_must_be_shared_by_all() -> None:
    yes_no = [Example("Is it?", ("yes", "no"), "yes"), Example("Was it?", ("no", "yes"), "no")]
    assert public_labels(yes_no) == ("no", "yes")
    assert render(yes_no[0], [0, 1], shape(public=True), str.split).choices == ()
    assert shape(public=True).tokens == 8
    with pytest.raises(DataError, match="public-choices"):
        public_labels([*yes_no, ROBIN])
