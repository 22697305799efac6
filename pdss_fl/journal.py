"""An append-only file of JSON lines from which an interrupted run goes on; a torn last line is ignored.

The strategy keeps one in the run directory: rationales as they come (by digest of the batch of perturbed prompts
that they answer, and ordinal), and the whole state after every round. A client on the direct channel keeps the
rationales that it received. All of it is text that the LLM's side knows anyway.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from pdss_fl.errors import StoreError
from pdss_fl.messages import Finish, PromptBatch, Rationale

logger = logging.getLogger("pdss_fl.journal")

_SYNC_SECONDS = 1.0


class Journal:
    """Records of one run, read when it is opened and added to at the end.

    Every record reaches the operating system at once, so that a killed process loses none; a power cut loses the
    rationales of the last second at most, which are then asked for again.

    Parameters
    ----------
    path : Path
        Made on the first record; its directory exists. One process at a time writes it.

    Raises
    ------
    StoreError
        Here and in ``add``, if it cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._synced = 0.0
        self._answers: dict[str, dict[int, Rationale]] = {}
        self._last: dict[tuple[str, ...], dict[str, Any]] = {}
        try:
            self._read()
        except OSError as err:
            raise _unwritable(err) from None

    def add(self, kind: str, sync: bool = True, **fields: Any) -> None:
        """Append a record; with ``sync`` it is on disk when this returns."""
        record = {"kind": kind, **fields}
        try:
            with open(self.path, "ab") as file:
                file.write(json.dumps(record).encode() + b"\n")
                file.flush()
                if sync or time.monotonic() - self._synced >= _SYNC_SECONDS:
                    os.fsync(file.fileno())
                    self._synced = time.monotonic()
        except OSError as err:
            raise _unwritable(err) from None
        self._note(record)

    def last(self, kind: str, *names: Any) -> dict[str, Any] | None:
        """Return the newest record of a kind about a method, or a method and a round; ``None`` if there is none."""
        return self._last.get((kind, *map(str, names)))

    def add_answer(self, digest: str, rationale: Rationale) -> None:
        """Keep one rationale for a batch's prompt; ``sync`` or ``add`` makes it last through a power cut."""
        fields = {"ordinal": rationale.ordinal, "text": rationale.text}
        self.add("answer", False, batch=digest, **fields, finish=rationale.finish.name, tokens=rationale.tokens)

    def answers(self, digest: str) -> dict[int, Rationale]:
        """Return the rationales received for a batch of prompts so far, by ordinal."""
        return dict(self._answers.get(digest, {}))

    def _read(self) -> None:
        if not self.path.exists():
            return
        data, end = self.path.read_bytes(), 0
        for line in data.split(b"\n")[:-1]:
            try:
                self._note(json.loads(line))
            except (ValueError, KeyError, TypeError):
                break
            end += len(line) + 1
        if end < len(data):
            logger.warning("%s: %d bytes of a record that was not finished are dropped", self.path, len(data) - end)
            with open(self.path, "r+b") as file:
                file.truncate(end)

    def _note(self, record: dict[str, Any]) -> None:
        if record["kind"] == "answer":
            answer = Rationale(record["ordinal"], record["text"], Finish[record["finish"]], record["tokens"])
            self._answers.setdefault(record["batch"], {})[answer.ordinal] = answer
            return
        names = (record["kind"], str(record["method"]), str(record["round"]))
        self._last[names] = self._last[names[:2]] = record


def digest_of(batch: PromptBatch) -> str:
    """Return what names a batch of perturbed prompts in a journal: equal batches, and no others, have equal ones."""
    return hashlib.sha256(batch.to_proto().SerializeToString(deterministic=True)).hexdigest()


def _unwritable(err: OSError) -> StoreError:
    return StoreError(
        "the journal of this run cannot be written or read: free space, or correct its permissions", str(err)
    )
