"""What Flower's trips add to the LLM's time for 256 prompts of one client, in a simulation and a real deployment.

Run from the repository's root: ``python tests/benchmarks/bench_flower.py [--quick] [--check]``. A SuperLink, a
SuperNode and ``pdss serve`` with the bundled LLM run as processes on loopback, and the app runs on them three
times a round: over the relay as Flower itself waits for replies, over the relay as this project does, and over the
direct channel; then over the relay with ``pdss node`` as the client, so that the process which every message
starts has nothing to import. All send the same stored prompts, as other tenants, so that the LLM writes every time.
Before that, the app runs as ``pdss run`` simulates it, with the same LLM server and workers that are there already.
The apps are the real ones, with a note of when what happened (``tests/deployment/timed.py``). The client's own work
(reading its data, perturbing, decoding, training) is no overhead; all else between the first message and the last
reply is.

With ``--check`` the program ends with 1 if a channel's overhead is more than 5 % of the LLM's time.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from examples.deployment.federation import START_SECONDS, Federation
from examples.deployment.parties import Party
from pdss_fl.launcher import run_simulation
from pdss_fl.processes import program
from tests.benchmarks.bars import Bars
from tests.deployment.scene import lying_app

QUICK = "--quick" in sys.argv
PROMPTS, ROUNDS = (32, 1) if QUICK else (256, 2)
HOSPITAL = "hospital-1"
SETTINGS = [
    "methods='pdss'", f"data.train-examples={PROMPTS}", "data.test-examples=20", "distill.steps=2",
    "slm.hidden-size=32", "slm.layers=1",
]  # fmt: skip
PERTURB, DISTILL = "query.perturb", "train.distill"
SIMULATION = "simulation"
BEFORE, RELAY, DIRECT, NODE = "relay, Flower's own waiting", "relay", "direct", "relay with pdss node"
SOURCES = {
    "fetch": "until the SuperNode asked (every 3 s) and started a process",
    "start": "start of that process, and its imports",
    "back": "from the client's reply until the strategy had it",
    "exchange": "messages to and from the LLM server",
}


@dataclass(frozen=True)
class Times:
    """Seconds of one run: what the LLM took, from the first message to the last reply, and where the rest went."""

    llm: float
    whole: float
    work: float
    sources: dict[str, float]

    @property
    def overhead(self) -> float:
        """What is neither the LLM nor the client's own work, as a share of the LLM's time."""
        return sum(self.sources.values()) / self.llm


def main() -> None:
    """Print both channels' overhead and where it comes from."""
    with tempfile.TemporaryDirectory(prefix="pdss-bench-") as scratch:
        folder = Path(scratch)
        with Federation(folder / "parties", timed_app(folder / "app"), hospitals=1) as federation:
            allow_direct(federation)
            found = {way: list[Times]() for way in (SIMULATION, BEFORE, RELAY, DIRECT, NODE)}

            def measure(*ways: str) -> None:
                for way in ROUNDS * ways:
                    found[way].append(run(federation, way))
                    print(f"{way}: {found[way][-1].overhead:.1%} more than the LLM's time", flush=True)

            measure(SIMULATION)
            measure(BEFORE, RELAY, DIRECT)
            with node_beside(federation):
                measure(NODE)
    bars = Bars()
    for way, times in found.items():
        show(way, times)
        if way != BEFORE:
            share = statistics.median(t.overhead for t in times)
            bars.at_most(f"{way}: Flower and gRPC as a share of the LLM's time", share, 0.05)
    bars.verdict()


def timed_app(folder: Path) -> Path:
    """Return a copy of the app whose two halves note times."""
    project = lying_app(folder, "timed") / "pyproject.toml"
    project.write_text(project.read_text().replace("pdss_fl.server_app:app", "pdss_fl.timed:server_app"))
    return folder


def allow_direct(federation: Federation) -> None:
    """Let the hospital be sent to the LLM server."""
    home = federation.folder / HOSPITAL
    with open(home / "policy.toml", "a") as file:
        file.write(f'allowed-llm-addresses = "{federation.llm_address}"\nllm-root-certificates = "{home / "ca.crt"}"\n')


@contextmanager
def node_beside(federation: Federation) -> Iterator[None]:
    """Let ``pdss node`` be the client, and the SuperNode know its socket only."""
    home, supernode = federation.folder / HOSPITAL, federation.hospitals[HOSPITAL]
    supernode.stop()
    socket = federation.folder / "s"
    node = Party("node", home, [program("pdss"), "node", str(home / "policy.toml"), "--socket", str(socket)])
    command = list(supernode.command)
    command[command.index("--node-config") + 1] = f'node-socket="{socket}"'
    federation.hospitals[HOSPITAL] = Party(HOSPITAL, home, command)
    try:
        node.start()
        node.wait_for("node at", START_SECONDS)
        federation.hospitals[HOSPITAL].keep_starting("SuperNode ID:", START_SECONDS)
        yield
    finally:
        node.stop()


def run(federation: Federation, way: str) -> Times:
    """Run the app one way and return its times."""
    notes = [federation.folder / name / "times.jsonl" for name in ("superlink", HOSPITAL, SIMULATION)]
    for path in notes:
        path.unlink(missing_ok=True)
    marker = federation.folder / "superlink" / "flower-polling"
    marker.unlink(missing_ok=True)
    if way == BEFORE:
        marker.touch()
    since = len(federation.llm.text())
    if way == SIMULATION:
        simulate(federation)
    else:
        channel = DIRECT if way == DIRECT else "relay"
        ended = federation.run([*SETTINGS, f"llm.channel='{channel}'"])
        if ended.directory is None:
            raise SystemExit(f"{way}: the run failed\n{ended.text}")
    answered = re.findall(r"OK: (\d+) rationales in ([\d.]+) s", federation.llm.text()[since:])
    assert sum(int(count) for count, _ in answered) > 0.9 * PROMPTS, "equal prompts are asked once, and few are equal"
    lines = [line for path in notes if path.exists() for line in path.read_text().splitlines()]
    at = dict[str, float](map(json.loads, lines))
    return times(at, sum(float(seconds) for _, seconds in answered), way)


def simulate(federation: Federation) -> None:
    """Run the app as ``pdss run`` does, with the federation's LLM server; an evaluation first starts Ray's worker."""
    superlink, home = federation.folder / "superlink", federation.folder / SIMULATION / "flwr"
    os.environ["PDSS_TOKEN_KEY"] = str(superlink / "token.key")
    llm = ["llm.backend='grpc'", f"llm.address='{federation.llm_address}'"]
    llm += [f"llm.root-certificates='{superlink / 'ca.crt'}'", f"output-dir='{home.parent / 'runs'}'"]
    settings = ["methods='untrained pdss'", *SETTINGS[1:], *llm]
    run_simulation(federation.app, settings, clients=1, home=home)


def times(at: dict[str, float], llm: float, way: str) -> Times:
    """Say where the time went between the moments of a run."""
    steps = [DISTILL] if way == DIRECT else [PERTURB, DISTILL]
    first, last = ("client.perturb ends", "client.distill begins")
    if way != DIRECT:
        first, last = (f"{PERTURB} received", f"{DISTILL} sent")
    asking = at[last] - at[first]
    process = {step: max(at[f"{step} process"], at[f"{step} sent"]) for step in steps}  # a simulation's are older
    sources = {
        "fetch": sum(process[step] - at[f"{step} sent"] for step in steps),
        "start": sum(at[f"{step} begins"] - process[step] for step in steps),
        "back": sum(at[f"{step} received"] - at[f"{step} ends"] for step in steps),
        "exchange": asking - llm,
    }
    work = sum(at[f"{step} ends"] - at[f"{step} begins"] for step in steps) - (asking if way == DIRECT else 0.0)
    return Times(llm, at[f"{DISTILL} received"] - at[f"{steps[0]} sent"], work, sources)


def show(way: str, times: list[Times]) -> None:
    """Print one way's table: medians over the rounds."""
    llm, share = (statistics.median(getattr(t, name) for t in times) for name in ("llm", "overhead"))
    whole, work = (statistics.median(getattr(t, name) for t in times) for name in ("whole", "work"))
    print(f"{way}: {PROMPTS} prompts, {llm:.1f} s of the LLM, {whole:.1f} s in all, {work:.1f} s the client's own work")
    print(f"  overhead {share:.1%} of the LLM's time; 5 % from about {PROMPTS * share / 0.05:,.0f} prompts on")
    for name, text in SOURCES.items():
        seconds = statistics.median(t.sources[name] for t in times)
        print(f"  {seconds:6.2f} s  {seconds / llm:6.1%}  {text}")


if __name__ == "__main__":
    main()
