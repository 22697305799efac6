"""Rationales that the client's others outvote are left out."""

from __future__ import annotations

import pytest

from pdss_fl.data.example import Example
from pdss_fl.slm.consensus import agreeing
from pdss_fl.slm.decoder import keep_rationales

HAVE = Example("What does a robin have?", ("feathers", "fins", "wheels"), "feathers")
FIND = Example("Where would you find a robin?", ("nest", "sea", "garage"), "nest")
KIND = Example("What is a robin?", ("bird", "fish", "car"), "bird")
COD = Example("What does a cod have?", ("feathers", "fins", "wheels"), "fins")

BIRD = "A robin is a bird. Birds have feathers. So the answer is feathers."
NEST = "A robin is a bird. Birds live in a nest. So the answer is sea."
FISH = "A robin is a fish. Fish have fins. So the answer is fins."


def test_the_majority_about_one_thing_wins_and_other_things_do_not_matter() -> None:
    cod = "A cod is a fish. Fish have fins. So the answer is fins."
    assert agreeing([BIRD, NEST, FISH, cod], [HAVE, FIND, HAVE, COD]) == [True, True, False, True]


def test_a_right_answer_counts_double() -> None:
    assert agreeing([BIRD, FISH], [HAVE, HAVE]) == [True, False]
    assert agreeing([NEST, FISH], [FIND, HAVE]) == [True, True]  # a tie: neither is outvoted


def test_claims_agree_in_their_words_singular_or_plural() -> None:
    clue = "A robin lays eggs, like other birds. So the answer is bird."
    assert agreeing([BIRD, clue, FISH], [HAVE, KIND, FIND]) == [True, True, False]


@pytest.mark.parametrize("text", ["", "Birds have feathers.", "A penguin is a bird."])
def test_what_claims_nothing_of_its_question_is_not_outvoted(text: str) -> None:
    assert agreeing([BIRD, NEST, text], [HAVE, FIND, HAVE]) == [True, True, True]


def test_the_filter_leaves_out_what_is_outvoted_and_corrects_the_rest() -> None:
    kept = keep_rationales([BIRD, NEST, FISH], [HAVE, FIND, HAVE], "agree", 40)
    assert kept == [BIRD, "A robin is a bird. Birds live in a nest. So the answer is nest.", None]
    assert keep_rationales([BIRD, NEST], [HAVE, FIND], "drop", 40) == [BIRD, None]
