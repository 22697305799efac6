"""``pdss doctor``: what is right is said, what is wrong is named with a remedy, before a run meets it."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from pdss_fl.config import RunSettings
from pdss_fl.doctor import FAIL, NOTE, Finding, examine
from tests.test_cli import pdss


def findings(settings: dict[str, Any], policy: Path | None = None) -> dict[str, Finding]:
    return {f.what: f for f in examine(RunSettings.from_run_config(settings), policy)}


@pytest.fixture
def asked(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("PDSS_CACHE_DIR", str(tmp_path / "cache"))
    return {"output-dir": str(tmp_path / "runs"), "llm.model": str(tiny), "privacy.embeddings": str(tiny)}


def policy(tmp_path: Path, **changes: Any) -> Path:
    data = tmp_path / "data.jsonl"
    if not data.exists():
        data.write_text(json.dumps({"question": "is it?", "answer": "yes"}) + "\n")
    keys = {
        "state-dir": str(tmp_path / "state"), "data-path": str(data), "max-epsilon-per-token": 8.0,
        "max-epsilon-per-example": 100.0, **changes,
    }  # fmt: skip
    path = tmp_path / "policy.toml"
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items()))
    return path


def test_a_machine_that_is_ready(tmp_path: Path, tiny: Path, asked: dict[str, Any]) -> None:
    found = findings(asked, policy(tmp_path, **{"allowed-models": f"scratch {tiny}"}))
    assert not [f for f in found.values() if f.verdict == FAIL]
    assert found["data-path"].found == "data.jsonl: 1 examples"
    assert found["ledger"].found == "none yet: nothing was released"
    assert str(tmp_path / "runs") in found["output-dir"].found
    assert not (tmp_path / "state").exists(), "looking changes nothing"


def test_a_nodes_own_choices_are_what_is_looked_at(tmp_path: Path, tiny: Path, asked: dict[str, Any]) -> None:
    table = tmp_path / "ward.csv"
    table.write_text("stem,key\nis it?,yes\nwas it?,no\n")
    choices = {"data-path": str(table), "data-format": "csv", "data-fields": "question=stem answer=key"}
    found = findings(asked, policy(tmp_path, **choices, **{"slm-model": str(tiny), "allowed-models": str(tiny)}))
    assert found["data-path"].found == "ward.csv: 2 examples"
    assert "run" not in found or found["run"].verdict != FAIL


def test_a_superlink_that_stayed_behind_is_noted(asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setenv("FLWR_LOCAL_SUPERLINK_HTTP_API_PORT", str(listening.getsockname()[1]))
        found = findings(asked)["local SuperLink"]
    assert found.verdict == NOTE
    assert "end it" in found.remedy


@pytest.mark.parametrize(
    ("setting", "value", "remedy"),
    [
        ("llm.model", "/nowhere/model", "correct the path"),
        ("llm.model", "someone/model-that-is-not-there", "hf download"),
        ("privacy.embeddings", "/nowhere/model", "correct the path"),
        ("slm.model", "/nowhere/model", "correct the path"),
    ],
)
def test_a_model_that_is_not_there(asked: dict[str, Any], setting: str, value: str, remedy: str) -> None:
    found = findings(asked | {setting: value})[setting]
    assert found.verdict == FAIL
    assert remedy in found.remedy


def test_an_llm_server_that_does_not_answer(asked: dict[str, Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    found = findings(asked | {"llm.backend": "grpc", "llm.address": f"127.0.0.1:{port}"})["llm.address"]
    assert found.verdict == FAIL
    assert found.remedy


@pytest.mark.parametrize(
    ("changes", "what", "said"),
    [
        ({"max-epsilon-per-token": "eight"}, "policy", "max-epsilon-per-token"),
        ({"unheard-of": 1}, "policy", "unheard-of"),
        ({"allowed-models": "scratch"}, "run", "allowed-models"),
        ({"allowed-lengths": "bucket"}, "run", "privacy.length"),
    ],
)
def test_a_policy_that_is_wrong_or_refuses_the_run(
    tmp_path: Path, asked: dict[str, Any], changes: dict[str, Any], what: str, said: str
) -> None:
    found = findings(asked, policy(tmp_path, **changes))[what]
    assert found.verdict == FAIL
    assert said in found.remedy


def test_data_that_cannot_be_read(tmp_path: Path, asked: dict[str, Any]) -> None:
    (tmp_path / "data.jsonl").write_text('{"question": "zanzibarqx"\n')
    found = findings(asked, policy(tmp_path))["data-path"]
    assert found.verdict == FAIL
    assert "not JSON" in found.found
    assert "zanzibarqx" not in found.found


def test_a_ledger_that_was_cut(tmp_path: Path, asked: dict[str, Any]) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "ledger.jsonl").write_text("half a li\n")
    found = findings(asked, policy(tmp_path))["ledger"]
    assert found.verdict == FAIL
    assert "backup" in found.remedy


def test_the_command_fails_with_what_to_do(tmp_path: Path) -> None:
    done = pdss("doctor", "-c", "slm.model='/nowhere/model'", "--policy", tmp_path / "none.toml")
    assert done.returncode == 1
    assert "-> no model lies there: correct the path" in done.stdout
    assert "2 of" in done.stderr


def test_a_wrong_setting_is_one_line(tmp_path: Path) -> None:
    done = pdss("doctor", "-c", "privacy.epsilon=-1")
    assert done.returncode == 1
    assert done.stderr.startswith("error: privacy.epsilon")
