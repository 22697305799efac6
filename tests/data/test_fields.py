"""Columns of common data sets become examples; what an answer column means is stated or plain."""

from __future__ import annotations

from typing import Any

import pytest

from pdss_fl.data.example import Example
from pdss_fl.data.fields import parse_fields, to_example
from pdss_fl.errors import DataError, SettingError

ROBIN = Example("What has feathers?", ("a robin", "a car"), "a robin")
TEXTS = ["a robin", "a car"]


@pytest.mark.parametrize(
    ("mapping", "answers", "record"),
    [
        ("", "auto", {"question": ROBIN.question, "choices": TEXTS, "answer": "a robin"}),
        ("", "auto", {"question": ROBIN.question, "choices": TEXTS, "answer": "A"}),
        ("", "letter", {"question": ROBIN.question, "choices": TEXTS, "answer": "a"}),
        ("answer=label", "index", {"question": ROBIN.question, "choices": TEXTS, "label": 0}),
        ("answer=label", "index", {"question": ROBIN.question, "choices": TEXTS, "label": "0"}),
        ("answer=label", "index1", {"question": ROBIN.question, "choices": TEXTS, "label": 1}),
        (  # ARC, OpenBookQA and CommonsenseQA as Hugging Face has them
            "choices=choices.text labels=choices.label answer=answerKey",
            "auto",
            {"question": ROBIN.question, "choices": {"text": TEXTS, "label": ["1", "2"]}, "answerKey": "1"},
        ),
        (  # CommonsenseQA as its authors publish it
            "question=question.stem choices=question.choices.text labels=question.choices.label answer=answerKey",
            "auto",
            {
                "question": {
                    "stem": ROBIN.question,
                    "choices": [{"label": "A", "text": "a robin"}, {"label": "B", "text": "a car"}],
                },
                "answerKey": "A",
            },
        ),
        (  # MedQA
            "choices=options answer=answer_idx",
            "auto",
            {"question": ROBIN.question, "options": {"A": "a robin", "B": "a car"}, "answer_idx": "A"},
        ),
        (
            "question='the stem' choices=one+two",
            "auto",
            {"the stem": ROBIN.question, "one": "a robin", "two": "a car", "answer": "a robin"},
        ),
        ("", "auto", {"question": ROBIN.question, "choices": "a robin|a car", "answer": "a robin"}),
        ("", "auto", {"question": ROBIN.question, "choices": '["a robin", "a car"]', "answer": "a robin"}),
    ],
)
def test_the_same_example_in_many_forms(mapping: str, answers: str, record: dict[str, Any]) -> None:
    assert to_example(record, parse_fields(mapping, answers)) == ROBIN


def test_truth_values_choose_yes_or_no_as_the_choices_write_them() -> None:
    names = parse_fields("")
    assert to_example({"question": "is it?", "answer": True}, names) == Example("is it?", ("yes", "no"), "yes")
    written = {"question": "is it?", "choices": ["False", "True"], "answer": "false"}
    assert to_example(written, parse_fields("", "boolean")).answer == "False"
    with pytest.raises(DataError, match="yes and no"):
        to_example({"question": "is it?", "choices": ["a", "b"], "answer": True}, names)


def test_columns_are_joined_and_names_may_be_numbers() -> None:
    record = {"premise": "It rains.", "question": "why?", "answer": "clouds", "id": 7, "topic": "sky"}
    example = to_example(record, parse_fields("question=premise+question person=id entity=topic"))
    assert (example.question, example.person, example.entity) == ("It rains. why?", "7", "sky")


def test_a_text_that_is_a_choice_is_not_taken_for_a_letter() -> None:
    record = {"question": "which blood type?", "choices": ["B", "A"], "answer": "A"}
    assert to_example(record, parse_fields("")).answer == "A"
    assert to_example(record, parse_fields("", "letter")).answer == "B"


@pytest.mark.parametrize(
    ("changes", "answers", "what"),
    [
        ({"answer": 1}, "auto", "`answer`"),
        ({"answer": "C"}, "auto", "names none"),
        ({"answer": "2"}, "index", "names none"),
        ({"answer": 0}, "index1", "names none"),
        ({"answer": -1}, "index", "names none"),
        ({"answer": "AB"}, "letter", "names none"),
        ({"question": 7}, "auto", "`question`"),
        ({"choices": [None, "a car"]}, "auto", "`choices`"),
        ({"choices": "[broken"}, "auto", "`choices`"),
        ({"answer": "perhaps"}, "boolean", "true or false"),
    ],
)
def test_what_cannot_be_read_is_named_by_its_part(changes: dict[str, Any], answers: str, what: str) -> None:
    with pytest.raises(DataError, match=what) as refusal:
        to_example({"question": "what?", "choices": TEXTS, "answer": "a car", **changes}, parse_fields("", answers))
    assert "robin" not in refusal.value.local


def test_labels_that_do_not_fit_the_choices_are_refused() -> None:
    record = {"question": "what?", "choices": TEXTS, "keys": ["A"], "answer": "A"}
    with pytest.raises(DataError, match="one label for each"):
        to_example(record, parse_fields("labels=keys"))


@pytest.mark.parametrize("text", ["question", "stem=question", "question=", "question=a question=b", "question='a"])
def test_a_mapping_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match=r"data\.fields"):
        parse_fields(text)
