"""Faults of a deployed federation, with real processes: what dies, lies, is late or has no room.

One federation of nine hospitals carries three runs one after the other: the ServerApp is killed, then the SuperLink
and a hospital that trains, and the run is resumed each time; hospitals misbehave and are killed in each phase; the LLM
server is away.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from examples.deployment.federation import Outcome, outcome
from examples.deployment.network import Network
from examples.deployment.parties import Party
from tests.deployment.scene import CANARY, EXAMPLES, LONG, QUESTIONS, Scene, play
from tests.deployment.walls import HOSPITALS, without_root

GOOD, SMALL, DISTILL, EVALUATE, SLOW, FAIL, GARBAGE, ORDINALS, FLOOD = (f"hospital-{n}" for n in range(1, 10))
HONEST = (GOOD, SMALL, DISTILL, EVALUATE)
LIARS = {FAIL: "fail", GARBAGE: "garbage", ORDINALS: "ordinals", FLOOD: "flood"}
CHARGED = (GOOD, DISTILL, EVALUATE)  # in the first run; the small disk would be full after it
LONG_ANSWERS = "llm.max-new-tokens=100"  # so that there is time to kill somebody between two
KILLED = {SMALL: "perturb", DISTILL: "distill", EVALUATE: "evaluate"}

KILLED_WHY = ("did not answer in time or was lost", "failed (code 5)")

pytestmark = pytest.mark.timeout(1500)  # of which most is waiting; on an idle machine minutes less


@dataclass
class Runs:
    """How the three runs went, and the charges in the hospitals' ledgers after each.

    The first one has three starts: after each the journal as it was, with how often the LLM was asked until then.
    """

    killed: Outcome
    killed_status: str
    resumed: Outcome
    ended: Outcome
    journals: list[tuple[bytes, int]]
    at_kill: dict[str, int]
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
    for hospital in (SLOW, SMALL):
        scene.trouble(hospital, perturb="fail")
    killed, seconds = kill_the_server_app(scene)
    at_kill, journals = charges(scene, CHARGED), [asked(scene)]
    resumed = resume_and_kill_the_superlink(scene)
    journals.append(asked(scene))
    ended = resume(scene)
    ended.wait(LONG)
    after_kill = charges(scene, CHARGED)
    journals.append(asked(scene))
    troubled = misbehave(scene, 1.5 * seconds + 12)
    after_trouble = charges(scene, (*HONEST, SLOW))
    status = scene.status(killed.text())  # Flower takes a minute to notice
    away = ask_without_an_llm(scene)
    after_away = charges(scene, (*HONEST, SLOW, GARBAGE))
    return Runs(
        outcome(killed), status, outcome(resumed), outcome(ended), journals, at_kill, after_kill, troubled,
        after_trouble, away, after_away,
    )  # fmt: skip


def charges(scene: Scene, hospitals: Iterable[str]) -> dict[str, int]:
    return {name: scene.charges(name) for name in hospitals}


def asked(scene: Scene) -> tuple[bytes, int]:
    """Return the journal, and how many requests the LLM server has ended."""
    return scene.journal(), scene.federation.llm.text().count(" rationales in ")


def kill_the_server_app(scene: Scene) -> tuple[Party, float]:
    """Kill it when the LLM has answered a few prompts; return its run and the seconds of a trip to all clients."""
    run = scene.submit(7, LONG, LONG_ANSWERS)
    scene.wait_for(lambda: b'"sample"' in scene.journal(), "a round")
    started = time.monotonic()
    scene.wait_for(lambda: b'"answer"' in scene.journal(), "an answer of the LLM")
    seconds = time.monotonic() - started
    for process in psutil.Process(scene.federation.superlink.pid).children(recursive=True):
        if "flwr-serverapp" in " ".join(process.cmdline()):
            process.kill()
    return run, seconds


def resume_and_kill_the_superlink(scene: Scene) -> Party:
    """Resume, and kill the SuperLink, the new ServerApp and one hospital while this one trains."""
    scene.trouble(DISTILL, distill="halfway")
    run = resume(scene)
    reached = scene.home(DISTILL) / "reached-distill"
    scene.wait_for(reached.exists, "a training step")
    scene.federation.superlink.kill()
    scene.kill_and_restart(DISTILL, "distill")
    scene.federation.start_superlink()
    scene.all_are_back()
    return run


def resume(scene: Scene) -> Party:
    """Go on with the first run, under a timeout that is another."""
    return scene.submit(7, LONG + 1, LONG_ANSWERS, "resume=true")


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
    scene.trouble(SLOW)
    scene.trouble(GARBAGE, distill="garbage")
    scene.all_are_back()
    return outcome(run)


def ask_without_an_llm(scene: Scene) -> Outcome:
    """Run while the LLM server is away when it is wanted, and comes back later."""
    run = scene.submit(6, LONG)
    run.wait_for("method pdss starts", LONG)
    scene.federation.llm.kill()
    run.wait_for("LLM: ", LONG, run.text().index("method pdss starts"))
    time.sleep(60)  # the strategy asks in vain meanwhile
    scene.federation.llm.start()
    run.wait(LONG)
    return outcome(run)


def lines(run: Outcome, what: str) -> str:
    """The lines of a run that say something."""
    return "\n".join(line for line in run.text.splitlines() if what in line)


def answered(run: Outcome) -> int:
    """Questions that were counted in a run's result."""
    assert run.directory is not None, run.text
    return int(json.loads((run.directory / "summary.json").read_text())["accuracy"]["pdss"]["n"])


def answers(journal: bytes) -> list[tuple[str, int]]:
    """The batch and the ordinal of every answer of the LLM in a journal."""
    rows = [json.loads(line) for line in journal.splitlines()]
    return [(row["batch"], row["ordinal"]) for row in rows if row["kind"] == "answer"]


def left_out(run: Outcome) -> dict[tuple[str, str], str]:
    """Why a client took no part in a step, in a run's result."""
    assert run.directory is not None, run.text
    rows = json.loads((run.directory / "summary.json").read_text())["left-out"]
    return {(f"client {row['node']} ", row["step"]): row["why"] for row in rows}


def called(party: Party) -> set[str]:
    """The addresses to which a party and what it started have connections, but for those to one another."""
    family = [psutil.Process(party.pid), *psutil.Process(party.pid).children(recursive=True)]
    found = [connection for process in family for connection in process.net_connections("tcp")]
    own = {connection.laddr for connection in found}
    return {f"{c.raddr.ip}:{c.raddr.port}" for c in found if c.raddr and c.raddr not in own}


def test_a_killed_server_app_ends_the_run_as_failed(runs: Runs) -> None:
    assert runs.killed.directory is None
    assert runs.killed_status.startswith("finished:failed")
    assert "goes on with" not in runs.killed.text


def test_resumed_after_it_and_after_a_dead_superlink_the_run_has_its_result(scene: Scene, runs: Runs) -> None:
    (first,) = [path for path in scene.federation.folder.glob("superlink/runs/run-*") if path.name in runs.resumed.text]
    assert runs.resumed.directory is None
    assert runs.ended.directory == first
    for again in (runs.resumed, runs.ended):
        assert f"goes on with {first.name}" in again.text
    assert answered(runs.ended) == len(CHARGED) * QUESTIONS
    absent = {(scene.node(hospital), "query.perturb") for hospital in (SLOW, SMALL, *LIARS)}
    assert left_out(runs.ended).keys() == absent


def test_resumed_it_asks_only_for_what_was_not_answered_and_charges_nothing(runs: Runs) -> None:
    (killed, requests), (resumed, requests_then), (ended, requests_at_last) = runs.journals
    prompts = len(CHARGED) * EXAMPLES
    assert 0 < len(answers(killed)) < prompts, "killed between two answers"
    assert resumed.startswith(killed)
    assert ended.startswith(resumed)
    assert len(answers(resumed)) == len(set(answers(resumed))) == prompts, "no prompt was answered twice"
    assert answers(ended) == answers(resumed)
    left = prompts - len(answers(killed))
    assert f"LLM: {left} of {left} prompts answered" in runs.resumed.text
    assert requests_then <= requests + 2, "one for the rest; the killed one may have ended in between"
    assert requests_at_last == requests_then, "all was answered, so nothing was asked"
    assert runs.after_kill == runs.at_kill == dict.fromkeys(CHARGED, EXAMPLES)


def test_a_hospital_killed_while_it_trained_goes_on_from_its_checkpoint(scene: Scene, runs: Runs) -> None:
    assert "the training goes on after step 1" in scene.federation.hospitals[DISTILL].text()
    assert "the training goes on" not in scene.federation.hospitals[GOOD].text()


def test_the_good_hospital_has_a_result_and_everybody_else_is_named_with_the_reason(scene: Scene, runs: Runs) -> None:
    assert answered(runs.troubled) == QUESTIONS
    assert "LLM: 12 prompts of 3 clients" in runs.troubled.text
    reasons = {
        (SLOW, "query.perturb"): "did not answer in time or was lost",
        (SMALL, "query.perturb"): KILLED_WHY,
        (FAIL, "query.perturb"): "failed (code 100): the client failed; its own log says where",
        (GARBAGE, "query.perturb"): "left out of round 1: the prompt batch of 300 bytes is truncated or damaged",
        (ORDINALS, "query.perturb"): "left out of round 1: the prompt batch has 4 ordinals between 4 and 7",
        (FLOOD, "query.perturb"): f"left out of round 1: the prompt batch holds 40000 prompts; at most {EXAMPLES} are",
        (DISTILL, "distill"): KILLED_WHY,
        (EVALUATE, "evaluate"): KILLED_WHY,
    }
    found = left_out(runs.troubled)
    assert found.keys() == {(scene.node(hospital), step) for hospital, step in reasons}
    for (hospital, step), reason in reasons.items():
        why = found[scene.node(hospital), step]
        assert why.startswith(reason), hospital
        assert f"{step}: {scene.node(hospital)}{why}" in runs.troubled.text, hospital
    assert scene.node(GOOD) not in runs.troubled.text


def test_what_was_killed_is_back_in_the_next_run_and_the_llm_server_may_be_away(scene: Scene, runs: Runs) -> None:
    assert "LLM: 24 prompts of 6 clients" in runs.away.text
    assert "LLM: 24 of 24 prompts answered" in runs.away.text
    assert answered(runs.away) == 4 * QUESTIONS
    for hospital in (GOOD, DISTILL, EVALUATE, SLOW):
        assert scene.node(hospital) not in runs.away.text


def test_garbage_after_training_is_no_result_and_takes_nobody_else_with_it(scene: Scene, runs: Runs) -> None:
    assert runs.away.directory is not None
    rows = [json.loads(line) for line in (runs.away.directory / "metrics.jsonl").read_text().splitlines()]
    (own,) = [row for row in rows if scene.node(GARBAGE) == f"client {row['node']} "]
    assert own["phase"] == "distill"
    assert "num-examples" not in own
    assert "failed (code 107): this client has not trained" in left_out(runs.away)[scene.node(GARBAGE), "evaluate"]


def test_a_full_disk_is_named_and_takes_nobody_else_with_it(scene: Scene, runs: Runs) -> None:
    told = lines(runs.away, scene.node(SMALL))
    assert "distill: " in told
    assert "failed (code 107): this node's state-dir cannot be written: free space" in told


def test_no_fault_loses_a_charge_or_charges_twice(runs: Runs) -> None:
    twice = dict.fromkeys(CHARGED, 2 * EXAMPLES)
    assert runs.after_trouble == {**twice, SMALL: EXAMPLES, SLOW: EXAMPLES}, "another epsilon is another release"
    assert runs.after_away == {**runs.after_trouble, GARBAGE: EXAMPLES}, "what came too late is sent again for nothing"


def test_no_raw_text_is_on_the_servers_side(scene: Scene, runs: Runs) -> None:
    assert CANARY in (scene.home(FAIL) / "data.jsonl").read_text()
    folders = [scene.federation.folder / name for name in ("superlink", "submitter", "llm")]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert {"superlink.log", "llm.log", "run-2.log", "state.db", "summary.json"} <= {path.name for path in files}
    for path in files:
        assert CANARY.encode() not in path.read_bytes(), path


def test_in_its_namespace_a_hospital_reaches_the_superlink_and_nobody_else(scene: Scene, runs: Runs) -> None:
    network = scene.federation.network
    if network is None:  # then its connections are told by the machine's own tables, which know no other namespace
        assert Network.trouble(), "the machine allows namespaces, so they are used"
        for hospital in (GOOD, FLOOD):
            assert called(scene.federation.hospitals[hospital]) == {scene.federation.superlink_address}
        return
    for hospital in (GOOD, FLOOD):
        assert network.visible_from(hospital) == ["superlink"]
    assert network.visible_from("superlink") == ["llm", *scene.federation.names], "the walls are not a broken cable"
    assert network.visible_from("llm") == ["superlink"]


def test_the_star_of_namespaces_stands_without_root_too() -> None:
    done = without_root()
    if done.returncode and not Network.trouble():  # such a machine allows them to root only; then they are used above
        assert "unshare" in done.stderr or "mount" in done.stderr, done.stderr
        return
    assert done.returncode == 0, f"neither root nor a user namespace makes walls here: {done.stderr}"
    apart = {name: ["superlink"] for name in ("llm", *HOSPITALS)}
    assert json.loads(done.stdout) == {"superlink": ["llm", *HOSPITALS], **apart}
