"""``pdss run`` says what is wrong with a run's settings before it starts anything, and reads all that was typed."""

from __future__ import annotations

import json
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pdss_fl.cli import app
from pdss_fl.config import RunSettings
from pdss_fl.errors import SettingError
from pdss_fl.processes import program
from pdss_fl.run_checks import check_simulation
from pdss_fl.run_config import app_settings, as_toml, read_overrides

ROOT = Path(__file__).parent.parent
JSONL = "data.source='jsonl' data.path"


def run(*arguments: str | Path) -> tuple[int, str]:
    """Run ``pdss run`` in this process; returns the exit code and what it printed."""
    done = CliRunner().invoke(app, ["run", "--app", str(ROOT), *map(str, arguments)])
    return done.exit_code, done.output


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if anything is about to be started."""

    def started(*_: Any, **__: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", started)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A good data file, a damaged one, and two files of choices of which one is wrong."""
    rows = [{"question": f"is it {i}?", "choices": ["yes", "no"], "answer": "yes"} for i in range(40)]
    (tmp_path / "good.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "bad.jsonl").write_text('{"question": "zanzibarqx"\n')
    (tmp_path / "far.toml").write_text("[client-1]\nprivacy-epsilon = -3.0\n")
    (tmp_path / "away.toml").write_text('[client-1]\ndata-path = "/nowhere/ward.jsonl"\n')
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("privacy.nonsense=1", "privacy.nonsense = 1: there is no such setting; pyproject.toml lists all of them"),
        ("privacy.epsylon=1", "did you mean privacy.epsilon or sharing.epsilon?"),
        ("privacy.epsilon=-1", "privacy.epsilon = -1.0 is out of range; expected a finite number above 0"),
        ("num-server-rounds='x'", "num-server-rounds = 'x' is of type str; expected int"),
        ("privacy.mechanism='magic'", "privacy.mechanism = 'magic' is unknown; choose one of"),
        ("privacy.parameters='truncate=1'", "truncate = 1 is no parameter of mechanism 'staircase'"),
        ("privacy.epsilon = 4", "'privacy.epsilon = 4' is not key=value"),
        ("privacy.epsilon=7,5", "privacy.epsilon=7,5: the value is no number, true, false or text"),
        ("privacy.mechanism=exponential", "put quotes around a text, as in privacy.mechanism='...'"),
        ("privacy.epsilon=[1]", "privacy.epsilon is of type list"),
        ("/nowhere/run.toml", "'/nowhere/run.toml' cannot be read (No such file or directory): correct the path"),
        ("min-available-nodes=3", "min-available-nodes = 3 is more than --clients = 2"),
        ("quorum=3", "quorum = 3 is more than --clients = 2"),
        (f"{JSONL}='/nowhere/my.jsonl'", "data.path = '/nowhere/my.jsonl': no such file or folder: correct the path"),
        (f"{JSONL}='FILES/bad.jsonl'", "bad.jsonl': the data file"),
        (f"{JSONL}='FILES' data.partition='file'", "FILES': the data file"),
        ("data.source='jsonl'", "data.path is empty"),
        ("data.path='my.jsonl'", "data.path = 'my.jsonl' is relative"),
        ("client-choices='/nowhere/clients.toml'", "client-choices = '/nowhere/clients.toml' is no file"),
        ("client-choices='FILES/far.toml'", "this client's own choice: privacy.epsilon = -3.0"),
        (f"{JSONL}='FILES/good.jsonl' client-choices='FILES/away.toml'", "data.path = '/nowhere/ward.jsonl'"),
        ("llm.model='/nowhere/llm'", "llm.model = '/nowhere/llm' holds no model"),
        ("slm.model='/nowhere/slm'", "slm.model = '/nowhere/slm' holds no model"),
        ("privacy.embeddings='/nowhere/llm'", "privacy.embeddings = '/nowhere/llm' holds no model"),
        ("llm.instruction='/nowhere/i.json'", "llm.instruction = '/nowhere/i.json' is no file"),
        ("llm.backend='grpc' llm.root-certificates='/nowhere/ca.pem'", "llm.root-certificates = '/nowhere/ca.pem'"),
        ("resume=true", "there is no unfinished run with these settings"),
    ],
)
@pytest.mark.usefixtures("nothing_starts")
def test_what_is_wrong_is_said_in_one_line_before_anything_starts(typed: str, said: str, files: Path) -> None:
    code, output = run("-c", typed.replace("FILES", str(files)), "--output", files / "runs")
    assert code == 1, output
    (line,) = output.strip().splitlines()
    assert line.startswith("error: ")
    assert said.replace("FILES", str(files)) in line
    assert "zanzibarqx" not in line


def test_settings_that_are_right_pass(files: Path) -> None:
    typed = [f"{JSONL}='{files / 'good.jsonl'}'", "privacy.epsilon=4 slm.layers=1", "data.train-examples=6"]
    settings = check_simulation(app_settings(ROOT), read_overrides(typed), clients=2)
    assert (settings.privacy.epsilon, settings.slm.layers, settings.data.source) == (4.0, 1, "jsonl")
    assert check_simulation(app_settings(ROOT), {}, clients=2) == RunSettings()


@pytest.mark.parametrize("clients", [1, 3])
def test_a_run_waits_for_all_its_clients(clients: int) -> None:
    assert check_simulation(app_settings(ROOT), {}, clients).min_available_nodes == clients


def test_a_file_and_pairs_are_read_together_and_the_last_one_holds(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('seed = 3\n[privacy]\nepsilon = 2.5\nmechanism = "exponential"\n')
    found = read_overrides([str(path), "privacy.neighbours=4 seed=5", "privacy.words='all'"])
    assert found == {
        "seed": 5, "privacy.epsilon": 2.5, "privacy.mechanism": "exponential", "privacy.neighbours": 4,
        "privacy.words": "all",
    }  # fmt: skip


@pytest.mark.parametrize("value", ['it\'s "so" \\ = [x]', "ü 語 🎈", True, -3, 1e-05, 0.1])
def test_what_is_handed_to_flower_is_what_was_read(value: bool | int | float | str) -> None:
    (read,) = tomllib.loads(as_toml({"privacy.parameters": value}))["privacy"].values()
    assert (type(read), read) == (type(value), value)


def test_the_file_that_was_typed_reaches_flower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: Path) -> None:
    """``flwr run`` is replaced by a program that shows the settings it was given; no run is needed for that."""
    (tmp_path / "run.toml").write_text("[privacy]\nepsilon = 2.5\n")
    show = tmp_path / "flwr"
    show.write_text('#!/bin/sh\nfor last; do :; done\nsed "s/^/shown: /" "$last"\n')
    show.chmod(0o755)
    monkeypatch.setattr("pdss_fl.launcher.program", lambda name: str(show) if name == "flwr" else program(name))
    code, output = run("-c", str(tmp_path / "run.toml"), "-c", "seed=4", "--output", tmp_path / "runs")
    assert code == 1, "there is no result"
    for said in ("privacy.epsilon = 2.5", "seed = 4", "min-available-nodes = 2", f'output-dir = "{tmp_path / "runs"}"'):
        assert f"shown: {said}" in output


def test_an_app_without_a_project_file_is_named() -> None:
    with pytest.raises(SettingError, match=r"--app = .* holds no pyproject.toml"):
        app_settings(ROOT / "proto")
