"""Experiment tracking: callbacks that are told of a run's metrics as they come.

``create_server_app(callbacks=[...])`` takes any object with the two methods of ``Callback``; ``tracking =
"tensorboard"`` writes TensorBoard's files into the run directory. They are told what the server knows: counts that
clients reported, never a text.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

logger = logging.getLogger("pdss_fl.server")

TENSORBOARD = "tensorboard"


class Callback(Protocol):
    """What follows a run."""

    def on_metrics(self, method: str, server_round: int, phase: str, metrics: Mapping[str, float]) -> None:
        """Take the sums over all clients of one step.

        Parameters
        ----------
        method : str
            ``untrained``, ``standalone``, ``pdss`` or ``dss``.
        server_round : int
            From 1; 0 for the untrained model.
        phase : str
            ``distill`` or ``evaluate``.
        metrics : Mapping[str, float]
            ``num-examples``, and after an evaluation ``correct`` and, if anything was reported, ``accuracy``.
        """

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """Take what ``summary.json`` holds, once the last method has ended."""


class TensorBoard:
    """Writes scalars ``PHASE/METHOD/NAME`` over rounds, and the summary as text.

    Parameters
    ----------
    folder : Path
        For ``tensorboard --logdir``.
    """

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes seconds

        self._writer = SummaryWriter(str(folder))  # type: ignore[no-untyped-call]

    def on_metrics(self, method: str, server_round: int, phase: str, metrics: Mapping[str, float]) -> None:
        """Write one point a metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(f"{phase}/{method}/{name}", value, server_round)  # type: ignore[no-untyped-call]

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """Write the summary and close the files."""
        text = f"```\n{json.dumps(summary, indent=2, default=str)}\n```"
        self._writer.add_text("summary", text)  # type: ignore[no-untyped-call]
        self._writer.close()  # type: ignore[no-untyped-call]


class Callbacks:
    """Tells every callback, and drops one that fails with a line in the log: tracking never ends a run."""

    def __init__(self, callbacks: Iterable[Callback]) -> None:
        self._callbacks = list(callbacks)

    def on_metrics(self, method: str, server_round: int, phase: str, metrics: Mapping[str, float]) -> None:
        """See ``Callback``; adds ``accuracy``."""
        told = dict(metrics)
        if told.get("num-examples") and "correct" in told:
            told["accuracy"] = told["correct"] / told["num-examples"]
        self._tell("on_metrics", method, server_round, phase, told)

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """See ``Callback``."""
        self._tell("on_end", summary)

    def _tell(self, event: str, *arguments: Any) -> None:
        for callback in list(self._callbacks):
            try:
                getattr(callback, event)(*arguments)
            except Exception as err:
                self._callbacks.remove(callback)
                logger.warning("%s: %s failed (%r); it is told nothing more", type(callback).__name__, event, err)
