"""What a large federation needs, from unit costs that are measured here and prices that you state.

    python examples/scale/estimate.py --clients 10000 --prompts 1000 --gpu-tokens 5000 --gpu-price 2

Measured on this machine, in this run: the bytes of a prompt and of a rationale on the wire, a client's seconds to
perturb a prompt and to train a step. Stated by you: how many tokens a second one GPU writes with your LLM
(a run's own ``summary.json`` has tokens and seconds), what it costs an hour, and the SuperLink's line.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pdss_fl.client import DistillationClient
from pdss_fl.config import RunSettings
from pdss_fl.messages import Finish, PromptBatch, Rationale, RationaleBatch
from pdss_fl.policy import NodePolicy

_SAMPLE = 200  # prompts that are measured
_RATIONALE = "A robin is a bird. Birds have feathers and lay eggs. So the answer is feathers."
_STEPS = 30


@dataclass(frozen=True)
class UnitCosts:
    """What one prompt costs: bytes on the wire each way, and a client's seconds."""

    prompt_bytes: float
    rationale_bytes: float
    perturb_seconds: float
    step_seconds: float


def measure() -> UnitCosts:
    """Let one client of the built-in set perturb, and train for a few steps on made-up rationales."""
    settings = RunSettings.from_run_config(
        {"data.train-examples": _SAMPLE, "data.test-examples": 1, "distill.steps": _STEPS, "distill.filter": "off"}
    )
    with tempfile.TemporaryDirectory() as folder:
        client = DistillationClient(settings, NodePolicy.simulation(Path(folder), settings), 0)
        started = time.monotonic()
        prompts = client.perturb("pdss", 1)
        perturbed = time.monotonic()
        count = len(PromptBatch.parse(prompts).prompts)
        rows = tuple(Rationale(i, _RATIONALE, Finish.STOP, 20) for i in range(count))
        rationales = RationaleBatch(rows, "estimate").serialize()
        client.distill("pdss", 1, rationales)
        trained = time.monotonic()
    return UnitCosts(
        len(prompts) / count, len(rationales) / count, (perturbed - started) / count, (trained - perturbed) / _STEPS
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the estimate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--prompts", type=int, default=1_000, help="of each client")
    parser.add_argument("--tokens", type=float, default=60, help="that the LLM writes for a prompt")
    parser.add_argument("--gpu-tokens", type=float, default=5_000, help="that one GPU writes in a second")
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--gpu-price", type=float, default=2.0, help="of one GPU for an hour")
    parser.add_argument("--line", type=float, default=1_000, help="of the SuperLink, in Mbit/s")
    parser.add_argument("--steps", type=int, default=RunSettings().distill.steps, help="of a client's training")
    given = parser.parse_args(arguments)
    unit = measure()
    prompts = given.clients * given.prompts
    gpu_hours = prompts * given.tokens / given.gpu_tokens / 3600
    up, down = prompts * unit.prompt_bytes, prompts * unit.rationale_bytes
    for name, value in (
        ("a prompt on the wire", f"{unit.prompt_bytes:.0f} bytes (measured)"),
        ("a rationale on the wire", f"{unit.rationale_bytes:.0f} bytes (measured, of {len(_RATIONALE)} characters)"),
        ("a client perturbs", f"{given.prompts * unit.perturb_seconds:.1f} s (measured)"),
        ("a client trains", f"{given.steps * unit.step_seconds / 60:.1f} min (measured, scratch SLM, this processor)"),
        ("prompts", f"{prompts:,}, distinct at worst"),
        ("LLM", f"{prompts * given.tokens:,.0f} tokens: {gpu_hours:,.0f} GPU-hours at {given.gpu_tokens:g} tokens/s"),
        ("LLM, wall time", f"{gpu_hours / given.gpus:,.1f} h on {given.gpus} GPUs"),
        ("LLM, money", f"{gpu_hours * given.gpu_price:,.0f} at {given.gpu_price:g} an hour"),
        ("SuperLink, in", f"{up / 1e9:.2f} GB over the relay, {up * 8 / given.line / 1e6:.0f} s of its line"),
        ("SuperLink, out", f"{down / 1e9:.2f} GB over the relay, {down * 8 / given.line / 1e6:.0f} s of its line"),
        ("SuperLink, direct channel", "orders and counts only: a few kB a client and step"),
    ):
        print(f"{name:26} {value}")


if __name__ == "__main__":
    main()
