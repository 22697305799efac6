"""What every example has spent, in a file on the client, written before anything is released.

One JSON object a line, appended and synced under a lock: charge and released text are one record, so
that neither exists without the other. A line that a crash tore was never released and is ignored; any
other damage stops the client, because a forgotten charge would let an example be released twice.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from pdss_fl.errors import StoreError


@dataclass(frozen=True)
class Charge:
    """One release of one example.

    Parameters
    ----------
    example : str
        Hash of the example's content.
    person : str | None
        Whom the example is about; kept as a hash.
    recipe : str
        Everything the released text depends on besides the example: mechanism, parameters, vocabulary, lengths.
    epsilon, delta : float
        Of the whole document; infinity for a mechanism without a guarantee.
    payload : dict
        The released text, as JSON.
    """

    example: str
    person: str | None
    recipe: str
    epsilon: float
    delta: float
    payload: dict[str, Any]


class Ledger:
    """Append-only record of releases, cumulative over runs.

    Parameters
    ----------
    path : Path
        The file; made if missing, readable by its owner only.
    max_epsilon_per_example : float
        What an example, and all examples of one person together, may spend in total (basic composition).

    Raises
    ------
    StoreError
        If the file cannot be written or is damaged, before any work; names ``state-dir``.
    """

    def __init__(self, path: Path, max_epsilon_per_example: float) -> None:
        self.path, self.limit = path, max_epsilon_per_example
        self._lock = FileLock(f"{path}.lock")
        self._stored: dict[tuple[str, str], dict[str, Any]] = {}
        self._spent: dict[str, float] = {}
        self._read_to = 0
        with self._locked():
            pass

    def lookup(self, example: str, recipe: str) -> dict[str, Any] | None:
        """Return what was released of an example under a recipe; sending it again costs nothing."""
        return self._stored.get((example, recipe))

    def spent(self, example: str) -> float:
        """Return the epsilon that an example has spent over all recipes and runs."""
        return self._spent.get(example, 0.0)

    def spent_by_person(self, person: str) -> float:
        """Return the epsilon that all examples of a person have spent together."""
        return self._spent.get(_person_key(person), 0.0)

    def charge(self, charges: Sequence[Charge]) -> list[bool]:
        """Write the charges that the limit allows, all in one append, and say which.

        What another process has written in the meantime counts. A charge for something that is stored
        already is refused; use ``lookup``.
        """
        with self._locked():
            accepted = [self._accept(charge) for charge in charges]
            lines = [_line(charge) for charge, ok in zip(charges, accepted, strict=True) if ok]
            if lines:
                self._append("".join(lines).encode())
        return accepted

    def _accept(self, charge: Charge) -> bool:
        """Take a charge into the totals if it fits; the caller writes it before anything is released."""
        if math.isnan(charge.epsilon) or charge.epsilon < 0:
            raise ValueError(f"a charge of epsilon {charge.epsilon} makes no sense")
        known = (charge.example, charge.recipe) in self._stored
        keys = [charge.example] + ([_person_key(charge.person)] if charge.person is not None else [])
        if known or any(self._spent.get(key, 0.0) + charge.epsilon > self.limit for key in keys):
            return False
        self._record(charge.example, keys[1:], charge.recipe, charge.epsilon, charge.payload)
        return True

    def _record(
        self, example: str, person_keys: Sequence[str], recipe: str, epsilon: float, payload: dict[str, Any]
    ) -> None:
        self._stored[example, recipe] = payload
        for key in (example, *person_keys):
            self._spent[key] = self._spent.get(key, 0.0) + epsilon

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock with the file read to its end and closed by a newline."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._lock:
                os.close(os.open(self.path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
                self._catch_up()
                yield
        except OSError as err:
            raise StoreError(
                "the ledger below this node's state-dir cannot be written: free space or correct its permissions",
                f"{self.path}: {err}",
            ) from None

    def _catch_up(self) -> None:
        """Read what was appended since the last time; cut off a line that a crash tore."""
        with open(self.path, "r+b") as file:
            file.seek(self._read_to)
            content = file.read()
            whole = content[: content.rfind(b"\n") + 1]
            if len(whole) < len(content):
                file.truncate(self._read_to + len(whole))
        for number, line in enumerate(whole.splitlines(), start=1):
            self._take(line, number)
        self._read_to += len(whole)

    def _take(self, line: bytes, number: int) -> None:
        try:
            row = json.loads(line)
            epsilon = math.inf if row["epsilon"] is None else float(row["epsilon"])
            person_keys = [row["person"]] if row["person"] is not None else []
            self._record(row["example"], person_keys, row["recipe"], epsilon, row["released"])
        except (ValueError, KeyError, TypeError) as err:
            raise StoreError(
                "the ledger below this node's state-dir is damaged; restore it from a backup, since starting a new "
                "one would forget what was spent",
                f"{self.path}, entry {number} after byte {self._read_to}: {type(err).__name__}",
            ) from None

    def _append(self, data: bytes) -> None:
        with open(self.path, "ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self._read_to += len(data)


def _line(charge: Charge) -> str:
    row = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "example": charge.example,
        "person": _person_key(charge.person) if charge.person is not None else None,
        "recipe": charge.recipe,
        "epsilon": charge.epsilon if math.isfinite(charge.epsilon) else None,
        "delta": charge.delta,
        "released": charge.payload,
    }
    return json.dumps(row, ensure_ascii=True) + "\n"


def _person_key(person: str) -> str:
    return "person:" + hashlib.sha256(person.encode("utf-8", "surrogatepass")).hexdigest()
