"""What the LLM is told before a prompt: the task in words, a few demonstrations, and nothing private.

An instruction is public and the same for every prompt, so its keys and values are computed once
(``pdss_fl.llm.decode``). The only fields that a prompt can fill are its question and its choices.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdss_fl.errors import SettingError
from pdss_fl.messages import PerturbedPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILLER = "_"
"""The word with which clients fill a prompt up to its public length; it is taken out before rendering."""


@dataclass(frozen=True)
class Demonstration:
    """A public question, its choices (none for an open question) and the rationale to imitate."""

    question: str
    choices: tuple[str, ...]
    rationale: str


@dataclass(frozen=True)
class Instruction:
    """The task in words and the demonstrations that every prompt follows.

    Parameters
    ----------
    system : str
        What to do, in words; part of the first user turn, since some chat templates know no system role.
    demonstrations : tuple[Demonstration, ...]
        Public examples in the order in which they are shown.
    """

    system: str
    demonstrations: tuple[Demonstration, ...]

    def render(self, tokenizer: PreTrainedTokenizerBase, prompt: PerturbedPrompt) -> str:
        """Return the text that the LLM continues with the rationale of one prompt.

        Parameters
        ----------
        tokenizer : PreTrainedTokenizerBase
            With a chat template, the demonstrations become turns of a conversation; without one,
            the text is a plain few-shot prompt.
        prompt : PerturbedPrompt
            Filling words and repeated white space are taken out of its fields.

        Returns
        -------
        str
            Special tokens included where the tokenizer has a chat template, else left to it.
        """
        if tokenizer.chat_template is None:
            return self.plain(prompt)
        # Templates of models that can think aloud read enable_thinking; others ignore it.
        text = tokenizer.apply_chat_template(
            self.messages(prompt), tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return str(text)

    def plain(self, prompt: PerturbedPrompt) -> str:
        """Return one prompt as a plain few-shot text, for an LLM without a chat template."""
        shown = "".join(f"{_ask(d.question, d.choices)}\nRationale: {d.rationale}\n\n" for d in self.demonstrations)
        return f"{self.system}\n\n{shown}{_ask(prompt.question, prompt.choices)}\nRationale:"

    def messages(self, prompt: PerturbedPrompt) -> list[dict[str, str]]:
        """Return one prompt as the turns of a conversation (``role`` and ``content``), the user's last."""
        questions = [_ask(d.question, d.choices) for d in self.demonstrations]
        questions.append(_ask(prompt.question, prompt.choices))
        questions[0] = f"{self.system}\n\n{questions[0]}"
        turns = [{"role": "user", "content": questions[0]}]
        for shown, question in zip(self.demonstrations, questions[1:], strict=True):
            turns.append({"role": "assistant", "content": shown.rationale})
            turns.append({"role": "user", "content": question})
        return turns


def _ask(question: str, choices: tuple[str, ...]) -> str:
    text = f"Question: {_words(question)}"
    said = [words for choice in choices if (words := _words(choice))]  # a choice of filling words is none
    return f"{text}\nChoices: {'; '.join(said)}" if said else text


def _words(text: str) -> str:
    return " ".join(word for word in text.split() if word != FILLER)


EVERYDAY = Instruction(
    system=(
        "Answer each question with one of its choices. Write three short sentences: what kind of thing the "
        "question is about, what is true of that kind, and 'So the answer is' with the choice. Some words "
        "may have been replaced by others; answer all the same, in the same form, with one of the choices."
    ),
    demonstrations=(
        Demonstration(
            "a parrot has which of these",
            ("branches", "fur", "fins", "feathers"),
            "A parrot is a bird. Birds have feathers. So the answer is feathers.",
        ),
        Demonstration(
            "where would you find a doughnut",
            ("bakery", "forest", "body", "toolbox"),
            "A doughnut is a dessert. A bakery sells desserts. So the answer is bakery.",
        ),
        Demonstration(
            "what does a koala need",
            ("electricity", "food", "treatment", "players"),
            "A koala is a mammal. Mammals need food every day. So the answer is food.",
        ),
        Demonstration(
            "what is a sailboat used for",
            ("transport", "clothing", "flavor", "music"),
            "A sailboat is a boat. Boats are used for transport. So the answer is transport.",
        ),
    ),
)
"""For any LLM: everyday things, in the form "X is a kind. Kinds have Y. So the answer is Y."."""

ADAPTED = Instruction(
    system=(
        "Say what kind of thing it is, what is true of that kind, and which choice is right. "
        "Some words may have been replaced."
    ),
    demonstrations=(),
)
"""For the bundled LLM with its built-in adapter, which was trained with it and needs no demonstrations."""


def load_instruction(path: str) -> Instruction:
    """Read an instruction from a JSON file.

    The file holds an object with ``system`` (text) and ``demonstrations`` (a list of objects with
    ``question``, ``choices``, a list of texts that may be empty, and ``rationale``), and no other field.

    Raises
    ------
    SettingError
        If the file cannot be read, is not JSON, or has a field that is missing, unknown or of
        another type; the message names ``llm.instruction``.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _refusal(path, "no such file") from None
    except (OSError, ValueError) as error:
        raise _refusal(path, f"cannot be read as JSON ({type(error).__name__})") from None
    try:
        _check_fields(content, Instruction, "the file")
        return Instruction(
            _text(content["system"], "system"),
            tuple(_demonstration(d) for d in _list(content["demonstrations"], "demonstrations")),
        )
    except ValueError as error:
        raise _refusal(path, str(error)) from None


def _refusal(path: str, problem: str) -> SettingError:
    return SettingError(
        f"llm.instruction = {path!r}: {problem}; give a JSON file with 'system' and 'demonstrations', "
        "each with 'question', 'choices' and 'rationale'"
    )


def _demonstration(content: Any) -> Demonstration:
    _check_fields(content, Demonstration, "a demonstration")
    return Demonstration(
        _text(content["question"], "question"),
        tuple(_text(choice, "choices") for choice in _list(content["choices"], "choices")),
        _text(content["rationale"], "rationale"),
    )


def _check_fields(content: Any, kind: type[Instruction] | type[Demonstration], where: str) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"{where} is not an object")
    expected = {field.name for field in fields(kind)}
    if unknown := sorted(content.keys() - expected):
        raise ValueError(f"{where} has the unknown field {unknown[0]!r}")
    if missing := sorted(expected - content.keys()):
        raise ValueError(f"{where} lacks the field {missing[0]!r}")


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{field!r} must be a text that is not empty")
    return value


def _list(value: Any, field: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{field!r} must be a list")
    return value
