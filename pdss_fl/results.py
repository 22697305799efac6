"""A run's results on the server's disk: settings, metrics as they come, privacy, and one summary.

``summary.json`` has the keys ``accuracy`` (a method: ``value``, ``low``, ``high``, ``n``), ``clients`` and
``fairness`` (``pdss_fl.fairness``), ``privacy``,
``seconds`` (a phase), ``llm`` (``model``, ``prompts``, ``tokens``) and ``versions``.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from pdss_fl import __version__
from pdss_fl.errors import SettingError
from pdss_fl.messages import PrivacyStatement

PACKAGES = ("flwr", "torch", "transformers", "grpcio", "protobuf")


class RunDirectory:
    """The files of one run, below an absolute path.

    Raises
    ------
    SettingError
        If the directory cannot be made or written; names ``output-dir``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            (path / "metrics.jsonl").touch()
        except OSError as err:
            raise SettingError(
                f"output-dir = {str(path.parent)!r} cannot be written ({err.strerror}): name another directory"
            ) from None

    def write(self, name: str, content: Any) -> Path:
        """Write a JSON file; infinity and NaN, which JSON lacks, become null."""
        path = self.path / name
        path.write_text(json.dumps(_finite(content), indent=2, sort_keys=False) + "\n", encoding="utf-8")
        return path

    def append_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add one line a row to ``metrics.jsonl``."""
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(_finite(dict(row))) + "\n")


def accuracy(correct: int, total: int) -> dict[str, float | int]:
    """Return a share of right answers with its 95 % Wilson interval.

    Parameters
    ----------
    correct, total : int
        Right answers and questions; ``total`` is at least 1.
    """
    interval = binomtest(correct, total).proportion_ci(0.95, method="wilson")
    return {"value": correct / total, "low": float(interval.low), "high": float(interval.high), "n": total}


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
