"""The example as its operator starts it: one command, real processes, which end with it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from examples.deployment.network import Network
from pdss_fl.privacy.counts import TEST_SPLIT
from pdss_fl.privacy.ledger_file import read_ledger

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
        releases = [line["example"] for line in read_ledger(hospital / "state" / "ledger.jsonl").lines]
        assert len(releases) - releases.count(TEST_SPLIT) == 6
        assert releases.count(TEST_SPLIT) == 1, "the count of right answers is noisy, so it is charged"
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
