"""The commands as a user types them: help, one clear line for wrong input, and a server that answers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pdss_fl.llm.remote import RemoteGenerator
from pdss_fl.messages import GenerationSettings, PerturbedPrompt, PrivacyStatement, PromptBatch

ROOT = Path(__file__).parent.parent
PDSS = [sys.executable, "-m", "pdss_fl.cli"]


def pdss(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PDSS, *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment}, timeout=120,
    )  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_every_command_explains_itself() -> None:
    shown = pdss("--help").stdout
    for command in ("run", "serve", "predict", "prepare", "privacy", "mechanisms", "perturb", "audit"):
        assert command in shown
        assert pdss(command, "--help").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["serve", "--model", "no/such-model"], "llm.model"),
        (["serve", "--host", "0.0.0.0", "--model", "no/such-model"], "--insecure"),
        (["predict", "missing-folder", "missing-file"], "saved small model"),
        (["privacy", "--epsilon", "0"], "privacy.epsilon"),
        (["privacy", "--epsilon", "nan"], "privacy.epsilon"),
        (["run", "--app", "proto"], "pyproject.toml"),
        (["run", "-c", 'privacy.nonsense="x"'], "without a result"),
    ],
)
def test_wrong_input_gives_one_clear_line(arguments: list[str], what: str, tmp_path: Path) -> None:
    if arguments[0] == "run":
        arguments = [*arguments, "--output", str(tmp_path)]
    result = pdss(*arguments)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert what in last
    assert "Traceback" not in result.stderr


def test_malformed_questions_are_named_by_their_line(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"question": "what is it?"}\n{"question": 3}\n')
    result = pdss("predict", tiny, tmp_path / "q.jsonl")
    assert result.returncode == 1
    assert "q.jsonl:2" in result.stderr


def test_the_default_is_printed_with_its_attack(tiny: Path) -> None:
    shown = pdss("privacy").stdout
    for part in ("staircase", "pure-ldp", "per token", "per document", "best context-free attack", "frequencies"):
        assert part in shown


def test_a_served_llm_answers_is_healthy_and_ends_cleanly(tiny: Path) -> None:
    port = free_port()
    command = [*PDSS, "serve", "--port", str(port), "--model", str(tiny)]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert f"127.0.0.1:{port}" in (server.stdout.readline() if server.stdout else "")
        remote = RemoteGenerator(f"127.0.0.1:{port}")
        statement = PrivacyStatement("staircase", "pure-ldp", 8.0, 100.0, 1e-5, 20, "basic", 0.3, "k=3", "ab")
        batch = PromptBatch(tuple(PerturbedPrompt(i, f"what is {i}", ("a", "b")) for i in range(3)), statement)
        rationales = list(remote.generate(batch, GenerationSettings(5)))
        assert sorted(r.ordinal for r in rationales) == [0, 1, 2]
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            status = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest()).status
        assert status == health_pb2.HealthCheckResponse.SERVING
        busy = pdss("serve", "--port", str(port), "--model", tiny)
        assert busy.returncode == 1
        assert f"--port = {port}" in busy.stderr or str(port) in busy.stderr
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=20) == 0


def test_predictions_are_json_lines(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps({"question": "what is it?", "choices": ["one", "two"]}) + "\n")
    row = json.loads(pdss("predict", tiny, tmp_path / "q.jsonl").stdout)
    assert row["prediction"] in ("one", "two")
    assert row["question"] == "what is it?"
