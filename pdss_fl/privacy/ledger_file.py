"""The file of a ledger: hashed lines, a witness that it is all there, and writing that a crash cannot halve.

A line is a JSON object whose last entry is the running hash: SHA-256, in hexadecimal, of the hash of the line
before (nothing for the first) and of the line's text up to ``, "hash"``.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MARK = b', "hash": "'
_NOTHING = ""  # the running hash of no line


@dataclass(frozen=True)
class LedgerFile:
    """What a ledger's file holds.

    Parameters
    ----------
    lines : list[dict[str, Any]]
        The releases, oldest first, up to the first damage.
    digest : str
        The running hash after them.
    end : int
        Bytes they take; what follows without trouble is a line that a crash cut off.
    witnessed : int
        How many lines the witness knows of; more are there if a crash came between the two.
    trouble : str
        Empty, or what makes the file useless as a ledger, for example ``line 3 is damaged``.
    """

    lines: list[dict[str, Any]]
    digest: str
    end: int
    witnessed: int
    trouble: str


def read_ledger(path: Path) -> LedgerFile:
    """Return what a ledger's file holds and whether it can be all of it; raises ``OSError`` if it cannot be read."""
    witness, data = _read_witness(path), path.read_bytes()  # in this order: the file is never behind the witness
    lines: list[dict[str, Any]] = []
    digests, end, count = [_NOTHING], 0, witness["lines"] if witness else 0
    for number, text in enumerate(data[: data.rfind(b"\n") + 1].split(b"\n")[:-1], start=1):
        body, mark, digest = text.rpartition(_MARK)
        try:
            if not mark or digest != f'{_running(digests[-1], body)}"}}'.encode():
                raise ValueError
            lines.append(checked_line(json.loads(body + b"}")))
        except (ValueError, TypeError, KeyError):
            return LedgerFile(lines, digests[-1], end, count, f"line {number} is damaged")
        digests.append(digest[:-2].decode())
        end += len(text) + 1
    if witness is None:
        trouble = "the witness is damaged"
    elif count > len(lines):
        trouble = f"{count - len(lines)} of the {count} lines are gone"
    else:
        trouble = "" if digests[count] == witness["hash"] else f"line {count} is not the one that was written"
    return LedgerFile(lines, digests[-1], end, count, trouble)


def append_lines(path: Path, found: LedgerFile, lines: Sequence[dict[str, Any]]) -> None:
    """Add lines after those that were found, all in one write, and then let the witness know.

    When this returns, both are on disk. A kill before that leaves some of the lines, whole, and at most a part of
    the next one; the witness then is older than the file, which is no trouble.
    """
    digest, written = found.digest, []
    for line in lines:
        body = json.dumps(line).encode()[:-1]
        digest = _running(digest, body)
        written.append(body + _MARK + digest.encode() + b'"}\n')
    with open(path, "r+b") as file:
        file.truncate(found.end)  # a line that a crash cut off
        file.seek(found.end)
        file.write(b"".join(written))
        file.flush()
        os.fsync(file.fileno())
    fresh = path.with_name(path.name + ".witness-new")
    with open(fresh, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        json.dump({"lines": len(found.lines) + len(lines), "hash": digest}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, witness_path(path))
    sync_directory(path.parent)


def witness_path(path: Path) -> Path:
    """Return where the witness of a ledger lies."""
    return path.with_name(path.name + ".witness")


def _read_witness(path: Path) -> dict[str, Any] | None:
    """Return the number of lines and the hash that were there once; ``None`` if that cannot be told."""
    try:
        found = json.loads(witness_path(path).read_bytes())
        good = isinstance(found["lines"], int) and found["lines"] >= 0 and isinstance(found["hash"], str)
    except FileNotFoundError:
        return {"lines": 0, "hash": _NOTHING}
    except (ValueError, TypeError, KeyError):
        return None
    return found if good else None


def _running(before: str, body: bytes) -> str:
    return hashlib.sha256(before.encode() + body).hexdigest()


def checked_line(line: dict[str, Any]) -> dict[str, Any]:
    """Return a line of the file if it can be counted, else raise like a line that is no JSON object."""
    texts = (line["example"], line["recipe"], line["person"] or "")
    whole = all(isinstance(text, str) for text in texts) and isinstance(line["released"], dict)
    if not (whole and epsilon_of(line) >= 0):  # NaN is not
        raise ValueError
    return line


def epsilon_of(line: dict[str, Any]) -> float:
    """Return what a release costs, in nats; infinity where nothing is guaranteed."""
    return math.inf if line["epsilon"] is None else float(line["epsilon"])


def sync_directory(path: Path) -> None:
    """Make the entry of a new file last; a ledger lost in a power cut would forget what was spent."""
    if os.name == "posix":  # elsewhere a directory cannot be opened
        directory = os.open(path, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
