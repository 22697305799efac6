"""What a large federation needs, from unit costs that are measured here and rates that you state, as a table.

    python examples/scale/estimate.py --clients 10000 --prompts 1000 --gpu-tokens 3400 --gpus 3 --gpu-price 3

Measured on this machine, in this run, unless ``--units`` gives them: bytes of a prompt and of a rationale on the wire,
a client's seconds to perturb a prompt, to decode a rationale, to train a step and to answer a question, and the bytes
of the app that every client fetches. Everything else is stated; the table says of each line which of the two it is.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pdss_fl
from pdss_fl.client import DistillationClient
from pdss_fl.config import RunSettings
from pdss_fl.messages import Finish, PromptBatch, Rationale, RationaleBatch
from pdss_fl.policy import NodePolicy

_RATIONALE = "A robin is a bird. Birds have feathers and lay eggs. So the answer is feathers."
_FEW, _MANY = 10, 40  # steps: what more of them take is a step's time, the rest is the decoder's
_QUESTIONS = 50
_DEFAULTS = RunSettings()


@dataclass(frozen=True)
class UnitCosts:
    """Bytes on the wire and a client's seconds, each for one; ``app_bytes`` is what a client fetches once."""

    prompt_bytes: float
    rationale_bytes: float
    perturb_seconds: float
    decode_seconds: float
    step_seconds: float
    question_seconds: float
    app_bytes: float


def measure(sample: int = 200) -> UnitCosts:
    """Let clients of the built-in set perturb ``sample`` prompts, and train on made-up rationales."""
    few, many = (_one_client(sample, steps) for steps in (_FEW, _MANY))
    step = max(0.0, many.trained - few.trained) / (_MANY - _FEW)
    decode = max(0.0, few.trained - _FEW * step) / few.count
    app = io.BytesIO()
    with zipfile.ZipFile(app, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(Path(pdss_fl.__path__[0]).rglob("*.py")):
            file.write(path)
    return UnitCosts(
        few.sent / few.count, few.received / few.count, few.perturbed / few.count, decode, step,
        many.evaluated / _QUESTIONS, len(app.getvalue()),
    )  # fmt: skip


@dataclass(frozen=True)
class _Client:
    """What one client did: prompts, bytes, and seconds."""

    count: int
    sent: int
    received: int
    perturbed: float
    trained: float
    evaluated: float


def _one_client(sample: int, steps: int) -> _Client:
    counts = {"data.train-examples": sample, "data.test-examples": _QUESTIONS, "distill.steps": steps}
    settings = RunSettings.from_run_config({**counts, "distill.filter": "off"})
    with tempfile.TemporaryDirectory() as folder:
        client = DistillationClient(settings, NodePolicy.simulation(Path(folder), settings), 0)
        times = [time.monotonic()]
        prompts = client.perturb("pdss", 1)
        times.append(time.monotonic())
        count = len(PromptBatch.parse(prompts).prompts)
        rows = tuple(Rationale(i, _RATIONALE, Finish.STOP, 20) for i in range(count))
        rationales = RationaleBatch(rows, "estimate").serialize()
        client.distill("pdss", 1, rationales)
        times.append(time.monotonic())
        client.evaluate("pdss", 1)
        times.append(time.monotonic())
    perturbed, trained, evaluated = (after - before for before, after in pairwise(times))
    return _Client(count, len(prompts), len(rationales), perturbed, trained, evaluated)


def estimate(unit: UnitCosts, given: argparse.Namespace) -> list[tuple[str, str, str, str]]:
    """Return the table's lines: what, over the relay, over the direct channel, and where it comes from."""
    prompts = given.clients * given.prompts
    llm = prompts * given.tokens / given.gpu_tokens  # seconds of one GPU
    up, down, fetched = prompts * unit.prompt_bytes, prompts * unit.rationale_bytes, given.clients * unit.app_bytes
    own = given.prompts * (unit.perturb_seconds + unit.decode_seconds)
    own += given.steps * unit.step_seconds + given.questions * unit.question_seconds
    measured = "given" if given.units else "measured"
    rows: list[tuple[str, str, str, str]] = []
    columns = []
    for trips, relayed in ((3, True), (2, False)):
        orders = trips * given.clients * given.order
        link = (orders + up * relayed, orders + down * relayed + fetched)
        server = (up * (not relayed), down * (not relayed))
        line = (sum(link) + sum(server)) * 8 / (given.line * 1e6)
        flower = trips * (given.trip + given.clients * given.message)
        wall = flower + own + llm / given.gpus + line
        columns.append(
            (f"{link[0] / 1e9:.3f}", f"{link[1] / 1e9:.3f}", f"{sum(server) / 1e9:.3f}", f"{line:.1f}", str(trips),
             f"{flower / 60:.1f}", f"{own / 60:.1f}", f"{wall / 3600:.2f}")
        )  # fmt: skip
    for name, value, source in (
        ("a prompt on the wire, bytes", f"{unit.prompt_bytes:.0f}", measured),
        (
            "a rationale on the wire, bytes",
            f"{unit.rationale_bytes:.0f}",
            f"{measured}, of {len(_RATIONALE)} characters",
        ),
        ("prompts", f"{prompts:,}", "stated; all of them distinct, at worst"),
        ("tokens that the LLM writes", f"{prompts * given.tokens:,.0f}", f"{given.tokens:g} a prompt, at most"),
        ("LLM, GPU hours", f"{llm / 3600:.2f}", f"stated: {given.gpu_tokens:g} tokens/s a GPU"),
        ("LLM, money", f"{llm / 3600 * given.gpu_price:.2f}", f"stated: {given.gpu_price:g} a GPU hour"),
        ("LLM, hours", f"{llm / 3600 / given.gpus:.2f}", f"stated: {given.gpus} GPUs"),
    ):
        rows.append((name, value, value, source))
    for (name, source), relay, direct in zip(
        (
            ("SuperLink, in, GB", f"prompts {measured}; orders stated, {given.order:g} bytes a message"),
            (
                "SuperLink, out, GB",
                f"rationales and orders, and the app, {unit.app_bytes / 1e3:.0f} kB a client, {measured}",
            ),
            ("LLM server and clients, GB", measured),
            ("on a line, s", f"stated: {given.line:g} Mbit/s"),
            ("Flower's trips", "of a round: prompts, training, evaluation"),
            ("Flower's trips, min", f"stated: {given.trip:g} s each, and {given.message:g} s a client's message"),
            ("a client's own work, min", f"{measured}, from-scratch SLM; clients work side by side"),
            ("wall time, h", "LLM, line, trips and a client's work, one after the other"),
        ),
        *columns,
        strict=True,
    ):
        rows.append((name, relay, direct, source))
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--prompts", type=int, default=1_000, help="of each client")
    parser.add_argument("--tokens", type=float, default=_DEFAULTS.llm.max_new_tokens, help="written for a prompt")
    parser.add_argument("--gpu-tokens", type=float, default=3_400, help="that one GPU writes in a second")
    parser.add_argument("--gpus", type=int, default=3)
    parser.add_argument("--gpu-price", type=float, default=3.0, help="of one GPU for an hour")
    parser.add_argument("--line", type=float, default=1_000, help="of the SuperLink and of the LLM server, in Mbit/s")
    parser.add_argument("--trip", type=float, default=6.0, help="seconds of a Flower trip that polling alone takes")
    parser.add_argument("--message", type=float, default=0.1, help="seconds that the server's side takes a message")
    parser.add_argument("--order", type=float, default=4_000, help="bytes of a message without prompts or rationales")
    parser.add_argument("--steps", type=int, default=_DEFAULTS.distill.steps, help="of a client's training")
    parser.add_argument("--questions", type=int, default=_DEFAULTS.data.test_examples, help="that a client evaluates")
    names = ", ".join(UnitCosts.__annotations__)
    parser.add_argument("--units", nargs=7, type=float, metavar="N", help=f"instead of measuring: {names}")
    given = parser.parse_args(arguments)
    table = [("", "relay", "direct channel", "from"), ("---",) * 4]
    table += estimate(UnitCosts(*given.units) if given.units else measure(), given)
    for row in table:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
