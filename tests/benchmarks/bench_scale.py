"""Seconds, bytes and memory of a whole simulated run against its number of clients.

    python tests/benchmarks/bench_scale.py [--clients 2 10 50 200] [--examples 6]
    python tests/benchmarks/bench_scale.py --only-prompts     # how many of the prompts are distinct, without a run

Real runs under a SuperLink of their own, each client with its own ledger and small model, the bundled LLM for all of
them. Prompts of equal text are asked once, so the LLM's tokens follow the column of distinct prompts. Ray runs as many
clients at a time as there are processors. Memory is that of all processes of the run together, without what they
share, at its highest; the column beside it is the change against the smallest run.
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

from pdss_fl.client import DistillationClient
from pdss_fl.config import RunSettings
from pdss_fl.launcher import run_simulation
from pdss_fl.messages import PromptBatch
from pdss_fl.policy import NodePolicy

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


def run_config(examples: int) -> dict[str, str | int]:
    """Return the settings of a run in which each client has ``examples`` questions."""
    return {
        "methods": "pdss", "data.train-examples": examples, "data.test-examples": 2, "distill.steps": 20,
        "slm.hidden-size": 32, "slm.layers": 1,
    }  # fmt: skip


def prompts_only(clients: int, examples: int) -> tuple[int, int]:
    """Let the clients perturb, one after the other; return how many prompts there are, and how many distinct texts."""
    settings, texts = RunSettings.from_run_config(run_config(examples)), []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(clients):
            policy = NodePolicy.simulation(Path(folder) / str(i), settings)
            batch = PromptBatch.parse(DistillationClient(settings, policy, 0, i, clients).perturb("pdss", 1))
            texts += [(prompt.question, prompt.choices) for prompt in batch.prompts]
    return len(texts), len(set(texts))


def measure(clients: int, examples: int, folder: Path) -> dict[str, Any]:
    """Run ``clients`` clients with ``examples`` questions each once; return what the run tells and its peak."""
    settings = {**run_config(examples), "output-dir": str(folder)}
    overrides = [f'{key}="{value}"' if isinstance(value, str) else f"{key}={value}" for key, value in settings.items()]
    peak, started = Peak(), time.monotonic()
    watcher = threading.Thread(target=peak.watch)
    watcher.start()
    try:
        run = run_simulation(ROOT, overrides, clients)
    finally:
        peak.ended = True
        watcher.join()
    summary = json.loads((run / "summary.json").read_text())
    own = {"number": clients, "wall": time.monotonic() - started, "peak": peak.value, "distinct": written(run)}
    return {**summary, **own}


def written(run: Path) -> int:
    """Return how many prompts the LLM answered: whoever else asked in equal words got the same answer for 0 tokens."""
    rows = map(json.loads, (run / "journal.jsonl").read_text().splitlines())
    return sum(row["kind"] == "answer" and row["tokens"] > 0 for row in rows)


def columns(found: dict[str, Any], first: dict[str, Any]) -> dict[str, str]:
    """Return the table's row, by head; ``first`` is the smallest run."""
    number, seconds, llm = found["number"], found["seconds"], found["llm"]
    return {
        "clients": str(number),
        "wall s": f"{found['wall']:.0f}",
        "s/client": f"{found['wall'] / number:.1f}",
        **{f"{phase} s": f"{seconds[phase]:.1f}" for phase in ("perturb", "llm", "distill", "evaluate")},
        "prompts": str(llm["prompts"]),
        "distinct": str(found["distinct"]),
        "tokens": str(llm["tokens"]),
        "tok/dist": f"{llm['tokens'] / found['distinct']:.1f}",
        "up": f"{llm['prompt-bytes'] / number:.0f}",
        "down": f"{llm['rationale-bytes'] / number:.0f}",
        "GB": f"{found['peak'] / 1e9:.2f}",
        "change": f"{found['peak'] / first['peak'] - 1:+.0%}",
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[2, 10, 50, 200])
    parser.add_argument("--examples", type=int, default=6)
    parser.add_argument("--only-prompts", action="store_true", help="count prompts and distinct ones, without a run")
    given = parser.parse_args()
    if given.only_prompts:
        for clients in given.clients:
            print("{} clients: {} prompts, {} distinct".format(clients, *prompts_only(clients, given.examples)))
        return
    print(f"{os.cpu_count()} processors; {given.examples} questions a client; up and down: bytes of a client's batches")
    first: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for clients in given.clients:
            found = measure(clients, given.examples, Path(folder))
            row = columns(found, first or found)
            if not first:
                first = found
                print("".join(f"{head:>11}" for head in row))
            print("".join(f"{cell:>11}" for cell in row.values()), flush=True)


if __name__ == "__main__":
    main()
