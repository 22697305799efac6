"""A run's results on the server's disk: settings, metrics as they come, privacy, and one summary.

``summary.json`` has the keys ``accuracy`` (a method: ``value``, ``low``, ``high``, ``n``), ``clients`` and
``fairness`` (``pdss_fl.fairness``), ``left-out`` (who took no part in which step, and why), ``unshared`` (with
``sharing.mode``, whose weights are in no average, and why), ``privacy``, ``seconds`` (a phase), ``llm`` (``model``,
``prompts``, ``tokens``) and ``versions``.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from statistics import NormalDist
from typing import Any

from filelock import FileLock, Timeout

from pdss_fl import __version__
from pdss_fl.errors import SettingError, StoreError
from pdss_fl.files import write_atomically
from pdss_fl.messages import PrivacyStatement

_Z = NormalDist().inv_cdf(0.975)
PACKAGES = ("flwr", "torch", "transformers", "grpcio", "protobuf")


class RunDirectory:
    """The files of one run, below an absolute path, for one process at a time.

    Raises
    ------
    SettingError
        If the directory cannot be made or written; names ``output-dir``. Or if another process writes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path / "run.lock", timeout=0)
        try:
            path.mkdir(parents=True, exist_ok=True)
            (path / "metrics.jsonl").touch()
            self._lock.acquire()
        except Timeout:
            raise SettingError(
                f"{path.name} is still running in another process: end that one before it is resumed"
            ) from None
        except OSError as err:
            raise SettingError(
                f"output-dir = {str(path.parent)!r} cannot be written ({err.strerror}): name another directory"
            ) from None

    def close(self) -> None:
        """Let another process write here."""
        self._lock.release()

    def write(self, name: str, content: Any) -> Path:
        """Write a JSON file whole; infinity and NaN, which JSON lacks, become null.

        Raises
        ------
        StoreError
            Here and in ``write_metrics``, if there is no room; the file is then as it was before.
        """
        return self._replace(name, json.dumps(_finite(content), indent=2, sort_keys=False) + "\n")

    def write_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write ``metrics.jsonl``, one line a row; all rows each time, so that a resumed run has none twice."""
        self._replace("metrics.jsonl", "".join(json.dumps(_finite(dict(row))) + "\n" for row in rows))

    def _replace(self, name: str, text: str) -> Path:
        path = self.path / name
        try:
            write_atomically(path, text)
        except OSError as err:
            raise StoreError(
                f"{name} cannot be written below output-dir = {str(self.path.parent)!r} ({err.strerror}): free space, "
                "or correct its permissions; then resume=true goes on where this run was"
            ) from None
        return path


def accuracy(correct: int, total: int, noise_variance: float = 0.0) -> dict[str, float | int | None]:
    """Return a share of right answers with its 95 % score interval: Wilson's, widened by the noise of the count.

    The interval holds every share p with (correct/total - p)^2 <= z^2 (p (1 - p) / total + noise_variance / total^2).

    Parameters
    ----------
    correct, total : int
        Right answers, and questions; without questions nothing was reported and the share is ``None``.
    noise_variance : float (default: 0.0)
        Of ``correct``, which then may be negative or above ``total``; the share is cut to 0 .. 1 here and not before.

    Returns
    -------
    dict
        ``value``, ``low``, ``high``, ``n``; with noise also ``noise``, its standard deviation in questions.
    """
    if total == 0:
        return {"value": None, "low": None, "high": None, "n": 0}
    share, z2 = min(max(correct / total, 0.0), 1.0), _Z**2 / total
    half = math.sqrt(z2 * share * (1 - share) + z2**2 / 4 + (1 + z2) * z2 * noise_variance / total)
    low, high = ((share + z2 / 2 + sign * half) / (1 + z2) for sign in (-1, 1))
    noise = {"noise": math.sqrt(noise_variance)} if noise_variance else {}
    return {"value": share, "low": max(low, 0.0), "high": min(high, 1.0), "n": total, **noise}


def weakest(statements: Iterable[PrivacyStatement]) -> PrivacyStatement | None:
    """Return the statement with the largest epsilon, which is what the run as a whole can claim."""
    return max(statements, key=lambda s: (s.epsilon_per_token, s.epsilon_per_document), default=None)


def privacy_summary(statement: PrivacyStatement | None) -> dict[str, Any] | None:
    """Return a statement's fields as ``summary.json`` names them."""
    return dataclasses.asdict(statement) if statement is not None else None


def versions() -> dict[str, str]:
    """Return the versions of this package and of what it stands on."""
    return {"pdss-fl": __version__, **{name: version(name) for name in PACKAGES}}


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value
