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
    entity : str | None (default: None)
        What the example is about, for dividing data among simulated clients; it stays on the client.
    """

    question: str
    choices: tuple[str, ...]
    answer: str
    context: str | None = None
    person: str | None = None
    rationale: str | None = None
    entity: str | None = None

    @property
    def release_key(self) -> str:
        """SHA-256 of what a release is about (question, choices, person), in hexadecimal.

        Examples that share it are sent once; the same text about two persons is two releases, each charged to
        its person and perturbed by itself.
        """
        return _sha256(self.question, self.choices, self.person)

    @property
    def key(self) -> str:
        """SHA-256 of the whole example, in hexadecimal; names its rationale on the client."""
        return _sha256(self.question, self.choices, self.person, self.answer, self.context)


def _sha256(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
