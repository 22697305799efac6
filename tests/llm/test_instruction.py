"""Rendering of prompts, and instructions read from a file."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from pdss_fl.errors import SettingError
from pdss_fl.llm.instruction import EVERYDAY, Demonstration, Instruction, load_instruction
from pdss_fl.messages import PerturbedPrompt
from tests.llm.helpers import make_tokenizer

SMALL = Instruction("Explain.", (Demonstration("what is ice", ("cold", "hot"), "Ice is cold."),))
PROMPT = PerturbedPrompt(17, "what is _ fire _", ("hot _", "cold"))


def test_plain_text_without_a_chat_template() -> None:
    assert SMALL.render(make_tokenizer(), PROMPT) == (
        "Explain.\n\n"
        "Question: what is ice\nChoices: cold; hot\nRationale: Ice is cold.\n\n"
        "Question: what is fire\nChoices: hot; cold\nRationale:"
    )


def test_turns_with_a_chat_template() -> None:
    assert SMALL.render(make_tokenizer(chat=True), PROMPT) == (
        "<turn>user\nExplain.\n\nQuestion: what is ice\nChoices: cold; hot<end>"
        "<turn>assistant\nIce is cold.<end>"
        "<turn>user\nQuestion: what is fire\nChoices: hot; cold<end>"
        "<turn>assistant\n"
    )


@pytest.mark.parametrize("chat", [False, True])
def test_no_demonstrations_and_no_choices(chat: bool) -> None:
    text = Instruction("Explain.", ()).render(make_tokenizer(chat), PerturbedPrompt(0, "why is fire hot"))
    assert "Explain.\n\nQuestion: why is fire hot" in text
    assert "Choices" not in text


def test_only_question_and_choices_can_reach_the_text() -> None:
    assert {f.name for f in fields(PerturbedPrompt)} == {"ordinal", "question", "choices"}
    assert "17" not in SMALL.render(make_tokenizer(), PROMPT)


def test_the_built_in_demonstrations_have_the_form_they_ask_for() -> None:
    assert len(EVERYDAY.demonstrations) == 4
    for shown in EVERYDAY.demonstrations:
        kind, fact, answer = shown.rationale.rstrip(".").split(". ")
        assert kind.startswith("A ")
        assert answer.removeprefix("So the answer is ") in shown.choices
        assert answer.removeprefix("So the answer is ") in fact


def write(path: Path, content: Any) -> str:
    file = path / "instruction.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(file)


SHOWN = {"question": "what is ice", "choices": ["cold", "hot"], "rationale": "Ice is cold."}


def test_reads_a_file(tmp_path: Path) -> None:
    assert load_instruction(write(tmp_path, {"system": "Explain.", "demonstrations": [SHOWN]})) == SMALL


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "cannot be read as JSON"),
        ([], "the file is not an object"),
        ({"system": "Explain."}, "lacks the field 'demonstrations'"),
        ({"system": "Explain.", "demonstrations": [], "answer": 1}, "unknown field 'answer'"),
        ({"system": " ", "demonstrations": []}, "'system' must be a text"),
        ({"system": "Explain.", "demonstrations": {}}, "'demonstrations' must be a list"),
        ({"system": "Explain.", "demonstrations": [SHOWN | {"label": "cold"}]}, "unknown field 'label'"),
        ({"system": "Explain.", "demonstrations": [SHOWN | {"choices": [1]}]}, "'choices' must be a text"),
        ({"system": "Explain.", "demonstrations": ["ice"]}, "a demonstration is not an object"),
    ],
)
def test_refuses_other_files_and_names_the_setting(tmp_path: Path, content: Any, problem: str) -> None:
    with pytest.raises(SettingError, match=problem) as caught:
        load_instruction(write(tmp_path, content))
    assert caught.value.public.startswith("llm.instruction = ")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"llm\.instruction = .*: no such file; give a JSON file"):
        load_instruction(str(tmp_path / "none.json"))
