"""Rationales that were written already or are being written, to be found again by the same tenant.

Never by another one: how fast an answer comes would tell what others asked.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from typing import Generic, TypeVar

from pdss_fl.llm.jobs import Job
from pdss_fl.llm.writing import Written

KEPT = 4_096

Answer = TypeVar("Answer")


def key_of(tenant: str, prompt: array[int], limit: int, stops: tuple[str, ...]) -> bytes:
    """Return a digest of all that decides a rationale, and of the tenant that it is for."""
    parts = repr((tenant, limit, stops)).encode(), prompt.tobytes()
    return hashlib.blake2b(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).digest()


class Recent(Generic[Answer]):
    """The answers that were asked for last; not safe for two threads at a time.

    Parameters
    ----------
    most : int
        How many are kept; the one that was not asked for longest goes.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._answers: OrderedDict[bytes, Answer] = OrderedDict()

    def find(self, key: bytes) -> Answer | None:
        """Return an answer that was kept, and keep it longer."""
        if key not in self._answers:
            return None
        self._answers.move_to_end(key)
        return self._answers[key]

    def keep(self, key: bytes, answer: Answer) -> None:
        """Keep an answer."""
        self._answers[key] = answer
        if len(self._answers) > self._most:
            self._answers.popitem(last=False)


class Answers(Recent[Written]):
    """Jobs under way, and the ``KEPT`` most recent rationales; not safe for two threads at a time."""

    def __init__(self) -> None:
        super().__init__(KEPT)
        self.under_way: dict[bytes, Job] = {}

    def forget(self, job: Job) -> None:
        """Note that a job is no longer under way; another one may have its key by now."""
        if self.under_way.get(job.key) is job:
            del self.under_way[job.key]
