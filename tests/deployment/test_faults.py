"""Faults of a deployed federation, with real processes: what dies, lies, is late or has no room.

One federation of nine hospitals carries three runs one after the other: the ServerApp is killed; hospitals
misbehave and are killed in each phase; the LLM server is away. Where the machine allows it, each party has a
network namespace.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from examples.deployment.federation import Federation, Outcome, outcome
from examples.deployment.network import Network
from examples.deployment.parties import Party
from pdss_fl.privacy.ledger_file import read_ledger

ROOT = Path(__file__).parent.parent.parent
CANARY = "zanzibarqx4471993"
GOOD, SMALL, DISTILL, EVALUATE, SLOW, FAIL, GARBAGE, ORDINALS, FLOOD = (f"hospital-{n}" for n in range(1, 10))
LIARS = {FAIL: "fail", GARBAGE: "garbage", ORDINALS: "ordinals", FLOOD: "flood"}
HONEST = (GOOD, SMALL, DISTILL, EVALUATE)
EXAMPLES, QUESTIONS = 4, 20
SETTINGS = [
    "methods='pdss'", f"data.train-examples={EXAMPLES}", f"data.test-examples={QUESTIONS}", "distill.steps=2",
    "slm.hidden-size=32", "slm.layers=1", "llm.max-new-tokens=4",
]  # fmt: skip
LONG = 200.0


@dataclass
class Scene:
    """The federation and what its runs left to look at."""

    federation: Federation
    app: Path

    def home(self, hospital: str) -> Path:
        return self.federation.folder / hospital

    def trouble(self, hospital: str, **phases: str) -> None:
        (self.home(hospital) / "trouble.json").write_text(json.dumps(phases))

    def charges(self, hospital: str) -> int:
        """Number of releases in a hospital's ledger, of which none is there twice."""
        found = read_ledger(self.home(hospital) / "state" / "ledger.jsonl")
        assert not found.trouble
        assert len({(line["example"], line["recipe"]) for line in found.lines}) == len(found.lines)
        return len(found.lines)

    def submit(self, epsilon: float, timeout: float) -> Party:
        limits = [f"perturb-timeout={timeout}", f"distill-timeout={timeout}", f"privacy.epsilon={epsilon}"]
        return self.federation.submit([*SETTINGS, *limits], self.app)

    def kill_and_restart(self, hospital: str, phase: str) -> None:
        """Kill a hospital that has done the work of a phase and not told anybody."""
        reached = self.home(hospital) / f"reached-{phase}"
        deadline = time.monotonic() + LONG
        while not reached.exists():
            assert time.monotonic() < deadline, f"{hospital} never came to {phase}"
            time.sleep(0.1)
        party = self.federation.hospitals[hospital]
        party.kill()
        self.trouble(hospital)
        party.start()


@dataclass
class Runs:
    """How the three runs went, and the charges in the honest hospitals' ledgers after each."""

    after_kill: dict[str, int]
    killed_status: str
    troubled: Outcome
    after_trouble: dict[str, int]
    away: Outcome
    after_away: dict[str, int]


@pytest.fixture(scope="module")
def scene(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("federation")
    app = _troubled_app(folder / "app")
    options = ["--model", str(tiny), "--adapter", ""]
    network = None if Network.trouble() else Network()
    federation = Federation(folder / "parties", app, 9, options, network)
    scene = Scene(federation, app)
    for hospital in federation.names:
        (scene.home(hospital) / "data.jsonl").write_text(_data())
    unmount = _small_disk(federation, SMALL)
    try:
        with federation:
            yield scene
    finally:
        unmount()


@pytest.fixture(scope="module")
def runs(scene: Scene) -> Runs:
    for hospital, trouble in LIARS.items():
        scene.trouble(hospital, perturb=trouble)
    scene.trouble(SLOW, perturb="fail")
    seconds, status = _kill_the_server_app(scene)
    after_kill = {name: scene.charges(name) for name in HONEST}
    troubled = _trouble(scene, 1.5 * seconds + 12)
    after_trouble = {name: scene.charges(name) for name in HONEST}
    away = _llm_away(scene)
    after_away = {name: scene.charges(name) for name in HONEST}
    return Runs(after_kill, status, troubled, after_trouble, away, after_away)


def _kill_the_server_app(scene: Scene) -> tuple[float, str]:
    """Kill it when prompts have come and the LLM is away; return the trip's seconds and the run's status."""
    party = scene.submit(7, LONG)
    party.wait_for("method pdss starts", LONG)
    started = time.monotonic()
    scene.federation.llm.kill()
    party.wait_for("LLM: ", LONG, party.text().index("method pdss starts"))
    seconds = time.monotonic() - started
    for process in psutil.Process(scene.federation.superlink.pid).children(recursive=True):
        if "flwr-serverapp" in " ".join(process.cmdline()):
            process.kill()
    party.wait(LONG)
    scene.federation.llm.start()
    (run,) = json.loads(scene.federation.flwr("list", "hospital", "--format", "json"))["runs"]
    return seconds, run["status"]


def _trouble(scene: Scene, timeout: float) -> Outcome:
    (scene.home(SLOW) / "seconds").write_text(str(timeout + 5))
    scene.trouble(SLOW, perturb="slow")
    for hospital, phase in ((SMALL, "perturb"), (DISTILL, "distill"), (EVALUATE, "evaluate")):
        scene.trouble(hospital, **{phase: "hang"})
    scene.federation.llm.wait_for("serving ", LONG)
    party = scene.submit(6, timeout)
    for hospital, phase in ((SMALL, "perturb"), (DISTILL, "distill"), (EVALUATE, "evaluate")):
        scene.kill_and_restart(hospital, phase)
    party.wait(LONG)
    scene.trouble(SLOW, perturb="fail")
    return outcome(party)


def _llm_away(scene: Scene) -> Outcome:
    party = scene.submit(6, LONG)
    party.wait_for("method pdss starts", LONG)
    scene.federation.llm.kill()
    party.wait_for("LLM: ", LONG, party.text().index("method pdss starts"))
    time.sleep(5)  # the strategy asks in vain meanwhile
    scene.federation.llm.start()
    party.wait(LONG)
    return outcome(party)


def _troubled_app(folder: Path) -> Path:
    """A copy of the app with another ClientApp."""
    folder.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "pdss_fl", folder / "pdss_fl", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(Path(__file__).with_name("troubled.py"), folder / "pdss_fl")
    project = folder / "pyproject.toml"
    project.write_text(project.read_text().replace("pdss_fl.client_app:app", "pdss_fl.troubled:app"))
    return folder


def _data() -> str:
    words = ("time", "people", "water", "house")
    rows = [
        {"question": f"{CANARY} has which {words[i % 4]} {i}?", "choices": [*words, CANARY], "answer": words[i % 4]}
        for i in range(EXAMPLES + QUESTIONS)
    ]
    return "\n".join(map(json.dumps, rows))


def _small_disk(federation: Federation, hospital: str):
    """Give a hospital's state 64 kB: enough for its ledger, too little for a small model; return the way back."""
    state = federation.folder / hospital / "state"
    state.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(state)]
    if subprocess.run(mount, capture_output=True).returncode == 0:
        return lambda: subprocess.run(["umount", str(state)], check=True)
    party = federation.hospitals[hospital]  # not root: no file of its processes grows beyond this
    party.command = ["prlimit", "--fsize=100000", *party.command]
    return lambda: None


def test_dump(runs: Runs, scene: Scene) -> None:
    import pickle

    open("/tmp/runs.pickle", "wb").write(pickle.dumps(runs))
    shutil.copytree(scene.federation.folder, "/tmp/faults", dirs_exist_ok=True)
    Path("/tmp/ids").write_text(json.dumps({n: scene.federation.node_id(n) for n in scene.federation.names}))
