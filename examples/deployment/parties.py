"""One party of a federation as a process on this machine, with a log and a Flower home of its own."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from pdss_fl.processes import end, flower_environment


class PartyError(Exception):
    """A party ended, or did not do in time what was waited for; the message shows the end of its log."""


class Party:
    """A process that is started, waited for, and ended by its own id, with all that it started.

    Parameters
    ----------
    name : str
        Names the log, of which only what is said from now on counts; it may have lines of an earlier federation.
    folder : Path
        The party's own; its working directory, with Flower's home in ``flwr/`` and the log in ``NAME.log``.
    command : Sequence[str]
        Program and arguments.
    variables : dict[str, str] | None
        Added to the environment.
    """

    def __init__(
        self, name: str, folder: Path, command: Sequence[str], variables: dict[str, str] | None = None
    ) -> None:
        self.name, self.folder, self.command = name, folder, list(command)
        self.log = folder / f"{name}.log"
        self._before = self.log.stat().st_size if self.log.exists() else 0
        self._variables = variables or {}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process; what it says is added to the log."""
        home = self.folder / "flwr"
        home.mkdir(parents=True, exist_ok=True)
        environment = {**flower_environment(home), **self._variables}
        with open(self.log, "ab") as log:
            # In a session of its own, so that Ctrl-C reaches the federation, which then ends its parties in order.
            self._process = subprocess.Popen(
                self.command, cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def keep_starting(self, text: str, seconds: float) -> None:
        """Start the process until it says a text, again each time that it ends first, as a supervisor does.

        After a crash a SuperLink takes a SuperNode for connected for another minute and refuses a second one.
        """
        deadline, since = time.monotonic() + seconds, len(self.text())
        while text not in self.text()[since:]:
            if self._process is None or self.code is not None:
                self.start()
            if time.monotonic() > deadline:
                raise self._trouble(f"did not say {text!r} in {seconds:g} s")
            time.sleep(2.0)

    def stop(self) -> None:
        """Ask the process and all that it started to end, and make sure of it."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the process and all that it started at once, like a machine that loses power."""
        self._end(signal.SIGKILL)

    @property
    def pid(self) -> int:
        """The process's id; raises ``PartyError`` if it is not started."""
        if self._process is None:
            raise PartyError(f"{self.name} is not started")
        return self._process.pid

    @property
    def code(self) -> int | None:
        """The exit code, ``None`` while the process runs."""
        return None if self._process is None else self._process.poll()

    def text(self) -> str:
        """Return what this party has said so far."""
        return self.log.read_bytes()[self._before :].decode(errors="replace") if self.log.exists() else ""

    def wait(self, seconds: float) -> int:
        """Return the exit code; raises ``PartyError`` if the process does not end in time."""
        assert self._process is not None
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise self._trouble(f"did not end in {seconds:g} s") from None

    def wait_for(self, text: str, seconds: float, since: int = 0) -> None:
        """Wait until the log has a text after its first ``since`` characters; raises ``PartyError`` otherwise."""
        deadline = time.monotonic() + seconds
        while text not in self.text()[since:]:
            if self.code is not None:
                raise self._trouble(f"ended with code {self.code} before it said {text!r}")
            if time.monotonic() > deadline:
                raise self._trouble(f"did not say {text!r} in {seconds:g} s")
            time.sleep(0.1)

    def _trouble(self, what: str) -> PartyError:
        return PartyError(f"{self.name} {what}; the end of {self.log}:\n" + "\n".join(self.text().splitlines()[-15:]))

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            end(self._process, how)
            self._process.wait()
