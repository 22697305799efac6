"""Seconds, bytes and memory of a whole simulated run against its number of clients.

    python tests/benchmarks/bench_scale.py [--clients 2 10 50 200] [--examples 6]

Real runs under a SuperLink of their own, each client with its own ledger and small model, the bundled LLM for all of
them. Equal prompts are written once, so tokens grow slower than clients. Ray runs as many clients at a time as there
are processors. Memory is that of all processes of the run together, without what they share, at its highest; the
column beside it is the change against the smallest run.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from pdss_fl.launcher import run_simulation

ROOT = Path(__file__).parent.parent.parent


@dataclass
class Peak:
    """The most memory, in bytes, that this process's children held together."""

    value: int = 0
    ended: bool = False

    def watch(self) -> None:
        """Look twice a second until the run has ended."""
        while not self.ended:
            held = 0
            for child in psutil.Process().children(recursive=True):
                try:
                    held += child.memory_full_info().uss
                except psutil.Error:  # ended meanwhile
                    continue
            self.value = max(self.value, held)
            time.sleep(0.5)


def measure(clients: int, examples: int, folder: Path) -> dict[str, Any]:
    """Run ``clients`` clients with ``examples`` questions each once; return what the run tells and its peak."""
    settings = {
        "methods": '"pdss"', "data.train-examples": examples, "data.test-examples": 2, "distill.steps": 20,
        "slm.hidden-size": 32, "slm.layers": 1, "output-dir": f'"{folder}"',
    }  # fmt: skip
    peak, started = Peak(), time.monotonic()
    watcher = threading.Thread(target=peak.watch)
    watcher.start()
    try:
        run = run_simulation(ROOT, [f"{key}={value}" for key, value in settings.items()], clients)
    finally:
        peak.ended = True
        watcher.join()
    summary = json.loads((run / "summary.json").read_text())
    return {"clients": clients, "wall": time.monotonic() - started, "peak": peak.value, **summary}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[2, 10, 50, 200])
    parser.add_argument("--examples", type=int, default=6)
    given = parser.parse_args()
    print(f"{os.cpu_count()} processors; {given.examples} questions a client; up and down: bytes of a client's batches")
    heads = (
        "clients",
        "wall s",
        "s/client",
        "perturb s",
        "LLM s",
        "distill s",
        "evaluate s",
        "prompts",
        "up",
        "down",
        "GB",
        "change",
    )
    print("".join(f"{head:>11}" for head in heads))
    first = 0
    with tempfile.TemporaryDirectory() as folder:
        for clients in given.clients:
            found = measure(clients, given.examples, Path(folder))
            first = first or found["peak"]
            seconds, llm = found["seconds"], found["llm"]
            row = (
                clients, f"{found['wall']:.0f}", f"{found['wall'] / clients:.1f}",
                *(f"{seconds[phase]:.1f}" for phase in ("perturb", "llm", "distill", "evaluate")),
                llm["prompts"], llm["tokens"],
                f"{llm['prompt-bytes'] / clients:.0f}", f"{llm['rationale-bytes'] / clients:.0f}",
                f"{found['peak'] / 1e9:.2f}", f"{found['peak'] / first - 1:+.0%}",
            )  # fmt: skip
            print("".join(f"{cell:>11}" for cell in row), flush=True)


if __name__ == "__main__":
    main()
