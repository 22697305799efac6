"""The real ClientApp and ServerApp, which note when what happens; for ``tests/benchmarks/bench_flower.py``.

It is put into a copy of the app. Each line of ``times.jsonl``, beside Flower's home, is a moment and its name.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

HOME = Path(os.environ["FLWR_HOME"]).parent


def note(what: str, at: float | None = None) -> None:
    """Write a moment down; now, if not told."""
    with open(HOME / "times.jsonl", "a") as file:
        file.write(json.dumps([what, at or time.time()]) + "\n")


def process_start() -> float:
    """Return when this process began; Linux tells it in hundredths of a second since the machine did."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    running = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - running + ticks / os.sysconf("SC_CLK_TCK")


app = ClientApp()
server_app = ServerApp()


@app.query("perturb")
def perturb(msg: Message, context: Context) -> Message:
    """Do as the real client."""
    return _answer(msg, context)


@app.train("distill")
def distill(msg: Message, context: Context) -> Message:
    """Do as the real client."""
    return _answer(msg, context)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    """Do as the real client."""
    return _answer(msg, context)


def _answer(msg: Message, context: Context) -> Message:
    from pdss_fl import client_app

    step = msg.metadata.message_type
    note(f"{step} process", process_start())
    if "node-socket" not in context.node_config:  # else the work is another process's, which is there already
        from pdss_fl.client import DistillationClient

        for name in ("perturb", "distill"):
            setattr(DistillationClient, name, _noting(name, getattr(DistillationClient, name)))
    note(f"{step} begins")
    reply = client_app.app(msg, context)
    note(f"{step} ends")
    return reply


def _noting(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    def noted(*arguments: Any) -> Any:
        note(f"client.{name} begins")
        result = method(*arguments)
        note(f"client.{name} ends")
        return result

    return noted


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Do as the real server; with a file ``flower-polling`` leave the waiting for replies to Flower."""
    from pdss_fl.config import RunSettings
    from pdss_fl.polling import PatientGrid
    from pdss_fl.server_app import app as real
    from pdss_fl.server_app import run_comparison

    class NotingGrid(PatientGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            sent = list(messages)
            for message in sent:
                note(f"{message.metadata.message_type} sent")
            return super().push_messages(sent)

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            found = list(super().pull_messages(message_ids))
            for message in found:
                note(f"{message.metadata.message_type} received")
            return found

        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
            sent = list(messages)
            for message in sent:
                note(f"{message.metadata.message_type} sent")
            found = list(self.grid.send_and_receive(sent, timeout=timeout))
            for message in found:
                note(f"{message.metadata.message_type} received")
            return found

    if (HOME / "flower-polling").exists():
        settings = RunSettings.from_run_config(context.run_config)
        print(f"results: {run_comparison(NotingGrid(grid), settings, context.run_id)}")
    else:
        real(NotingGrid(grid), context)
