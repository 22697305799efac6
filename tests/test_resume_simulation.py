"""A real ``pdss run`` whose processes are all killed while the LLM writes, and ``pdss run --resume``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from flwr.app import Context, RecordDict

from pdss_fl.client_app import create_client_app
from pdss_fl.config import RunSettings
from pdss_fl.server_app import run_comparison
from tests.harness import LoopbackGrid, small_run
from tests.test_resume import differences, outcome

ROOT = Path(__file__).parent.parent
CLIENTS = 2


def options(tiny: Path, data: Path) -> dict[str, str | int]:
    own = {
        "methods": "standalone pdss", "llm.model": str(tiny), "llm.batch-size": 1, "llm.max-new-tokens": 24,
        "llm.dtype": "float32",  # "auto" takes what is faster at the moment
        "data.path": str(data), "data.train-examples": 12, "data.test-examples": 6, "distill.steps": 4,
        "insecure-noise-seed": 3, "metrics": "noisy", "distill.filter": "off", "min-available-nodes": CLIENTS,
    }  # fmt: skip
    return small_run(tiny, **own)


def start(folder: Path, chosen: dict[str, str | int], *more: str) -> subprocess.Popen[str]:
    texts = [f'{k}="{v}"' if isinstance(v, str) else f"{k}={v}" for k, v in chosen.items()]
    command = [sys.executable, "-m", "pdss_fl.cli", "run", "--app", ROOT, "--output", folder / "runs", *more]
    command += ["--clients", str(CLIENTS), "-c", " ".join(texts)]
    # A killed launcher leaves its Flower home behind; the paths of Ray's sockets have to be short.
    environment = {**os.environ, "TMPDIR": str(folder), "RAY_TMPDIR": tempfile.gettempdir(), "RAY_worker_niceness": "0"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def kill_all(process: subprocess.Popen[str]) -> None:
    if process.poll() is not None:
        return
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        if member.is_running():
            member.send_signal(signal.SIGKILL)
    psutil.wait_procs(family, timeout=20)
    process.wait()


def answers(run: Path) -> list[tuple[str, int]]:
    """The batch and ordinal of every rationale that has reached the journal."""
    path = run / "journal.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines if '"answer"' in line and line.endswith("}")]
    return [(row["batch"], row["ordinal"]) for row in rows]


def wait_for_answers(folder: Path, process: subprocess.Popen[str]) -> Path:
    """Return the run directory as soon as the LLM has answered something."""
    while process.poll() is None:
        for run in folder.glob("runs/run-*"):
            if answers(run):
                return run
        time.sleep(0.005)
    raise AssertionError(f"the run ended before it could be killed: {process.stdout and process.stdout.read()}")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "killed").mkdir()
    yield tmp_path / "killed"
    for process in psutil.process_iter(["cwd"]):
        assert not str(process.info["cwd"]).startswith(str(tmp_path)), "a process of the killed run is left behind"


@pytest.mark.timeout(900)
def test_a_killed_simulation_is_resumed_and_equals_one_that_was_not(
    folder: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data.jsonl"
    rows = [{"question": f"what has {w} {i}?", "choices": ["one", "two"], "answer": "one"}
            for i in range(20) for w in ("time", "year", "people")]  # fmt: skip
    data.write_text("\n".join(map(json.dumps, rows)))
    chosen = options(tiny, data)
    process = start(folder, chosen)
    try:
        run = wait_for_answers(folder, process)
    finally:
        kill_all(process)
    before = answers(run)
    assert 0 < len(before) < 24, "killed while the LLM wrote"
    resumed = start(folder, chosen, "--resume")
    try:
        shown, _ = resumed.communicate()
    finally:
        kill_all(resumed)
    assert resumed.returncode == 0, shown
    assert f"goes on with {run.name}" in shown
    assert f"results: {run}" in shown
    after = answers(run)
    assert after[: len(before)] == before
    assert len(after) == len(set(after)) == 24, "no prompt was answered twice"

    monkeypatch.setattr("pdss_fl.client_app.in_simulation", lambda: True)
    config = {**chosen, "output-dir": str(tmp_path / "whole")}
    nodes = {i: {"partition-id": i, "num-partitions": CLIENTS} for i in range(CLIENTS)}
    contexts = {i: Context(1, i, node, RecordDict(), config) for i, node in nodes.items()}  # type: ignore[arg-type]
    grid = LoopbackGrid(create_client_app(), contexts)
    whole = outcome(Path(run_comparison(grid, RunSettings.from_run_config(config), run_id=1)))
    found = outcome(run)
    for one in (whole, found):  # Flower gives simulated nodes other ids each time
        one["metrics"] = sorted(str({**json.loads(line), "node": 0}) for line in one["metrics"])
        for client in one["summary"]["clients"]:
            client["node"] = 0
        one["summary"]["clients"].sort(key=lambda client: client["client"])
    assert not differences(whole, found)
