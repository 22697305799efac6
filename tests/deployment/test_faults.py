"""Faults of a deployed federation, with real processes: what dies, lies, is late or has no room.

Two federations play their stories (``stories.py``) at the same time, since each mostly waits. In one, four hospitals
carry a run whose ServerApp is killed, then the SuperLink and a hospital that trains; it is resumed each time. In the
other, nine hospitals misbehave and are killed in each phase; then the LLM server is away.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from examples.deployment.federation import Outcome
from examples.deployment.network import Network
from examples.deployment.parties import Party
from tests.deployment.scene import CANARY, EXAMPLES, QUESTIONS, Scene, play
from tests.deployment.stories import (
    BROKEN,
    CHARGED,
    DISTILL,
    EVALUATE,
    FAIL,
    FLOOD,
    GARBAGE,
    GOOD,
    HONEST,
    ORDINALS,
    SLOW,
    SMALL,
    Deaths,
    Troubles,
    be_troubled,
    die_and_resume,
)
from tests.deployment.walls import HOSPITALS, without_root

KILLED_WHY = ("did not answer in time or was lost", "failed (code 5)")

pytestmark = pytest.mark.timeout(1500)  # of which most is waiting; on an idle machine minutes less


@dataclass
class Played:
    """Both federations, still up, and how their runs went."""

    dying: Scene
    deaths: Deaths
    troubled: Scene
    troubles: Troubles


@pytest.fixture(scope="module")
def played(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    folder = tmp_path_factory.mktemp("federations")
    with play(folder / "dying", tiny, 4) as dying, ThreadPoolExecutor() as pool:
        deaths = pool.submit(die_and_resume, dying)
        with play(folder / "troubled", tiny, 9, small_disk=SMALL) as troubled:
            troubles = be_troubled(troubled)
            yield Played(dying, deaths.result(), troubled, troubles)


@pytest.fixture(scope="module")
def dying(played: Played) -> Scene:
    return played.dying


@pytest.fixture(scope="module")
def deaths(played: Played) -> Deaths:
    return played.deaths


@pytest.fixture(scope="module")
def scene(played: Played) -> Scene:
    return played.troubled


@pytest.fixture(scope="module")
def troubles(played: Played) -> Troubles:
    return played.troubles


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


def test_a_killed_server_app_ends_the_run_as_failed(deaths: Deaths) -> None:
    assert deaths.killed.directory is None
    assert deaths.killed_status.startswith("finished:failed")
    assert "goes on with" not in deaths.killed.text


def test_resumed_after_it_and_after_a_dead_superlink_the_run_has_its_result(dying: Scene, deaths: Deaths) -> None:
    (first,) = dying.federation.folder.glob("superlink/runs/run-*")
    assert deaths.resumed.directory is None
    assert deaths.ended.directory == first
    for again in (deaths.resumed, deaths.ended):
        assert f"goes on with {first.name}" in again.text
    assert answered(deaths.ended) == len(CHARGED) * QUESTIONS
    assert left_out(deaths.ended).keys() == {(dying.node(BROKEN), "query.perturb")}


def test_resumed_it_asks_only_for_what_was_not_answered_and_charges_nothing(deaths: Deaths) -> None:
    (killed, requests), (resumed, requests_then), (ended, requests_at_last) = deaths.journals
    prompts = len(CHARGED) * EXAMPLES
    assert 0 < len(answers(killed)) < prompts, "killed between two answers"
    assert resumed.startswith(killed)
    assert ended.startswith(resumed)
    assert len(answers(resumed)) == len(set(answers(resumed))) == prompts, "no prompt was answered twice"
    assert answers(ended) == answers(resumed)
    left = prompts - len(answers(killed))
    assert f"LLM: {left} of {left} prompts answered" in deaths.resumed.text
    assert requests_then <= requests + 2, "one for the rest; the killed one may have ended in between"
    assert requests_at_last == requests_then, "all was answered, so nothing was asked"
    assert deaths.after_kill == deaths.at_kill == dict.fromkeys(CHARGED, EXAMPLES)


def test_a_hospital_killed_while_it_trained_goes_on_from_its_checkpoint(dying: Scene, deaths: Deaths) -> None:
    assert "the training goes on after step 1" in dying.federation.hospitals[DISTILL].text()
    assert "the training goes on" not in dying.federation.hospitals[CHARGED[0]].text()


def test_the_good_hospital_has_a_result_and_everybody_else_is_named_with_the_reason(
    scene: Scene, troubles: Troubles
) -> None:
    assert answered(troubles.troubled) == QUESTIONS
    assert "LLM: 12 prompts of 3 clients" in troubles.troubled.text
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
    found = left_out(troubles.troubled)
    assert found.keys() == {(scene.node(hospital), step) for hospital, step in reasons}
    for (hospital, step), reason in reasons.items():
        why = found[scene.node(hospital), step]
        assert why.startswith(reason), hospital
        assert f"{step}: {scene.node(hospital)}{why}" in troubles.troubled.text, hospital
    assert scene.node(GOOD) not in troubles.troubled.text


def test_what_was_killed_is_back_in_the_next_run_and_the_llm_server_may_be_away(
    scene: Scene, troubles: Troubles
) -> None:
    assert "LLM: 24 prompts of 6 clients" in troubles.away.text
    assert "LLM: 24 of 24 prompts answered" in troubles.away.text
    assert answered(troubles.away) == 4 * QUESTIONS
    for hospital in (GOOD, DISTILL, EVALUATE, SLOW):
        assert scene.node(hospital) not in troubles.away.text


def test_garbage_after_training_is_no_result_and_takes_nobody_else_with_it(scene: Scene, troubles: Troubles) -> None:
    assert troubles.away.directory is not None
    rows = [json.loads(line) for line in (troubles.away.directory / "metrics.jsonl").read_text().splitlines()]
    (own,) = [row for row in rows if scene.node(GARBAGE) == f"client {row['node']} "]
    assert own["phase"] == "distill"
    assert "num-examples" not in own
    assert "failed (code 107): this client has not trained" in left_out(troubles.away)[scene.node(GARBAGE), "evaluate"]


def test_a_full_disk_is_named_and_takes_nobody_else_with_it(scene: Scene, troubles: Troubles) -> None:
    told = lines(troubles.away, scene.node(SMALL))
    assert "distill: " in told
    assert "failed (code 107): this node's state-dir cannot be written: free space" in told


def test_no_fault_loses_a_charge_or_charges_twice(troubles: Troubles) -> None:
    assert troubles.after_trouble == dict.fromkeys((*HONEST, SLOW), EXAMPLES)
    assert troubles.after_away == {**troubles.after_trouble, GARBAGE: EXAMPLES}, (
        "what came too late is sent again for nothing"
    )


def test_no_raw_text_is_on_the_servers_side(played: Played) -> None:
    for scene, broken in ((played.dying, BROKEN), (played.troubled, FAIL)):
        assert CANARY in (scene.home(broken) / "data.jsonl").read_text()
        folders = [scene.federation.folder / name for name in ("superlink", "submitter", "llm")]
        files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
        assert {"superlink.log", "llm.log", "run-2.log", "state.db", "summary.json"} <= {path.name for path in files}
        for path in files:
            assert CANARY.encode() not in path.read_bytes(), path


def test_a_hospital_is_connected_to_the_superlink_and_nobody_else(scene: Scene, troubles: Troubles) -> None:
    for hospital in (GOOD, FLOOD):
        assert called(scene.federation.hospitals[hospital]) == {scene.federation.superlink_address}


def test_in_its_namespace_a_hospital_reaches_the_superlink_and_nobody_else(scene: Scene, troubles: Troubles) -> None:
    network = scene.federation.network
    if network is None:
        assert Network.trouble(), "the machine allows namespaces, so they are used"
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
