"""The example as its operator starts it: one command, real processes, which end with it."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from cryptography import x509

from examples.deployment.credentials import make_certificate, prepare
from examples.deployment.network import Network

pytestmark = pytest.mark.timeout(900)
ROOT = Path(__file__).parent.parent.parent
COMMAND = [sys.executable, "-m", "examples.deployment", "run", "--short"]


def processes_of(folder: Path) -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cmdline", "cwd"]) if str(folder) in f"{p.info['cmdline']} {p.info['cwd']}"]


def test_one_command_runs_the_federation_and_ends_every_process(tiny: Path, tmp_path: Path) -> None:
    command = [
        *COMMAND,
        "--folder",
        str(tmp_path / "f"),
        "--llm",
        str(tiny),
        "-c",
        "slm.hidden-size=32 llm.max-new-tokens=4",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "LLM: 18 prompts of 3 clients" in done.stdout
    (result,) = (tmp_path / "f" / "superlink" / "runs").glob("*/summary.json")
    assert str(result.parent) in done.stdout
    for number in (1, 2, 3):
        hospital = tmp_path / "f" / f"hospital-{number}"
        assert (hospital / "state" / "ledger.jsonl").read_text().count("\n") == 6
        (_,) = (hospital / "state" / "runs").glob("*/slm/pdss/model.safetensors")
    assert not processes_of(tmp_path)


def test_ctrl_c_ends_every_process(tiny: Path, tmp_path: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "--folder", tmp_path, "--llm", tiny], cwd=ROOT, stderr=subprocess.DEVNULL
    ) as party:
        try:
            deadline = time.monotonic() + 300
            while not list(tmp_path.glob("hospital-*/hospital-*.log")):
                assert time.monotonic() < deadline
                time.sleep(0.1)
            assert len(processes_of(tmp_path)) > 3
        finally:
            party.send_signal(signal.SIGINT)
        assert party.wait(300) != 0
    assert not processes_of(tmp_path)


def test_where_no_namespaces_are_allowed_the_command_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no `ip` there
    assert "ip" in Network.trouble()
    done = subprocess.run([*COMMAND, "--namespaces"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "allows no network namespaces" in done.stderr


def test_credentials_are_made_once_and_secrets_are_their_owners_only(tmp_path: Path) -> None:
    prepare(tmp_path, 2, ["127.0.0.1", "link.example.org"], ["llm.example.org"])
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    secrets = [path for path in files if path.suffix == ".key"]
    assert len(secrets) == 7
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}
    assert len({files[path] for path in secrets}) == 6, "the LLM server and the SuperLink share the token key, no other"
    assert files[tmp_path / "hospital-1" / "data.jsonl"] != files[tmp_path / "hospital-2" / "data.jsonl"]
    prepare(tmp_path, 2, ["other"], ["other"])
    assert {path: path.read_bytes() for path in files} == files


def test_a_certificate_is_renewed_under_the_same_ca(tmp_path: Path) -> None:
    prepare(tmp_path, 1, ["127.0.0.1"], ["127.0.0.1"])
    home = tmp_path / "superlink"
    before = x509.load_pem_x509_certificate((home / "server.pem").read_bytes())
    (home / "server.pem").unlink()
    (home / "server.key").unlink()
    make_certificate(tmp_path, "superlink", ["10.0.0.1"])
    after = x509.load_pem_x509_certificate((home / "server.pem").read_bytes())
    assert before.serial_number != after.serial_number
    after.verify_directly_issued_by(x509.load_pem_x509_certificate((home / "ca.crt").read_bytes()))
