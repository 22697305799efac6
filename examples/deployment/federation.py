"""A federation on one machine: SuperLink, LLM server and hospitals, each a process with files of its own.

Over the relay nobody but the SuperLink's machine talks to the LLM server, and hospitals talk to the SuperLink
only. With ``Network`` each party gets a network namespace, in which that is all that it can do.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from examples.deployment.credentials import prepare
from examples.deployment.network import Network
from examples.deployment.parties import Party, PartyError
from pdss_fl.processes import free_port, program

START_SECONDS = 120.0
_RESULT = re.compile(r"^results: (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Outcome:
    """How a run ended: everything that ``flwr run --stream`` showed, and the run directory if it has a result."""

    text: str
    directory: Path | None


class Federation:
    """Starts the parties, hands out keys, runs apps, and ends every process that it started.

    Parameters
    ----------
    folder : Path
        For everything that the parties write; made if missing.
    app : Path
        The Flower app's folder.
    hospitals : int (default: 3)
        Number of SuperNodes.
    llm_options : Sequence[str]
        Further options of ``pdss serve``, for example another ``--model``.
    network : Network | None (default: None)
        Namespaces for the parties; all on loopback if not given.
    """

    def __init__(
        self,
        folder: Path,
        app: Path,
        hospitals: int = 3,
        llm_options: Sequence[str] = (),
        network: Network | None = None,
    ) -> None:
        self.folder, self.app, self.network = folder.resolve(), app.resolve(), network
        self.names = [f"hospital-{number}" for number in range(1, hospitals + 1)]
        self.superlink_host = network.superlink_address if network else "127.0.0.1"
        self.llm_host = network.llm_address if network else "127.0.0.1"
        self.superlink_address = f"{self.superlink_host}:{free_port()}"
        self.llm_address = f"{self.llm_host}:{free_port()}"
        prepare(self.folder, hospitals, [self.superlink_host], [self.llm_host])
        self.superlink = self._superlink()
        self.llm = self._llm(llm_options)
        self.hospitals = {name: self._hospital(name) for name in self.names}
        self._runs = 0

    def __enter__(self) -> Federation:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start every party and wait until each is ready."""
        if self.network:
            self.network.create(self.names)
        self.llm.start()
        self.start_superlink()
        self._write_connection()
        with ThreadPoolExecutor() as pool:
            list(pool.map(self.add, self.names))
        self.llm.wait_for("serving ", START_SECONDS)

    def start_superlink(self) -> None:
        """Start the SuperLink, also after it died, and wait until it listens."""
        self.superlink.start()
        _wait_for_port(self.superlink, self.superlink_address, self.network)

    def stop(self) -> None:
        """End every process, those that depend on others first; namespaces go with them."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(Party.stop, [*self.hospitals.values(), self.llm]))
        self.superlink.stop()
        if self.network:
            self.network.remove()

    def add(self, name: str) -> None:
        """Let the SuperLink accept a hospital's key, start its SuperNode, and wait until the two know each other."""
        party = self.hospitals.setdefault(name, self._hospital(name))
        if self._register(name):
            since = len(party.text())
            party.start()
            party.wait_for("SuperNode ID:", START_SECONDS, since)
        else:  # after a crash of an earlier federation here, the SuperLink takes it for connected for a minute
            party.keep_starting("SuperNode ID:", START_SECONDS)

    def _register(self, name: str) -> bool:
        """Register a hospital's key and say whether it is new, which it is not where the folder served before."""
        try:
            self.flwr("supernode", "register", str(self.folder / "superlink" / "nodes" / f"{name}.pub"), "hospital")
        except PartyError as error:
            if "already in use" not in " ".join(str(error).split()):
                raise
            return False
        return True

    def node_id(self, name: str) -> int:
        """Return the id under which the SuperLink's log names a hospital."""
        return int(re.findall(r"SuperNode ID: (\d+)", self.hospitals[name].text())[-1])

    def run(self, settings: Sequence[str], app: Path | None = None, seconds: float = 3600.0) -> Outcome:
        """Run an app as ``flwr run . hospital --stream`` does, and wait for its end."""
        party = self.submit(settings, app)
        try:
            party.wait(seconds)
        finally:
            party.stop()
        return outcome(party)

    def submit(self, settings: Sequence[str], app: Path | None = None) -> Party:
        """Start ``flwr run . hospital --stream`` and return its process."""
        self._runs += 1
        llm = [
            "llm.backend='grpc'", f"llm.address='{self.llm_address}'",
            f"llm.root-certificates='{self.folder / 'superlink' / 'ca.crt'}'",
            f"output-dir='{self.folder / 'superlink' / 'runs'}'",
            f"min-available-nodes={len(self.names)}",
        ]  # fmt: skip
        command = [program("flwr"), "run", str(app or self.app), "hospital", "--stream", "-c"]
        party = self._party(f"run-{self._runs}", "submitter", [*command, " ".join([*llm, *settings])], "superlink")
        party.start()
        return party

    def flwr(self, *arguments: str) -> str:
        """Run another command of ``flwr`` against the SuperLink and return what it says; raises if it fails."""
        command = [program("flwr"), *arguments]
        party = self._party(f"flwr-{secrets.token_hex(4)}", "submitter", command, "superlink")
        party.start()
        code, text = party.wait(START_SECONDS), party.text()
        party.log.unlink()
        if code:
            raise PartyError(f"flwr {' '.join(arguments)}:\n{text}")
        return text

    def _party(
        self, name: str, folder: str, command: Sequence[str], place: str, variables: dict[str, str] | None = None
    ) -> Party:
        prefix = self.network.enter(place) if self.network else []
        return Party(name, self.folder / folder, [*prefix, *command], variables)

    def _superlink(self) -> Party:
        home = self.folder / "superlink"
        host, _, port = self.superlink_address.rpartition(":")
        command = [
            program("flower-superlink"), "--host", host, "--port", port, "--enable-supernode-auth",
            "--ssl-ca-certfile", str(home / "ca.crt"), "--ssl-certfile", str(home / "server.pem"),
            "--ssl-keyfile", str(home / "server.key"), "--database", str(home / "state.db"),
        ]  # fmt: skip
        variables = {"PDSS_TOKEN_KEY": str(home / "token.key")}
        return self._party("superlink", "superlink", command, "superlink", variables)

    def _llm(self, options: Sequence[str]) -> Party:
        home = self.folder / "llm"
        host, _, port = self.llm_address.rpartition(":")
        command = [
            program("pdss"), "serve", "--host", host, "--port", port, "--tls-certificate", str(home / "server.pem"),
            "--tls-key", str(home / "server.key"), "--token-key", str(home / "token.key"), *options,
        ]  # fmt: skip
        return self._party("llm", "llm", command, "llm")

    def _hospital(self, name: str) -> Party:
        home = self.folder / name
        command = [
            program("flower-supernode"), "--superlink", self.superlink_address,
            "--root-certificates", str(home / "ca.crt"), "--auth-supernode-private-key", str(home / "node.key"),
            "--port", str(free_port()), "--node-config", f'policy="{home / "policy.toml"}"',
        ]  # fmt: skip
        # They share this machine's cores: teams of threads as large as if each had all would wait for one another.
        threads = max(1, (os.cpu_count() or 1) // (len(self.names) or 1))
        return self._party(name, name, command, name, {"OMP_NUM_THREADS": str(threads)})

    def _write_connection(self) -> None:
        home = self.folder / "submitter" / "flwr"
        home.mkdir(parents=True, exist_ok=True)
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "hospital"\n\n[superlink.hospital]\naddress = "{self.superlink_address}"\n'
            f'root-certificates = "{self.folder / "superlink" / "ca.crt"}"\n'
        )


def outcome(party: Party) -> Outcome:
    """Return how a submitted run ended."""
    text = party.text()
    found = _RESULT.search(text)
    return Outcome(text, Path(found[1].strip()) if found else None)


def _wait_for_port(party: Party, address: str, network: Network | None) -> None:
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and party.code is None:
        if network.listens(host, int(port)) if network else _listens(host, int(port)):
            return
        time.sleep(0.2)
    raise PartyError(f"the SuperLink does not listen at {address}:\n{party.text()[-2000:]}")


def _listens(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0
