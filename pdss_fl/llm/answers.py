"""Rationales that were written already or are being written, to be found again by the same tenant.

Never by another one: how fast an answer comes would tell what others asked.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict

from pdss_fl.llm.admission import Job
from pdss_fl.llm.writing import Written

KEPT = 4_096


def key_of(tenant: str, prompt: array[int], limit: int, stops: tuple[str, ...]) -> bytes:
    """Return a digest of all that decides a rationale, and of the tenant that it is for."""
    parts = repr((tenant, limit, stops)).encode(), prompt.tobytes()
    return hashlib.blake2b(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).digest()


class Answers:
    """Jobs under way, and the ``KEPT`` most recent rationales; not safe for two threads at a time."""

    def __init__(self) -> None:
        self._recent: OrderedDict[bytes, Written] = OrderedDict()
        self.under_way: dict[bytes, Job] = {}

    def find(self, key: bytes) -> Written | None:
        """Return a rationale that was written before, and keep it longer."""
        if key not in self._recent:
            return None
        self._recent.move_to_end(key)
        return self._recent[key]

    def forget(self, job: Job) -> None:
        """Note that a job is no longer under way; another one may have its key by now."""
        if self.under_way.get(job.key) is job:
            del self.under_way[job.key]

    def keep(self, key: bytes, written: Written) -> None:
        """Keep a rationale; the one that was not asked for longest goes."""
        self._recent[key] = written
        if len(self._recent) > KEPT:
            self._recent.popitem(last=False)
