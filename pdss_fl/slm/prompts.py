"""What the small model reads: one prompt per task, with a part that may be cut and parts that never are."""

from __future__ import annotations

from dataclasses import dataclass

from pdss_fl.data.example import Example


@dataclass(frozen=True)
class Prompt:
    """A prompt in three parts; ``str(prompt)`` is its text.

    Parameters
    ----------
    start : str
        Names the task; never cut.
    body : str
        The context, if any, then the question; cut from its beginning if the prompt is too long.
    end : str
        The choices, if any, and the cue to answer; never cut.
    """

    start: str
    body: str
    end: str

    def __str__(self) -> str:
        return f"{self.start} {self.body} {self.end}"


def label_prompt(example: Example) -> Prompt:
    """Return ``predict: {context} {question} choices: {a ; b ; c} answer:``; the target is the answer."""
    return _prompt("predict:", example, "answer:")


def rationale_prompt(example: Example) -> Prompt:
    """Return ``explain: {context} {question} choices: {a ; b ; c} rationale:``; it asks for the reasoning."""
    return _prompt("explain:", example, "rationale:")


TEMPLATE_WORDS = "predict: explain: choices: a ; b answer: rationale: So the answer is."
"""What the prompts and the last sentence of a rationale add to the words of the data."""


def _prompt(start: str, example: Example, cue: str) -> Prompt:
    body = f"{example.context} {example.question}" if example.context else example.question
    choices = f"choices: {' ; '.join(example.choices)} " if example.choices else ""
    return Prompt(start, body, choices + cue)
