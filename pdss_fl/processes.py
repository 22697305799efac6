"""Processes of Flower on this machine: which command, which port, which environment, and how they are ended."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from pdss_fl.errors import SettingError

_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYTHONUNBUFFERED": "1",
    "PYTHONWARNINGS": "ignore::FutureWarning",
    "RAY_DEDUP_LOGS": "0",
}

_PACE = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"}
"""Seconds until Flower's SuperExec next asks for work; Flower's default of one passes before every app starts."""


def flower_environment(home: Path) -> dict[str, str]:
    """Return this process's environment with a home for Flower and without its calls to other machines."""
    # Flower's commands start each other by name, also where the environment is not activated.
    search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**_PACE, **os.environ, **_QUIET, "FLWR_HOME": str(home), "PATH": search}


def program(name: str) -> str:
    """Return a command of this Python's own environment; raises ``SettingError`` if it is not installed."""
    beside = Path(sys.executable).with_name(name)
    path = str(beside) if beside.exists() else shutil.which(name)
    if path is None:
        raise SettingError(f"the command {name!r} is not installed beside this Python: run make setup")
    return path


def free_port() -> int:
    """Return a TCP port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def end(process: subprocess.Popen[bytes], how: signal.Signals = signal.SIGTERM) -> None:
    """End a process that this one started, and everything that it started; what stays after 10 seconds is killed."""
    try:
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    except psutil.NoSuchProcess:
        return
    _signal(family, how)
    _, alive = psutil.wait_procs(family, timeout=10)
    _signal(alive, signal.SIGKILL)


def _signal(family: list[psutil.Process], number: signal.Signals) -> None:
    for member in family:
        with suppress(psutil.NoSuchProcess):  # one that ends may take others with it
            member.send_signal(number)
