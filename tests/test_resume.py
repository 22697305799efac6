"""A run that dies at any point and is resumed ends as if nothing had happened: weights, results and ledgers."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict

from pdss_fl.client_app import create_client_app
from pdss_fl.config import RunSettings
from pdss_fl.errors import MessageError, SettingError
from pdss_fl.messages import PromptBatch, Rationale
from pdss_fl.results import RunDirectory
from pdss_fl.resume import RunName, fingerprint, unfinished_run
from pdss_fl.server_app import run_comparison
from pdss_fl.training import train_settings
from tests.harness import EchoGenerator, LoopbackGrid, small_run

EVERY = int(os.environ.get("PDSS_TEST_EVERY_POINT", "83"))  # 1 tries all of them, which takes minutes
CLIENTS, TRAIN, ROUNDS, STEPS = 2, 6, 2, 6


class Killed(BaseException):
    """The machine went off; nothing of the project catches this."""


class Machine:
    """Goes off at the n-th point at which a process can die, or after the n-th training step."""

    def __init__(self) -> None:
        self.points, self.last, self.steps, self.last_step = 0, 0, 0, 0

    def tick(self) -> None:
        self.points += 1
        if self.points == self.last:
            raise Killed

    def step(self) -> None:
        self.steps += 1
        if self.steps == self.last_step:
            raise Killed
        self.tick()

    def start(self, last: int = 0, last_step: int = 0) -> None:
        self.points, self.last, self.steps, self.last_step = 0, last, 0, last_step


class DyingGrid(LoopbackGrid):
    """Dies before a message is delivered, or after it was answered."""

    machine: Machine

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
        replies: list[Message] = []
        for message in messages:
            self.machine.tick()
            replies += super().send_and_receive([message], timeout=timeout)
            self.machine.tick()
        return replies


class CountingLLM(EchoGenerator):
    """Remembers which prompts it was asked and which answers were taken from it."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self.machine = machine
        self.taken: set[tuple[Any, ...]] = set()
        self.asked_again: list[tuple[Any, ...]] = []

    def generate(self, batch: PromptBatch, *rest: Any) -> Iterator[Rationale]:
        prompts = {p.ordinal: (p.question, p.choices) for p in batch.prompts}
        self.asked_again += [prompt for prompt in prompts.values() if prompt in self.taken]
        for rationale in super().generate(batch, *rest):
            self.machine.tick()
            yield rationale
            self.taken.add(prompts[rationale.ordinal])


class World:
    """One federation on one machine: its files, its LLM, its clients, and everything that is started on it."""

    def __init__(self, folder: Path, tiny: Path, machine: Machine, **changes: Any) -> None:
        folder.mkdir()
        self.folder, self.machine, self.llm, self.starts = folder, machine, CountingLLM(machine), 0
        data = folder.parent / "data.jsonl"
        rows = [{"question": f"what has {w} {i}?", "choices": ["one", "two"], "answer": "one"}
                for i in range(20) for w in ("time", "year", "people")]  # fmt: skip
        data.write_text("\n".join(map(json.dumps, rows)))
        own = {
            "output-dir": str(folder / "runs"), "methods": "standalone pdss", "num-server-rounds": ROUNDS,
            "privacy.question-words": 8, "data.path": str(data), "data.train-examples": TRAIN,
            "data.test-examples": 6, "distill.steps": STEPS, "insecure-noise-seed": 5, "metrics": "noisy",
        }  # fmt: skip
        self.config = small_run(tiny, **{**own, **changes})

    def start(self, resume: bool = False, **changes: Any) -> Path:
        """Start every process anew, with another run id."""
        self.starts += 1
        config = {**self.config, "resume": resume, **changes}
        settings = RunSettings.from_run_config(config)
        contexts = {
            i: Context(100 + self.starts, i, {"partition-id": i, "num-partitions": CLIENTS}, RecordDict(), config)
            for i in range(CLIENTS)
        }
        grid = DyingGrid(create_client_app(), contexts)
        grid.machine = self.machine
        return Path(run_comparison(grid, settings, run_id=100 + self.starts))

    def start_or_resume(self) -> Path:
        """Do what one does after a crash: resume, or start if there is nothing to resume."""
        begun = any((self.folder / "runs").glob("run-*/run.json"))
        return self.start(resume=begun)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Every write to disk, every message, every rationale and every training step is a point to die at."""
    off = Machine()
    monkeypatch.setattr("pdss_fl.client_app.in_simulation", lambda: True)
    for module, name in ((os, "fsync"), (os, "replace"), (Path, "rename"), (Path, "write_text")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, _real=real, **k: (off.tick(), _real(*a, **k))[1])
    monkeypatch.setattr("pdss_fl.client.training_progress", lambda *_: lambda *_: off.step())
    often = {"checkpoint_every": 1}  # as a run of a hundred times more steps has it
    monkeypatch.setattr("pdss_fl.client.train_settings", lambda *a: replace(train_settings(*a), **often))
    return off


@pytest.fixture
def went_on(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """After which steps trainings went on from a checkpoint, as the log says."""
    steps: list[int] = []

    class Reader(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            steps.extend(map(int, re.findall(r"the training goes on after step (\d+)", record.getMessage())))

    log = logging.getLogger("pdss_fl.slm.checkpoint")
    monkeypatch.setattr(log, "handlers", [Reader()])
    log.setLevel(logging.INFO)  # whatever other tests of this process made of the project's log
    return steps


def world(folder: Path, tiny: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> World:
    made = World(folder, tiny, machine, **changes)
    monkeypatch.setattr("pdss_fl.server_app.load_generator", lambda *_: made.llm)
    return made


def outcome(run: Path) -> dict[str, Any]:
    """Everything that a run leaves, but for what tells the time."""
    summary = json.loads((run / "summary.json").read_text())
    del summary["seconds"]
    found: dict[str, Any] = {"summary": summary, "privacy": (run / "privacy.json").read_text()}
    found["metrics"] = (run / "metrics.jsonl").read_text().splitlines()
    assert not (run / "averages").exists(), "they are kept for as long as the run can be resumed"
    for client in sorted((run / "clients").iterdir()):
        lines = [json.loads(line) for line in (client / "ledger.jsonl").read_text().splitlines()]
        found[f"{client.name} ledger"] = [
            {**line, "time": 0, "hash": 0, "recipe": re.sub(r"run \d+", "run", line["recipe"])} for line in lines
        ]
        for path in sorted(client.rglob("*")):
            if path.suffix in (".safetensors", ".json") and "ledger" not in path.name:
                found[f"{client.name}/{path.relative_to(client)}"] = path.read_bytes()
    return found


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    return [key for key in sorted(first.keys() | second.keys()) if first.get(key) != second.get(key)]


def test_a_run_killed_again_and_again_ends_as_if_nothing_had_happened(
    tmp_path: Path, tiny: Path, machine: Machine, went_on: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = world(tmp_path / "whole", tiny, machine, monkeypatch)
    machine.start()
    expected, points = outcome(whole.start()), machine.points
    assert len(whole.llm.taken) == CLIENTS * TRAIN
    dying = world(tmp_path / "dying", tiny, machine, monkeypatch)
    for last in range(1, points + 1):
        machine.start(last)  # each start gets one point further than the one before
        try:
            run = dying.start_or_resume()
        except Killed:
            continue
        break
    assert dying.starts > 30
    assert set(went_on) == set(range(1, STEPS // ROUNDS + 1)), "trainings went on after each of their steps"
    assert not differences(expected, outcome(run))
    assert dying.llm.asked_again == []
    assert dying.llm.taken == whole.llm.taken


SHARED = {"sharing.mode": "fedavg"}
STEPPED = {"sharing.mode": "fedadam", "num-server-rounds": 3}  # in the third it remembers its step of the second


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "changes", [{}, SHARED, {**SHARED, "slm.lora-rank": 2}, STEPPED], ids=["", "fedavg", "lora", "fedadam"]
)
def test_at_whatever_point_a_run_dies_it_can_be_resumed(
    changes: dict[str, Any],
    tmp_path: Path,
    tiny: Path,
    machine: Machine,
    went_on: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "slm.lora-rank" in changes:
        changes = {**changes, "slm.model": str(tiny)}
    whole = world(tmp_path / "whole", tiny, machine, monkeypatch, **changes)
    machine.start()
    expected, points, steps = outcome(whole.start()), machine.points, machine.steps
    halfway = steps // 2 + 1  # the first of a training's steps
    for last, last_step in [(0, halfway), *((last, 0) for last in range(EVERY, points + 1, EVERY))]:
        dying = world(tmp_path / f"{last} {last_step}", tiny, machine, monkeypatch, **changes)
        machine.start(last, last_step)
        try:
            dying.start()
        except Killed:
            machine.start()
        else:  # the very first run on a machine writes a few files more, which have points of their own
            assert last > points - 20
            break
        run = dying.start_or_resume()
        assert not differences(expected, outcome(run)), f"killed at point {last} of {points}"
        assert dying.llm.asked_again == []
        assert dying.llm.taken == whole.llm.taken
        if last_step:
            assert went_on == [1]
            assert last_step + machine.steps == steps, "no step was done again"


def test_another_run_or_other_settings_find_nothing_to_resume(
    tmp_path: Path, tiny: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying = world(tmp_path / "dying", tiny, machine, monkeypatch)
    with pytest.raises(SettingError, match="no unfinished run"):
        dying.start(resume=True)
    machine.start(200)
    with pytest.raises(Killed):
        dying.start()
    machine.start()
    with pytest.raises(SettingError, match=r"has not ended, but differs in distill\.steps, privacy\.epsilon"):
        dying.start(resume=True, **{"privacy.epsilon": 3.0, "distill.steps": 8})
    assert dying.start(resume=True, **{"distill-timeout": 9.0, "quorum": 2}).name == "run-102"
    with pytest.raises(SettingError, match="no unfinished run"):
        dying.start(resume=True)


def test_a_run_that_is_still_running_is_not_resumed_beside_it(
    tmp_path: Path, tiny: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying = world(tmp_path / "dying", tiny, machine, monkeypatch)
    machine.start(200)
    with pytest.raises(Killed):
        dying.start()
    machine.start()
    _, path = unfinished_run(RunSettings.from_run_config(dying.config))
    running = RunDirectory(path)
    with pytest.raises(SettingError, match="still running"):
        dying.start(resume=True)
    running.close()
    assert dying.start(resume=True) == path


def test_a_clients_files_are_found_under_the_name_and_the_settings_of_a_run_only() -> None:
    one, other = RunName.new(7), RunName.new(7)
    settings = RunSettings.from_run_config({})
    stricter = RunSettings.from_run_config({"privacy.epsilon": 1.0})
    slower = RunSettings.from_run_config({"distill-timeout": 1.0, "resume": True})
    assert one.folder(settings) == RunName.parse(one.text).folder(slower)
    assert len({name.folder(s) for name in (one, other) for s in (settings, stricter)}) == 4
    assert fingerprint(settings) == fingerprint(slower) != fingerprint(stricter)
    assert RunName(7).folder(settings) == "7"


@pytest.mark.parametrize("name", ["", "7", "../7-" + "a" * 32, "7-" + "a" * 31, "7-" + "A" * 32, 7, "7-" + "a" * 33])
def test_a_name_that_is_none_is_refused(name: object) -> None:
    with pytest.raises(MessageError, match="no name"):
        RunName.parse(name)
