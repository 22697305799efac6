"""``pdss run``: one simulated Flower run with its own SuperLink, which ends with it."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pdss_fl.errors import SettingError
from pdss_fl.logs import LOG_PREFIX
from pdss_fl.processes import end, flower_environment, free_port, program
from pdss_fl.run_bars import RunBars
from pdss_fl.run_config import as_toml, read_overrides

_CONNECTION = "pdss"
_RAY_PREFIX = re.compile(r"^(\x1b\[\d+m)?\(ClientAppActor[^)]*\)(\x1b\[0m)? ")
_START_SECONDS = 60.0


def run_simulation(app: Path, run_config: Sequence[str], clients: int, home: Path | None = None) -> Path:
    """Run the app in ``app`` with simulated clients and return the run directory.

    Parameters
    ----------
    app : Path
        The Flower app's folder, the one with ``pyproject.toml``.
    run_config : Sequence[str]
        Overrides as for ``flwr run -c``, for example ``"privacy.epsilon=6.0"``; see ``read_overrides``.
    clients : int
        Number of simulated clients; each gets one CPU.
    home : Path | None (default: None)
        Flower's home for this run; a fresh temporary one by default, so that no connection, no port and
        no SuperLink of the user's is touched.

    Raises
    ------
    SettingError
        If the SuperLink does not start, or the run does not end with a result.
    """
    overrides = {"min-available-nodes": clients, **read_overrides(run_config)}
    with RunBars() as bars, _flower_home(home) as flower_home, _superlink(flower_home) as environment:
        command = [program("flwr"), "run", str(app), _CONNECTION, "--stream"]
        command += ["--federation-config", f"num-supernodes={clients} client-resources-num-cpus=1"]
        asked = flower_home / "run.toml"
        asked.write_text(as_toml(overrides), encoding="utf-8")
        command += ["-c", str(asked)]
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            found, others = _follow(process.stdout or (), bars.show)
    if found is None:
        print("".join(others), end="", flush=True)
        raise SettingError("the run ended without a result; the lines above say why")
    return found


def _follow(lines: Iterable[str], show: Callable[[str], None]) -> tuple[Path | None, deque[str]]:
    """Show this project's own log lines once each; return the result's path and the last other lines.

    Flower's log stream repeats a chunk now and then; the lines carry the time, so equal ones are repeats.
    """
    found, shown, others = None, set[str](), deque[str](maxlen=40)
    for raw in lines:
        line = _RAY_PREFIX.sub("", raw)
        if line.startswith("results: "):
            found = Path(line.removeprefix("results: ").strip())
        elif line.startswith(LOG_PREFIX):
            if line not in shown:
                show(line)
            shown.add(line)
        else:
            others.append(raw)
    if any(" error: " in line for line in shown):
        others.clear()  # the run said itself why it ended
    return found, others


@contextmanager
def _flower_home(home: Path | None) -> Iterator[Path]:
    if home is not None:
        home.mkdir(parents=True, exist_ok=True)
        yield home
        return
    path = Path(tempfile.mkdtemp(prefix="pdss-flwr-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _superlink(home: Path) -> Iterator[dict[str, str]]:
    """Start a SuperLink on a free port, yield the environment that reaches it, end it with its children."""
    port = free_port()
    environment = flower_environment(home)
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "{_CONNECTION}"\n\n[superlink.{_CONNECTION}]\n'
        f'address = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    command = [program("flower-superlink"), "--insecure", "--simulation", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--isolation", "subprocess"]
    log_path = home / "superlink.log"
    with open(log_path, "w") as log:
        # Started in Flower's home: Ray's workers would import the app from the working directory otherwise.
        process = subprocess.Popen(command, cwd=home, env=environment, stdout=log, stderr=log)
    try:
        _wait_for_port(port, process, log_path)
        yield environment
    finally:
        end(process)


def _wait_for_port(port: int, process: subprocess.Popen[bytes], log_path: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    tail = "".join(log_path.read_text(errors="replace").splitlines(keepends=True)[-5:])
    raise SettingError("Flower's SuperLink did not start; is another one being started?", tail)
