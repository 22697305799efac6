"""What happens in the two federations of the fault tests, and what is noted of it for the tests to check."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import psutil

from examples.deployment.federation import Outcome, outcome
from examples.deployment.parties import Party
from tests.deployment.scene import LONG, Scene

GOOD, SMALL, DISTILL, EVALUATE, SLOW, FAIL, GARBAGE, ORDINALS, FLOOD = (f"hospital-{n}" for n in range(1, 10))
HONEST = (GOOD, SMALL, DISTILL, EVALUATE)
LIARS = {FAIL: "fail", GARBAGE: "garbage", ORDINALS: "ordinals", FLOOD: "flood"}
KILLED = {SMALL: "perturb", DISTILL: "distill", EVALUATE: "evaluate"}
BROKEN = "hospital-4"  # always fails, where the servers die
CHARGED = ("hospital-1", "hospital-2", DISTILL)  # the others there
LONG_ANSWERS = "llm.max-new-tokens=100"  # so that there is time to kill somebody between two


@dataclass
class Deaths:
    """A run whose servers die, in its three starts, and the charges in the hospitals' ledgers.

    ``journals`` has after each start the journal as it was, with how often the LLM was asked until then.
    """

    killed: Outcome
    killed_status: str
    resumed: Outcome
    ended: Outcome
    journals: list[tuple[bytes, int]]
    at_kill: dict[str, int]
    after_kill: dict[str, int]


@dataclass
class Troubles:
    """Two runs with hospitals that fail and an LLM server that is away, and the charges after each."""

    troubled: Outcome
    after_trouble: dict[str, int]
    away: Outcome
    after_away: dict[str, int]


def die_and_resume(scene: Scene) -> Deaths:
    """Kill the ServerApp, resume, kill the SuperLink and a hospital that trains, and resume again."""
    scene.trouble(BROKEN, perturb="fail")
    killed = kill_the_server_app(scene)
    at_kill, journals = charges(scene, CHARGED), [asked(scene)]
    resumed = resume_and_kill_the_superlink(scene)
    journals.append(asked(scene))
    ended = resume(scene)
    ended.wait(LONG)
    journals.append(asked(scene))
    status = scene.status(killed.text())  # Flower takes a minute to notice
    return Deaths(
        outcome(killed), status, outcome(resumed), outcome(ended), journals, at_kill, charges(scene, CHARGED)
    )  # fmt: skip


def be_troubled(scene: Scene) -> Troubles:
    """Have every hospital but one fail in a run, then run without the LLM server."""
    for hospital, trouble in LIARS.items():
        scene.trouble(hospital, perturb=trouble)
    troubled = misbehave(scene, scene.start_seconds + 12)
    after_trouble = charges(scene, (*HONEST, SLOW))
    away = ask_without_an_llm(scene)
    return Troubles(troubled, after_trouble, away, charges(scene, (*HONEST, SLOW, GARBAGE)))


def charges(scene: Scene, hospitals: Iterable[str]) -> dict[str, int]:
    return {name: scene.charges(name) for name in hospitals}


def asked(scene: Scene) -> tuple[bytes, int]:
    """Return the journal, and how many requests the LLM server has ended."""
    return scene.journal(), scene.federation.llm.text().count(" rationales in ")


def kill_the_server_app(scene: Scene) -> Party:
    """Kill it when the LLM has answered a few prompts, and return its run."""
    run = scene.submit(7, LONG, LONG_ANSWERS)
    scene.wait_for(lambda: b'"answer"' in scene.journal(), "an answer of the LLM")
    for process in psutil.Process(scene.federation.superlink.pid).children(recursive=True):
        if "flwr-serverapp" in " ".join(process.cmdline()):
            process.kill()
    return run


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
