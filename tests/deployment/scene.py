"""The federation of the fault tests: nine hospitals, data with a canary, a disk that is small, an app that lies."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from examples.deployment.federation import Federation
from examples.deployment.network import Network
from examples.deployment.parties import Party
from pdss_fl.privacy.counts import TEST_SPLIT
from pdss_fl.privacy.ledger_file import read_ledger

ROOT = Path(__file__).parent.parent.parent
CANARY = "zanzibarqx4471993"
EXAMPLES, QUESTIONS = 4, 20
SETTINGS = [
    "methods='pdss'", f"data.train-examples={EXAMPLES}", f"data.test-examples={QUESTIONS}", "distill.steps=2",
    "slm.hidden-size=32", "slm.layers=1", "llm.max-new-tokens=4",
]  # fmt: skip
LONG = 400.0


@dataclass
class Scene:
    """A federation that runs, and what is asked of it."""

    federation: Federation
    pool: ThreadPoolExecutor
    restarts: list[Future[None]] = field(default_factory=list)

    def home(self, hospital: str) -> Path:
        return self.federation.folder / hospital

    def node(self, hospital: str) -> str:
        """How the strategy's log names a hospital."""
        return f"client {self.federation.node_id(hospital)} "

    def trouble(self, hospital: str, **phases: str) -> None:
        """Say what a hospital's client does wrong in which phase from now on."""
        (self.home(hospital) / "trouble.json").write_text(json.dumps(phases))

    def submit(self, epsilon: float, timeout: float, *more: str) -> Party:
        """Start a run of the app that lies."""
        limits = [f"perturb-timeout={timeout}", f"distill-timeout={timeout}", f"privacy.epsilon={epsilon}"]
        chosen = dict(setting.split("=", 1) for setting in (*SETTINGS, *limits, *more))  # none may be there twice
        return self.federation.submit([f"{key}={value}" for key, value in chosen.items()])

    def journal(self) -> bytes:
        """Return the whole lines of the only run's journal so far."""
        found = [path.read_bytes() for path in self.federation.folder.glob("superlink/runs/run-*/journal.jsonl")]
        return found[0][: found[0].rfind(b"\n") + 1] if found else b""

    def wait_for(self, what: Callable[[], bool], name: str) -> None:
        deadline = time.monotonic() + LONG
        while not what():
            assert time.monotonic() < deadline, f"never came to: {name}"
            time.sleep(0.01)

    def kill_and_restart(self, hospital: str, phase: str) -> None:
        """Kill a hospital that has done the work of a phase and not told anybody, and have it started again."""
        reached = self.home(hospital) / f"reached-{phase}"
        self.wait_for(reached.exists, f"{hospital} in {phase}")
        reached.unlink()
        party = self.federation.hospitals[hospital]
        party.kill()
        self.trouble(hospital)
        self.restarts.append(self.pool.submit(party.keep_starting, "SuperNode ID:", LONG))

    def all_are_back(self) -> None:
        """Wait until every hospital that was killed has been taken in again."""
        for restart in self.restarts:
            restart.result()
        self.restarts.clear()

    def charges(self, hospital: str) -> int:
        """Return the number of texts in a hospital's ledger; see ``charges_in``."""
        return charges_in(self.home(hospital) / "state")

    def status(self, run: str) -> str:
        """Return what the SuperLink says of the run that a log is about."""
        rows = json.loads(self.federation.flwr("list", "hospital", "--format", "json"))["runs"]
        (status,) = (row["status"] for row in rows if str(row["run-id"]) in run)
        return str(status)


@contextmanager
def play(folder: Path, llm: Path, small_disk: str) -> Iterator[Scene]:
    """Start nine hospitals, in network namespaces where the machine allows it, and end them."""
    network = None if Network.trouble() else Network()
    federation = Federation(
        folder / "parties",
        lying_app(folder / "app"),
        9,
        ["--model", str(llm), "--adapter", "", "--batch-size", "1"],
        network,
    )
    for hospital in federation.names:
        (federation.folder / hospital / "data.jsonl").write_text(data())
    make_room = _limit_disk(federation, small_disk)
    try:
        with federation, ThreadPoolExecutor() as pool:
            yield Scene(federation, pool)
    finally:
        make_room()


def charges_in(state: Path) -> int:
    """Return the number of texts in a ledger; no release in it is there twice, a noisy count neither."""
    found = read_ledger(state / "ledger.jsonl")
    assert not found.trouble
    assert len({(line["example"], line["recipe"]) for line in found.lines}) == len(found.lines)
    return sum(line["example"] != TEST_SPLIT for line in found.lines)


def lying_app(folder: Path, client: str = "troubled") -> Path:
    """Return a copy of the app with another ClientApp, a file beside this one, as whoever submits a run could."""
    folder.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "pdss_fl", folder / "pdss_fl", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(Path(__file__).with_name(f"{client}.py"), folder / "pdss_fl")
    project = folder / "pyproject.toml"
    project.write_text(project.read_text().replace("pdss_fl.client_app:app", f"pdss_fl.{client}:app"))
    return folder


def data() -> str:
    words = ("time", "people", "water", "house")
    rows = [
        {"question": f"{CANARY} has which {words[i % 4]} {i}?", "choices": [*words, CANARY], "answer": words[i % 4]}
        for i in range(4 * QUESTIONS)  # a quarter is held out
    ]
    return "\n".join(map(json.dumps, rows))


def _limit_disk(federation: Federation, hospital: str) -> Callable[[], object]:
    """Give a hospital's state 64 kB: enough for its ledger, too little for a small model; return the way back."""
    state = federation.folder / hospital / "state"
    state.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(state)]
    if subprocess.run(mount, capture_output=True).returncode == 0:
        return lambda: subprocess.run(["umount", str(state)], check=True)
    party = federation.hospitals[hospital]  # not root: no file of its processes grows beyond this
    party.command = ["prlimit", "--fsize=100000", *party.command]
    return lambda: None
