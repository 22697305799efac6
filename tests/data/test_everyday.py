"""Every question of the built-in set is checked against its facts; what is true was read, not tested."""

import os
import re
import subprocess
import sys
from collections import Counter

import pytest

from pdss_fl.data.everyday import Fact, facts, private_examples, public_examples, words
from pdss_fl.data.everyday_facts import KINDS
from pdss_fl.data.example import Example

SPLITS = {"public": public_examples, "private": private_examples}


def asked_and_written() -> list[tuple[Fact, Example]]:
    return [pair for split in ("public", "private") for pair in zip(facts(split), SPLITS[split](), strict=True)]


def rationale_of(example: Example) -> str:
    assert example.rationale is not None
    return example.rationale


def test_the_set_is_as_large_as_promised() -> None:
    public, private = facts("public"), facts("private")
    assert 90 <= len({fact.thing for fact in public}) <= 110
    assert len({fact.thing for fact in private}) >= 300
    assert len(private) >= 1800
    assert 30 <= len(KINDS) <= 40
    assert all(8 <= len((kind.things + " " + kind.mass).split()) <= 14 for kind in KINDS)
    assert all(4 <= len(kind.properties) <= 6 for kind in KINDS)


def test_the_splits_share_no_thing_and_both_know_every_kind() -> None:
    public, private = facts("public"), facts("private")
    assert not {fact.thing for fact in public} & {fact.thing for fact in private}
    assert {fact.kind for fact in public} == {fact.kind for fact in private} == {kind.name for kind in KINDS}


def test_a_thing_has_one_meaning() -> None:
    things = " ".join(f"{kind.things} {kind.mass}" for kind in KINDS).split()
    names = {kind.name for kind in KINDS} | {p.value for kind in KINDS for p in kind.properties}
    assert len(things) == len(set(things))
    assert not set(things) & names


def test_what_is_also_true_is_a_value_of_the_same_relation() -> None:
    values = {"kind": {kind.name for kind in KINDS}}
    for kind in KINDS:
        for p in kind.properties:
            values.setdefault(p.relation, set()).add(p.value)
    for kind in KINDS:
        own = [("kind", kind.name, kind.also), *((p.relation, p.value, p.also) for p in kind.properties)]
        assert len({relation for relation, _, _ in own}) == len(own)
        for relation, value, also in own:
            assert set(also.split()) <= values[relation] - {value}
            assert len(also.split()) == len(set(also.split()))


def test_the_right_choice_is_true_and_no_wrong_one_is() -> None:
    for fact, example in asked_and_written():
        assert example.answer == fact.value
        assert fact.value in example.choices
        assert len(set(example.choices)) == len(example.choices) == 4
        assert not set(example.choices) & fact.others
        assert re.search(rf"\b{fact.thing}\b", example.question, re.IGNORECASE)


def test_wrong_choices_are_values_of_the_relation() -> None:
    values: dict[str, set[str]] = {}
    for fact, _ in asked_and_written():
        values.setdefault(fact.relation, set()).add(fact.value)
    for fact, example in asked_and_written():
        assert set(example.choices) <= values[fact.relation]


def test_questions_are_unique_and_carry_no_person() -> None:
    examples = public_examples() + private_examples()
    assert len({example.question for example in examples}) == len(examples)
    assert len({example.release_key for example in examples}) == len(examples)
    assert all(example.person is None and example.context is None for example in examples)


@pytest.mark.parametrize("split", SPLITS)
def test_the_place_of_the_answer_gives_no_hint(split: str) -> None:
    places = Counter(example.choices.index(example.answer) for example in SPLITS[split]())
    share = [places[i] / places.total() for i in range(4)]
    assert share == pytest.approx([0.25] * 4, abs=0.04)


@pytest.mark.parametrize("split", SPLITS)
def test_the_most_frequent_answer_among_the_choices_is_seldom_right(split: str) -> None:
    examples = SPLITS[split]()
    answers = Counter(example.answer for example in examples)
    right = 0.0
    for example in examples:
        most = max(answers[choice] for choice in example.choices)
        best = [choice for choice in example.choices if answers[choice] == most]
        right += (example.answer in best) / len(best)
    assert right / len(examples) < 0.30


def test_english_is_in_order() -> None:
    nouns = {thing for kind in KINDS for thing in kind.things.split()}
    for fact, example in asked_and_written():
        for text in (example.question, rationale_of(example)):
            assert re.fullmatch(r"[A-Z][A-Za-z,. ?]*[.?]", text)
            assert "  " not in text
            assert all((a.lower() == "an") == (b in "aeiou") for a, b in re.findall(r"\b(an?) (\w)", text, re.I))
        assert example.question.endswith("?")
        article = re.search(rf"\ban? {fact.thing}\b", example.question, re.IGNORECASE)
        assert (article is not None) == (fact.thing in nouns)


def test_a_rationale_names_the_thing_its_kind_and_the_answer() -> None:
    for fact, example in asked_and_written():
        first, *middle, last = rationale_of(example).rstrip(".").split(". ")
        assert fact.thing in first.lower()
        assert last == f"So the answer is {example.answer}"
        if fact.relation == "kind":
            assert not middle
        else:
            assert re.search(rf"\bis (an? )?{fact.kind}$", first)
            assert len(middle) == 1
            assert re.search(rf"\b{fact.value}\b", middle[0])


def test_the_vocabulary_holds_every_word_and_is_small() -> None:
    used: set[str] = set()
    for example in public_examples() + private_examples():
        text = " ".join([example.question, *example.choices, rationale_of(example)])
        used |= set(re.findall(r"[a-z]+", text.lower()))
    assert used <= set(words())
    assert len(words()) <= 1000
    assert list(words()) == sorted(set(words()))
    assert len(set(words()) - used) <= 3


def test_every_process_makes_the_same_set() -> None:
    code = (
        "import hashlib; from pdss_fl.data.everyday import private_examples, public_examples, words;"
        "print(hashlib.sha256(repr((public_examples(), private_examples(), words())).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_a_known_fact_is_told_as_expected() -> None:
    told = {
        example.rationale
        for fact, example in asked_and_written()
        if fact.thing == "robin" and fact.relation in ("part", "kind")
    }
    assert told == {
        "A robin is a bird. Birds have feathers. So the answer is feathers.",
        "A robin has feathers and can fly, like other birds. So the answer is bird.",
    }
