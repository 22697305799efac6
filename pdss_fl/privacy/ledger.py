"""What every example has spent, in a file on the client that is written before anything is released.

One line a release, a JSON object with the charge and the released text, so that neither can be there
without the other. Each line ends with a running hash over all lines up to it. A line that a crash cut off was
never released and is dropped. Any other damage stops the client: a forgotten charge would let an example be
released above its limit.

Beside the file lies a witness with the number of its lines and the last hash, written after them and before
anything is released. A ledger that was deleted, cut short or put back from an old copy no longer agrees with it,
and stops the client, too. That both files are deleted or put back together is not noticed, nor a forgery: the
machine is trusted.

A release that was made before anybody said whom it is about stays with nobody, as the person is part of what
names an example: with the person it is another one, perturbed afresh and charged to them.
``pdss_fl.ledger_report`` shows a ledger to people.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pdss_fl.errors import StoreError
from pdss_fl.privacy.ledger_file import LedgerFile, append_lines, epsilon_of, read_ledger, sync_directory

MAX_DELTA = 1e-3
"""Most that the deltas of an example, or of a person, add up to where epsilon has a limit. Many releases of a small
epsilon, each at its delta, would else promise less and less."""

_LOCK_SECONDS = 120.0


@dataclass(frozen=True)
class Charge:
    """One release of one example.

    Parameters
    ----------
    example : str
        Hash of the example's content.
    person : str | None
        Whom it is about; the file holds a hash of it.
    recipe : str
        All that the released text depends on besides the example: mechanism, parameters, vocabulary, length.
    epsilon, delta : float
        Of the whole document; infinity where nothing is guaranteed.
    payload : dict
        The released text, a JSON object.
    """

    example: str
    person: str | None
    recipe: str
    epsilon: float
    delta: float
    payload: dict[str, Any]

    def __post_init__(self) -> None:
        if not (self.epsilon >= 0 and 0 <= self.delta < 1):
            raise ValueError(f"a charge of epsilon {self.epsilon} and delta {self.delta} makes no sense")


@dataclass
class Totals:
    """What the lines of a ledger add up to; persons are hashed, ``deltas`` are of examples and of persons."""

    payloads: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    example: dict[str, float] = field(default_factory=dict)
    person: dict[str, float] = field(default_factory=dict)
    deltas: dict[str, float] = field(default_factory=dict)
    persons_of: dict[str, set[str]] = field(default_factory=dict)

    def join(self, example: str, person: str | None) -> None:
        """Count an example to a person, with what it has spent before."""
        persons = self.persons_of.setdefault(example, set())
        if person is not None and person not in persons:
            persons.add(person)
            self.person[person] = self.person.get(person, 0.0) + self.example.get(example, 0.0)
            self.deltas[person] = self.deltas.get(person, 0.0) + self.deltas.get(example, 0.0)

    def allows(self, line: dict[str, Any], limit: float) -> bool:
        """Say whether a line is a new release that takes neither the example nor a person above the limit."""
        if (line["example"], line["recipe"]) in self.payloads:
            return False
        self.join(line["example"], line["person"])
        persons = self.persons_of[line["example"]]
        spent = [self.example.get(line["example"], 0.0), *(self.person[person] for person in persons)]
        failing = max(self.deltas.get(who, 0.0) for who in (line["example"], *persons)) + line["delta"]
        few = failing <= MAX_DELTA * (1 + 1e-9) or not line["delta"] or math.isinf(limit)
        return few and all(total + epsilon_of(line) <= limit for total in spent)

    def add(self, line: dict[str, Any]) -> None:
        """Count one line of the file."""
        example, epsilon = line["example"], epsilon_of(line)
        self.join(example, line["person"])
        self.payloads[example, line["recipe"]] = line["released"]
        self.example[example] = self.example.get(example, 0.0) + epsilon
        for person in self.persons_of[example]:
            self.person[person] += epsilon
        for who in (example, *self.persons_of[example]):
            self.deltas[who] = self.deltas.get(who, 0.0) + line["delta"]


class Ledger:
    """Append-only record of releases; limits what an example, and a person, spends over all runs.

    Parameters
    ----------
    path : Path
        The file; made if missing, readable by its owner only.
    max_epsilon_per_example : float
        In nats, for an example, and for all examples of a person together, by basic composition. Only an
        infinite limit lets through what has no guarantee, or more delta than ``MAX_DELTA``.

    Raises
    ------
    StoreError
        Here, before any work, and in every method: the file cannot be written (names ``state-dir``), is
        damaged or not all that was written, or another process does not let go of it.
    """

    def __init__(self, path: Path, max_epsilon_per_example: float) -> None:
        self.path, self.limit = path, max_epsilon_per_example
        self._lock = FileLock(f"{path}.lock", timeout=_LOCK_SECONDS)
        self._totals, self._read = Totals(), (0, 0, 0)
        with _reported(path):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            path.chmod(0o600)
            sync_directory(path.parent)
        self._current()

    def lookup(self, example: str, recipe: str) -> dict[str, Any] | None:
        """Return what was released of an example under a recipe; to send it again costs nothing."""
        return self._current().payloads.get((example, recipe))

    def spent(self, example: str) -> float:
        """Return the epsilon of an example over all recipes and runs."""
        return self._current().example.get(example, 0.0)

    def spent_by_person(self, person: str) -> float:
        """Return the epsilon of all examples of a person together."""
        return self._current().person.get(_hashed(person), 0.0)

    def charge(self, charges: Sequence[Charge]) -> list[bool]:
        """Write every charge that stays within the limit, all in one append, and say which were written.

        What another process wrote in the meantime counts. What is stored already is refused as well: use
        ``lookup``. When this returns, the accepted ones are on disk and may be released.
        """
        accepted, lines = [], []
        with _reported(self.path), self._lock:
            totals, found = self._parse()
            for line in map(_line, charges):
                accepted.append(totals.allows(line, self.limit))
                if accepted[-1]:
                    totals.add(line)
                    lines.append(line)
            if lines:
                append_lines(self.path, found, lines)
        return accepted

    def _current(self) -> Totals:
        with _reported(self.path):
            if self._read != self._stamp():
                with self._lock:  # nobody is between writing and syncing
                    totals, found = self._parse()
                    if found.witnessed < len(found.lines):  # a killed process left lines that are perhaps not synced
                        append_lines(self.path, found, [])
                    self._totals, self._read = totals, self._stamp()
        return self._totals

    def _stamp(self) -> tuple[int, int, int]:
        found = self.path.stat()
        return found.st_ino, found.st_size, found.st_mtime_ns

    def _parse(self) -> tuple[Totals, LedgerFile]:
        """Return the file's totals, and what it holds; raises ``StoreError`` if that is not all it ever held."""
        found, totals = read_ledger(self.path), Totals()
        if found.trouble:
            raise StoreError(
                f"the ledger below this node's state-dir cannot be trusted: {found.trouble}; restore it from a backup, "
                "since without it nobody knows what was spent",
                str(self.path),
            )
        for line in found.lines:
            totals.add(line)
        return totals, found


def _line(charge: Charge) -> dict[str, Any]:
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "example": charge.example,
        "person": None if charge.person is None else _hashed(charge.person),
        "recipe": charge.recipe,
        "epsilon": charge.epsilon if math.isfinite(charge.epsilon) else None,  # JSON has no infinity
        "delta": charge.delta,
        "released": charge.payload,
    }


def _hashed(person: str) -> str:
    return "person:" + hashlib.sha256(person.encode("utf-8", "surrogatepass")).hexdigest()


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    try:
        yield
    except Timeout:
        raise StoreError(
            f"another process has held the ledger below this node's state-dir for {_LOCK_SECONDS:g} seconds: "
            "end it, or give each SuperNode a state-dir of its own",
            str(path),
        ) from None
    except OSError as err:
        raise StoreError(
            "the ledger below this node's state-dir cannot be written or read: free space, correct its "
            "permissions, or name another state-dir",
            str(err),
        ) from None
