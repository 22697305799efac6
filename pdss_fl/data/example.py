"""One question of a client."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """A private question with its answer.

    Parameters
    ----------
    question : str
        Not empty.
    choices : tuple[str, ...]
        Empty for an open question, else at least two different texts.
    answer : str
        One of the choices, or free text for an open question.
    context : str | None (default: None)
        A passage that belongs to the question; it stays on the client.
    person : str | None (default: None)
        Whom the example is about, for the budget of the ledger; it stays on the client.
    rationale : str | None (default: None)
        A reference rationale that came with the data; never sent, and never given to a student
        unless an experiment says so.
    """

    question: str
    choices: tuple[str, ...]
    answer: str
    context: str | None = None
    person: str | None = None
    rationale: str | None = None

    @property
    def content_hash(self) -> str:
        """SHA-256 of what a perturbation reads (question and choices), in hexadecimal."""
        text = json.dumps([self.question, sorted(self.choices)], ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()
