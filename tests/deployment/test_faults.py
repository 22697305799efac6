"""Faults of a deployed federation, with real processes: what dies, lies, is late or has no room.

One federation of nine hospitals carries three runs one after the other: the ServerApp is killed; hospitals
misbehave and are killed in each phase; the LLM server is away.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from examples.deployment.federation import Outcome, outcome
from examples.deployment.network import Network
from examples.deployment.parties import Party
from tests.deployment.scene import CANARY, EXAMPLES, LONG, QUESTIONS, Scene, play

GOOD, SMALL, DISTILL, EVALUATE, SLOW, FAIL, GARBAGE, ORDINALS, FLOOD = (f"hospital-{n}" for n in range(1, 10))
HONEST = (GOOD, SMALL, DISTILL, EVALUATE)
LIARS = {FAIL: "fail", GARBAGE: "garbage", ORDINALS: "ordinals", FLOOD: "flood"}
KILLED = {SMALL: "perturb", DISTILL: "distill", EVALUATE: "evaluate"}

pytestmark = pytest.mark.timeout(1500)  # of which most is waiting; on an idle machine minutes less


@dataclass
class Runs:
    """How the three runs went, and the charges in the honest hospitals' ledgers after each."""

    killed: Outcome
    killed_status: str
    after_kill: dict[str, int]
    troubled: Outcome
    after_trouble: dict[str, int]
    away: Outcome
    after_away: dict[str, int]


@pytest.fixture(scope="module")
def scene(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with play(tmp_path_factory.mktemp("federation"), tiny, small_disk=SMALL) as scene:
        yield scene


@pytest.fixture(scope="module")
def runs(scene: Scene) -> Runs:
    for hospital, trouble in LIARS.items():
        scene.trouble(hospital, perturb=trouble)
    scene.trouble(SLOW, perturb="fail")
    killed, seconds = kill_the_server_app(scene)
    after_kill = {name: scene.charges(name) for name in HONEST}
    troubled = misbehave(scene, 1.5 * seconds + 12)
    after_trouble = {name: scene.charges(name) for name in HONEST}
    killed.wait(LONG)  # Flower takes a minute to notice
    status = scene.status(killed.text())
    away = ask_without_an_llm(scene)
    after_away = {name: scene.charges(name) for name in HONEST}
    return Runs(outcome(killed), status, after_kill, troubled, after_trouble, away, after_away)


def kill_the_server_app(scene: Scene) -> tuple[Party, float]:
    """Kill it when prompts have come and the LLM is away; return its run and the seconds of a trip to all clients."""
    run, seconds = _until_the_llm_is_missed(scene, 7)
    for process in psutil.Process(scene.federation.superlink.pid).children(recursive=True):
        if "flwr-serverapp" in " ".join(process.cmdline()):
            process.kill()
    since = len(scene.federation.llm.text())
    scene.federation.llm.start()
    scene.federation.llm.wait_for("serving ", LONG, since)
    return run, seconds


def misbehave(scene: Scene, timeout: float) -> Outcome:
    """Run with liars and a slow hospital, and kill one hospital in each phase."""
    (scene.home(SLOW) / "seconds").write_text(str(timeout + 5))
    scene.trouble(SLOW, perturb="slow")
    for hospital, phase in KILLED.items():
        scene.trouble(hospital, **{phase: "hang"})
    run = scene.submit(6, timeout)
    for hospital, phase in KILLED.items():
        scene.kill_and_restart(hospital, phase)
    run.wait(LONG)
    scene.trouble(SLOW, perturb="fail")
    for restart in scene.restarts:
        restart.result()
    return outcome(run)


def ask_without_an_llm(scene: Scene) -> Outcome:
    """Run while the LLM server is away when it is wanted, and comes back later."""
    run, _ = _until_the_llm_is_missed(scene, 6)
    time.sleep(60)  # the strategy asks in vain meanwhile
    scene.federation.llm.start()
    run.wait(LONG)
    return outcome(run)


def _until_the_llm_is_missed(scene: Scene, epsilon: float) -> tuple[Party, float]:
    run = scene.submit(epsilon, LONG)
    run.wait_for("method pdss starts", LONG)
    started = time.monotonic()
    scene.federation.llm.kill()
    run.wait_for("LLM: ", LONG, run.text().index("method pdss starts"))
    return run, time.monotonic() - started


def lines(run: Outcome, what: str) -> str:
    """The lines of a run that say something."""
    return "\n".join(line for line in run.text.splitlines() if what in line)


def answered(run: Outcome) -> int:
    """Questions that were counted in a run's result."""
    assert run.directory is not None, run.text
    return int(json.loads((run.directory / "summary.json").read_text())["accuracy"]["pdss"]["n"])


def test_a_killed_server_app_ends_the_run_as_failed_and_the_next_run_works(runs: Runs) -> None:
    assert runs.killed.directory is None
    assert runs.killed_status.startswith("finished:failed")
    assert runs.after_kill == dict.fromkeys(HONEST, EXAMPLES)
    assert runs.troubled.directory is not None


def test_the_good_hospital_has_a_result_and_everybody_else_is_named_with_the_reason(scene: Scene, runs: Runs) -> None:
    assert answered(runs.troubled) == QUESTIONS
    assert "LLM: 12 prompts of 3 clients" in runs.troubled.text
    for hospital, reason in (
        (SLOW, "query.perturb: {}did not answer in time or was lost"),
        (SMALL, "query.perturb: {}"),
        (FAIL, "query.perturb: {}failed (code 100): the client failed; its own log says where"),
        (GARBAGE, "{}left out of round 1: the prompt batch of 300 bytes is truncated or damaged"),
        (ORDINALS, "{}left out of round 1: the prompt batch has 4 ordinals between 4 and 7"),
        (FLOOD, f"{{}}left out of round 1: the prompt batch holds 40000 prompts; at most {EXAMPLES} are accepted"),
        (DISTILL, "distill: {}"),
        (EVALUATE, "evaluate: {}"),
    ):
        assert reason.format(scene.node(hospital)) in lines(runs.troubled, scene.node(hospital)), hospital
    assert runs.troubled.directory is not None
    summary = json.loads((runs.troubled.directory / "summary.json").read_text())
    absent = {(f"client {row['node']} ", row["step"]) for row in summary["left-out"]}
    before = {(scene.node(hospital), "query.perturb") for hospital in (SLOW, SMALL, *LIARS)}
    assert absent == before | {(scene.node(DISTILL), "distill"), (scene.node(EVALUATE), "evaluate")}
    for hospital in (SMALL, DISTILL, EVALUATE):
        told = lines(runs.troubled, scene.node(hospital))
        assert "did not answer in time or was lost" in told or "failed (code 5)" in told
    assert scene.node(GOOD) not in runs.troubled.text


def test_what_was_killed_is_back_in_the_next_run_and_the_llm_server_may_be_away(scene: Scene, runs: Runs) -> None:
    assert "LLM: 16 prompts of 4 clients" in runs.away.text
    assert "LLM: 16 of 16 prompts answered" in runs.away.text
    assert answered(runs.away) == 3 * QUESTIONS
    for hospital in (GOOD, DISTILL, EVALUATE):
        assert scene.node(hospital) not in runs.away.text


def test_a_full_disk_is_named_and_takes_nobody_else_with_it(scene: Scene, runs: Runs) -> None:
    told = lines(runs.away, scene.node(SMALL))
    assert "distill: " in told
    assert "failed (code 107): this node's state-dir cannot be written: free space" in told


def test_no_fault_loses_a_charge_or_charges_twice(runs: Runs) -> None:
    assert runs.after_trouble == dict.fromkeys(HONEST, 2 * EXAMPLES), "another epsilon is another release"
    assert runs.after_away == runs.after_trouble, "what was charged in a run that died is sent again for nothing"


def test_no_raw_text_is_on_the_servers_side(scene: Scene, runs: Runs) -> None:
    assert CANARY in (scene.home(FAIL) / "data.jsonl").read_text()
    folders = [scene.federation.folder / name for name in ("superlink", "submitter", "llm")]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert {"superlink.log", "llm.log", "run-2.log", "state.db", "summary.json"} <= {path.name for path in files}
    for path in files:
        assert CANARY.encode() not in path.read_bytes(), path


def test_in_its_namespace_a_hospital_sees_the_superlink_and_nobody_else(scene: Scene, runs: Runs) -> None:
    network = scene.federation.network
    if network is None:
        assert Network.trouble(), "the machine allows namespaces, so they are used"
        return
    for hospital in (GOOD, FLOOD):
        assert network.visible_from(hospital) == ["superlink"]
    assert network.visible_from("superlink") == ["llm", *scene.federation.names], "the walls are not a broken cable"
    assert network.visible_from("llm") == ["superlink"]
