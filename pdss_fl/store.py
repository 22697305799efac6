"""A client's own files: what was asked, what came back, and the small models; never sent anywhere.

Every step leaves its result in one atomic step, so that a client that died at any point goes on from there.
"""

from __future__ import annotations

import hmac
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from safetensors import SafetensorError

from pdss_fl.errors import MessageError, StoreError
from pdss_fl.files import write_atomically

_ROUND = "round.txt"
SPLIT = "split.json"
OWN_SETTINGS = "own-settings.json"
"""A deployed client's file with the settings of a run that hold on it; ``settings.json`` there is a fingerprint."""


class ClientStore:
    """The files of one client in one run, below a directory that only this client uses.

    Parameters
    ----------
    directory : Path
        Made if missing, readable by its owner only.

    Raises
    ------
    StoreError
        If the directory cannot be made or written, before any work.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.TemporaryFile(dir=directory):
                pass
            (directory / "training").mkdir(exist_ok=True)
        except OSError as err:
            raise _unwritable(err) from None

    def busy(self, action: str) -> FileLock:
        """Return a lock for the time of an action, so that a resumed run waits for what its first start began."""
        return FileLock(self.directory / f"{action}.lock")

    def keep_to(self, settings: str) -> None:
        """Refuse to go on under other settings than those, by their fingerprint, with which these files were begun.

        Whoever reaches ``pdss node`` names a run's id and its settings with each message: what was trained under
        some, without privacy, would else be sent under others.
        """
        path = self.directory / "settings.json"
        with self.busy("settings"):
            if not path.exists():
                self._write(path, settings)
            elif self._read(path) != settings:
                raise MessageError("the run has other settings than those with which this client began it")

    def note_settings(self, settings: dict[str, Any]) -> None:
        """Remember the settings that hold on this client in this run, its own choices among them, for its page."""
        if not (self.directory / OWN_SETTINGS).exists():
            self._write(self.directory / OWN_SETTINGS, settings)

    def slm_directory(self, method: str) -> Path:
        """Return where the small model of a method is kept, in Hugging Face format."""
        return self.directory / "slm" / _name(method)

    def save_asked(self, method: str, server_round: int, asked: list[str]) -> None:
        """Remember which example (by its key) was sent under which ordinal."""
        self._write(self._asked_path(method, server_round), asked)

    def load_asked(self, method: str, server_round: int) -> list[str]:
        """Return the examples' keys by ordinal; raises ``StoreError`` if the round asked nothing."""
        path = self._asked_path(method, server_round)
        if not path.exists():
            raise StoreError("rationales came for a round in which this client sent no prompts")
        return list(self._read(path))

    def was_asked(self, method: str, server_round: int) -> bool:
        """Tell whether a round's prompts were sent already, so that a retry sends them in the same order."""
        return self._asked_path(method, server_round).exists()

    def note_split(self, train: Sequence[str], test: Sequence[str]) -> None:
        """Remember, by their keys, which examples a run trains on and which it keeps for tests, beside earlier ones."""
        before = self.load_split()
        sides = {"train": train, "test": test}
        after = {side: list(dict.fromkeys([*before.get(side, []), *keys])) for side, keys in sides.items()}
        if after != before:
            self._write(self.directory / SPLIT, after)

    def load_split(self) -> dict[str, list[str]]:
        """Return the keys of ``train`` and ``test``, nothing if the run trained nothing here."""
        path = self.directory / SPLIT
        return dict(self._read(path)) if path.exists() else {}

    def save_plan(self, method: str, server_round: int, plan: dict[str, Any] | None) -> None:
        """Remember what a round is about to charge and send; ``None`` forgets it."""
        path = self._plan_path(method, server_round)
        if plan is not None:
            self._write(path, plan)
        else:
            path.unlink(missing_ok=True)

    def load_plan(self, method: str, server_round: int) -> dict[str, Any] | None:
        """Return what a round that was interrupted was about to send, else ``None``."""
        path = self._plan_path(method, server_round)
        return dict(self._read(path)) if path.exists() else None

    def save_evaluation(self, method: str, server_round: int, counts: dict[str, Any]) -> None:
        """Remember what was reported of a method's small model after a round."""
        self._write(self.directory / "evaluations" / f"{_name(method)}-{server_round}.json", counts)

    def load_evaluation(self, method: str, server_round: int) -> dict[str, Any] | None:
        """Return what was reported of a method's small model after a round, else ``None``."""
        path = self.directory / "evaluations" / f"{_name(method)}-{server_round}.json"
        return dict(self._read(path)) if path.exists() else None

    def checkpoint(self, method: str, server_round: int) -> Path:
        """Return where a training that is under way keeps its last checkpoint."""
        return self.directory / "training" / f"{_name(method)}-{server_round}"

    def save_metrics(self, method: str, server_round: int, metrics: dict[str, Any]) -> None:
        """Remember that a round was distilled, and what was reported of it."""
        self._write(self._metrics_path(method, server_round), metrics)

    def load_metrics(self, method: str, server_round: int) -> dict[str, Any] | None:
        """Return what was reported of a round that is distilled already, else ``None``."""
        path = self._metrics_path(method, server_round)
        return dict(self._read(path)) if path.exists() else None

    def save_slm(self, method: str, save: Callable[[Path], None], server_round: int = 0) -> None:
        """Let ``save`` write a method's small model, and put it into place whole, with the round it comes from."""
        final = self.slm_directory(method)
        new, old = _beside(final)
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(new, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
            save(new)
            (new / _ROUND).write_text(str(server_round))
            _sync_files(new)
            if final.exists():
                final.rename(old)
            new.rename(final)
            shutil.rmtree(old, ignore_errors=True)
        except (OSError, SafetensorError) as err:  # the latter where the disk is full while weights are written
            raise _unwritable(err) from None

    def has_slm(self, method: str) -> bool:
        """Tell whether there is a small model of a method; one that a crash left between two names is put back."""
        final = self.slm_directory(method)
        new, old = _beside(final)
        if not final.exists() and old.exists():  # the new one was whole before the old one was moved
            new.rename(final)
        shutil.rmtree(old, ignore_errors=True)
        return final.exists()

    def slm_round(self, method: str) -> int:
        """Return after which round a method's small model was saved; 0 if there is none."""
        return int(self._read(self.slm_directory(method) / _ROUND)) if self.has_slm(method) else 0

    def sent_weights(self, method: str, server_round: int) -> Path:
        """Return where the weights that left after a round are, so that a retry sends them, whatever came in since."""
        return self.directory / "sent" / _name(method) / f"{server_round}.safetensors"

    def save_sent(self, method: str, server_round: int, save: Callable[[Path], None]) -> None:
        """Let ``save`` write the weights that leave after a round; those of earlier rounds are removed."""
        path = self.sent_weights(method, server_round)
        new = path.parent.with_name(f".{method}-new")
        try:
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(parents=True)
            save(new / path.name)
            _sync_files(new)
            shutil.rmtree(path.parent, ignore_errors=True)
            new.rename(path.parent)
        except (OSError, SafetensorError) as err:
            raise _unwritable(err) from None

    def save_rationales(self, method: str, rationales: dict[str, dict[str, Any]]) -> None:
        """Add decoded rationales by example key to those of earlier rounds."""
        path = self._rationales_path(method)
        self._write(path, {**self.load_rationales(method), **rationales})

    def load_rationales(self, method: str) -> dict[str, dict[str, Any]]:
        """Return all decoded rationales of a method by example key."""
        path = self._rationales_path(method)
        return dict(self._read(path)) if path.exists() else {}

    def _asked_path(self, method: str, server_round: int) -> Path:
        return self.directory / "asked" / f"{_name(method)}-{server_round}.json"

    def _plan_path(self, method: str, server_round: int) -> Path:
        return self.directory / "asked" / f"{_name(method)}-{server_round}-plan.json"

    def _metrics_path(self, method: str, server_round: int) -> Path:
        return self.directory / "metrics" / f"{_name(method)}-{server_round}.json"

    def _rationales_path(self, method: str) -> Path:
        return self.directory / "rationales" / f"{_name(method)}.json"

    def _read(self, path: Path) -> Any:
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as err:
            raise StoreError("a file below this node's state-dir is damaged; remove it", f"{path}: {err}") from None

    def _write(self, path: Path, content: Any) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(content, ensure_ascii=False))
        except OSError as err:
            raise _unwritable(err) from None


def _beside(final: Path) -> tuple[Path, Path]:
    return final.with_name(f".{final.name}-new"), final.with_name(f".{final.name}-old")


def _sync_files(directory: Path) -> None:
    for path in directory.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def private_seed(state_dir: Path, public: str) -> int:
    """Return a number that follows from a text and from a secret of this node, made on the first call.

    Parameters
    ----------
    state_dir : Path
        Exists; the secret lies in it, readable by its owner only.
    public : str
        Equal texts give equal numbers on this node; nobody else can tell them.

    Raises
    ------
    StoreError
        If the secret cannot be read or written, or is none.
    """
    path = state_dir / "order.key"
    try:
        with FileLock(f"{path}.lock"):
            if not path.exists():
                write_atomically(path, secrets.token_hex(32))
                path.chmod(0o600)
        secret = path.read_bytes()
    except OSError as err:
        raise _unwritable(err) from None
    if not re.fullmatch(rb"[0-9a-f]{64}", secret):  # an empty one would give an order that everybody can work out
        raise StoreError(
            "order.key below this node's state-dir is damaged: restore it from a backup; without one remove it, and "
            "the next run trains and tests on other examples",
            str(path),
        )
    return int.from_bytes(hmac.digest(secret, public.encode(), "sha256"))


def _name(method: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,31}", method):
        raise StoreError("the run names a method that is not a plain word")
    return method


def _unwritable(err: Exception) -> StoreError:
    return StoreError(
        "this node's state-dir cannot be written: free space, correct its permissions, or name another one",
        str(err),
    )
