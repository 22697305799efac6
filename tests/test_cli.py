"""The commands as a user types them: help, one clear line for wrong input, and a server that answers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pdss_fl.errors import LLMUnavailable
from pdss_fl.llm.remote import RemoteGenerator
from pdss_fl.llm.tokens import TokenIssuer, read_key
from pdss_fl.messages import GenerationSettings, PerturbedPrompt, PrivacyStatement, PromptBatch
from tests.llm.network import make_certificates

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
    for command in ("run", "serve", "token-key", "predict", "prepare", "privacy", "mechanisms", "perturb", "audit"):
        assert command in shown
        assert pdss(command, "--help").returncode == 0


def test_only_a_command_that_needs_a_model_imports_the_libraries_of_models() -> None:
    check = "import sys, pdss_fl.cli; sys.exit(' '.join({'torch', 'transformers'} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), "they take longer than anything that a help text does"


def test_the_help_of_serve_is_grouped_and_names_every_limit() -> None:
    shown = pdss("serve", "--help", COLUMNS="80").stdout
    for part in ("LLM", "Network and security", "Limits", "Operation"):
        assert f"─ {part} ─" in shown
    options = "--tls-certificate --client-ca --token-key --insecure --metrics-port --drain-seconds --log-format"
    limits = "--max-request-bytes --max-prompts --max-prompt-tokens --max-new-tokens --max-requests --max-seconds"
    for option in f"{options} {limits} --max-per-tenant --max-queued --max-streams --idle-seconds".split():
        assert f" {option} " in shown
    assert "…" not in shown, "no option is cut off at 80 columns"


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["serve", "--port", "0", "--model", "no/such-model"], "--model"),
        (
            ["serve", "--port", "0", "--model", "/nope"],
            "--model = '/nope' cannot be loaded: it is a path, and no folder",
        ),
        (["serve", "--port", "0", "--instruction", "nope.json"], "--instruction = 'nope.json': no such file"),
        (["serve", "--dtype", "int8"], "--dtype = 'int8' is unknown; use auto, float32, bfloat16 or float16"),
        (["serve", "--host", "none.invalid", "--insecure"], "--host = 'none.invalid' is not a name"),
        (["serve", "--host", "198.51.100.7", "--insecure"], "is not an address of this machine"),
        (["serve", "--host", "0.0.0.0", "--model", "no/such-model"], "--insecure"),
        (["serve", "--tls-certificate", "a.pem"], "--tls-key"),
        (["serve", "--token-key", "no-such-file"], "--token-key"),
        (["serve", "--log-format", "xml"], "--log-format"),
        (["token-key", "pyproject.toml"], "exists already"),
        (["predict", "missing-folder", "missing-file"], "saved small model"),
        (["privacy", "--epsilon", "0"], "privacy.epsilon"),
        (["privacy", "--epsilon", "nan"], "privacy.epsilon"),
        (["run", "--app", "proto"], "pyproject.toml"),
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


@pytest.mark.parametrize("limit", ["--max-prompts=20001", "--max-new-tokens=513", "--max-request-bytes=33554433"])
def test_a_limit_above_what_the_protocol_carries_is_refused(limit: str) -> None:
    result = pdss("serve", limit)
    assert result.returncode == 2
    assert limit.partition("=")[0] in result.stderr


def test_a_key_of_another_certificate_is_named_in_one_line(tmp_path: Path) -> None:
    one, other = make_certificates(tmp_path / "one"), make_certificates(tmp_path / "other")
    result = pdss("serve", "--port", "0", "--tls-certificate", one.server, "--tls-key", other.server_key)
    assert result.returncode == 1
    (line,) = result.stderr.strip().splitlines()
    assert "--tls-certificate and --tls-key do not belong together" in line


def test_malformed_questions_are_named_by_their_line(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"question": "what is it?"}\n{"question": 3}\n')
    result = pdss("predict", tiny, tmp_path / "q.jsonl")
    assert result.returncode == 1
    assert "q.jsonl:2" in result.stderr


def test_the_default_is_printed_with_its_attack(tiny: Path) -> None:
    shown = pdss("privacy").stdout
    for part in ("staircase", "pure-ldp", "per token", "per document", "best context-free attack", "frequencies"):
        assert part in shown


@contextmanager
def served(tiny: Path, *options: str | Path, stderr: Any = None) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run ``pdss serve`` on a free port until the block is left; yield its address."""
    address = f"127.0.0.1:{free_port()}"
    command = [*PDSS, "serve", "--port", address.rpartition(":")[2], "--model", str(tiny), *map(str, options)]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True)
    try:
        assert address in (server.stdout.readline() if server.stdout else "")
        yield address, server
    finally:
        server.kill()
        server.wait()


def batch_of(prompts: int) -> PromptBatch:
    statement = PrivacyStatement("staircase", "pure-ldp", 8.0, 100.0, 1e-5, 20, "basic", 0.3, "k=3", "ab")
    return PromptBatch(tuple(PerturbedPrompt(i, f"what is {i}", ("a", "b")) for i in range(prompts)), statement)


def read_all(terminal: int, into: list[bytes]) -> None:
    """Read a terminal until nobody holds its other end any more."""
    with contextlib.suppress(OSError):
        while data := os.read(terminal, 4096):
            into.append(data)


def test_a_served_llm_answers_shows_a_status_line_and_ends_cleanly(tiny: Path) -> None:
    master, slave = os.openpty()
    shown: list[bytes] = []
    reader = threading.Thread(target=read_all, args=(master, shown))
    with served(tiny, stderr=slave) as (address, server):
        os.close(slave)
        reader.start()
        rationales = list(RemoteGenerator(address).generate(batch_of(3), GenerationSettings(5)))
        assert sorted(r.ordinal for r in rationales) == [0, 1, 2]
        with grpc.insecure_channel(address) as channel:
            status = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest()).status
        assert status == health_pb2.HealthCheckResponse.SERVING
        port = address.rpartition(":")[2]
        busy = pdss("serve", "--port", port, "--model", tiny)
        assert busy.returncode == 1
        (line,) = busy.stderr.strip().splitlines()
        assert line.startswith("error: ")
        assert f"--port = {port} on --host = '127.0.0.1' is in use" in line
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=60) == 0
    reader.join(timeout=30)
    os.close(master)
    text = b"".join(shown).decode()
    assert "3 of 3 prompts answered" in text
    assert "OK: 3 rationales" in text
    assert "Traceback" not in text


def test_a_terminated_server_finishes_what_is_under_way_and_logs_objects(tiny: Path, tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path / "certificates")
    assert pdss("token-key", tmp_path / "key").returncode == 0
    issuer = TokenIssuer(read_key(tmp_path / "key", "--token-key"), 4, 60)
    options = ["--tls-certificate", certificates.server, "--tls-key", certificates.server_key]
    options += ["--token-key", tmp_path / "key", "--log-format", "json", "--batch-size", "4"]
    with open(tmp_path / "log", "w") as log, served(tiny, *options, stderr=log) as (address, server):
        tls = certificates.client_tls()
        with pytest.raises(LLMUnavailable, match="does not accept the token"):
            RemoteGenerator(address, tls=tls).info  # noqa: B018
        remote = RemoteGenerator(address, tls=tls, token=lambda: issuer.token(0), retries=0)
        answers = remote.generate(batch_of(60), GenerationSettings(16, ()))
        found = [next(answers)]
        server.terminate()
        found += answers
        assert sorted(r.ordinal for r in found) == list(range(60))
        assert server.wait(timeout=60) == 0
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines() if line.startswith("{")]
    (ended,) = [line for line in lines if line.get("status") == "OK"]
    assert ended["rationales"] == 60
    assert ended["level"] == "INFO"
    assert any(line["message"] == "stopping; 1 requests under way" for line in lines)
    assert "what is" not in (tmp_path / "log").read_text()


def test_predictions_are_json_lines(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps({"question": "what is it?", "choices": ["one", "two"]}) + "\n")
    row = json.loads(pdss("predict", tiny, tmp_path / "q.jsonl").stdout)
    assert row["prediction"] in ("one", "two")
    assert row["question"] == "what is it?"
