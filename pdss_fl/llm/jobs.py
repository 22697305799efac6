"""Requests and the jobs that they consist of: who waits for which prompt, and what became of it."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TYPE_CHECKING

from pdss_fl.messages import Finish, Rationale

if TYPE_CHECKING:
    from pdss_fl.llm.writing import Written

GIVE_UP = 64
"""Prompts of a request that the LLM failed on, with none written, after which it counts as broken."""

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Request:
    """One request: where its answers go, and how many are missing."""

    tenant: str
    is_cancelled: Callable[[], bool]
    missing: int
    answers: SimpleQueue[Rationale | Exception | None] = field(default_factory=SimpleQueue)
    jobs: list[Job] = field(default_factory=list)
    over: bool = False
    failed: list[int] = field(default_factory=list)
    _why: str = ""
    _llm_works: bool = False

    def is_unwanted(self) -> bool:
        """Say whether the caller wants no more."""
        try:
            return self.is_cancelled()
        except Exception:  # the caller's own code; its request ends, the others go on
            return True

    def answer(self, ordinal: int, written: Written) -> None:
        """Hand out a rationale."""
        self.go_on()
        self.answers.put(Rationale(ordinal, *written))
        self.missing -= 1

    def go_on(self) -> None:
        """Take the LLM for working: the prompts that it failed on, and will fail on, get empty rationales."""
        if not self._llm_works:
            self._llm_works = True
            for failed in self.failed:
                self._put_empty(failed)

    def lose(self, ordinal: int, why: str) -> None:
        """Answer a prompt that the LLM failed on with an empty rationale, once it is known to work."""
        self.failed.append(ordinal)
        self._why = why
        self.missing -= 1
        if self._llm_works:
            self._put_empty(ordinal)

    @property
    def is_lost(self) -> bool:
        """Whether the LLM failed on all prompts, or on so many of them and no other was written, and may not work."""
        return not self._llm_works and bool(self.failed) and (not self.missing or len(self.failed) >= GIVE_UP)

    def warn(self) -> None:
        """Log how many prompts of a request that is answered have an empty rationale for the LLM's failure."""
        if self.failed:
            logger.warning("%d prompts of a request get an empty rationale: %s", len(self.failed), self._why)

    def _put_empty(self, ordinal: int) -> None:
        self.answers.put(Rationale(ordinal, "", Finish.LENGTH, 0))


@dataclass(eq=False)
class Job:
    """One prompt that is written once, for all ``waiters`` (a request and the prompt's ordinal in it)."""

    key: bytes
    tenant: str
    prompt: array[int]
    limit: int
    stops: tuple[str, ...]
    submitted: float
    waiters: list[tuple[Request, int]]
    written: list[int] = field(default_factory=list)
    queued: bool = True
    charged: bool = False

    @property
    def tokens(self) -> int:
        """How many tokens it may come to."""
        return len(self.prompt) + self.limit


def by_request(jobs: Iterable[Job]) -> list[list[Job]]:
    """Group jobs by the first request that waits for each; jobs that nobody waits for are left out."""
    groups: dict[int, list[Job]] = {}
    for job in jobs:
        if waiters := job.waiters:  # read once: another thread may replace the list
            groups.setdefault(id(waiters[0][0]), []).append(job)
    return list(groups.values())


def in_halves(jobs: list[Job]) -> list[list[Job]]:
    """Split two jobs or more in the middle."""
    middle = len(jobs) // 2
    return [jobs[:middle], jobs[middle:]]
