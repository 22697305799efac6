"""A network namespace for each party: a star, in which hospitals see the SuperLink and nothing else.

The SuperLink's namespace has one cable (a veth pair) to each hospital and one to the LLM server, and forwards
nothing between them. Hospitals do have a default route through it, so that what stops their packets is the
SuperLink's machine and not a route that they are free to add.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Sequence

# Says of each address whether anything came back: a connection, or the refusal of a port that is not open.
_PROBE = """
import errno, socket, sys
from concurrent.futures import ThreadPoolExecutor

def probe(address):
    host, _, port = address.rpartition(":")
    with socket.socket() as caller:
        caller.settimeout(1.0)
        return {0: "open", errno.ECONNREFUSED: "closed"}.get(caller.connect_ex((host, int(port))), "nothing")

with ThreadPoolExecutor(max_workers=64) as pool:
    print(*pool.map(probe, sys.argv[1:]))
"""
_CLOSED_PORT = 9


class Network:
    """The namespaces of one federation; addresses are 10.77.N.0/30, of which the SuperLink has the first.

    Attributes
    ----------
    superlink_address, llm_address : str
        Where the two servers listen; the SuperLink's own address is on none of the cables.
    """

    superlink_address, llm_address = "10.77.255.1", "10.77.0.2"

    def __init__(self) -> None:
        self._prefix = f"pdss-{secrets.token_hex(3)}"
        self._made: list[str] = []

    @staticmethod
    def trouble() -> str:
        """Return why this machine allows no namespaces, or an empty text."""
        if shutil.which("ip") is None:
            return "the command `ip` (iproute2) is not installed"
        if os.geteuid() != 0:
            return "only root makes network namespaces"
        name = f"pdss-{secrets.token_hex(3)}"
        made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
        if made.returncode == 0:
            _ip("netns", "delete", name)
        return made.stderr.strip()

    def create(self, hospitals: Sequence[str]) -> None:
        """Make the namespaces of the SuperLink, the LLM server and each hospital, and the cables between them."""
        self._add("superlink")
        self._ip("superlink", "address", "add", f"{self.superlink_address}/32", "dev", "lo")
        forwarding = [*self.enter("superlink"), "cat", "/proc/sys/net/ipv4/ip_forward"]
        if subprocess.run(forwarding, capture_output=True, text=True, check=True).stdout.strip() != "0":
            raise RuntimeError("new namespaces forward packets on this machine: set net.ipv4.ip_forward to 0 in them")
        for number, name in enumerate(["llm", *hospitals]):
            self._add(name)
            self._cable(name, number)

    def enter(self, name: str) -> list[str]:
        """Return what a command is put behind to run in a party's namespace."""
        return ["ip", "netns", "exec", f"{self._prefix}-{name}"]

    def address(self, name: str) -> str:
        """Return the address of a party."""
        return self.superlink_address if name == "superlink" else f"10.77.{self._made.index(name) - 1}.2"

    def listens(self, host: str, port: int) -> bool:
        """Say whether the SuperLink's machine finds an open port there."""
        return self._probe("superlink", [f"{host}:{port}"]) == ["open"]

    def visible_from(self, name: str) -> list[str]:
        """Return the other parties from which anything comes back to a party that calls them."""
        others = [other for other in self._made if other != name]
        found = self._probe(name, [f"{self.address(other)}:{_CLOSED_PORT}" for other in others])
        return [other for other, answer in zip(others, found, strict=True) if answer != "nothing"]

    def remove(self) -> None:
        """Remove the namespaces that were made; cables go with them."""
        for name in self._made:
            _ip("netns", "delete", f"{self._prefix}-{name}")
        self._made.clear()

    def _probe(self, name: str, addresses: Sequence[str]) -> list[str]:
        command = [*self.enter(name), sys.executable, "-c", _PROBE, *addresses]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    def _add(self, name: str) -> None:
        _ip("netns", "add", f"{self._prefix}-{name}")
        self._made.append(name)
        self._ip(name, "link", "set", "lo", "up")

    def _cable(self, name: str, number: int) -> None:
        hub, far = f"{self._prefix}-superlink", f"{self._prefix}-{name}"
        port = f"to-{number}"
        _ip("link", "add", port, "netns", hub, "type", "veth", "peer", "name", "eth0", "netns", far)
        self._ip("superlink", "address", "add", f"10.77.{number}.1/30", "dev", port)
        self._ip("superlink", "link", "set", port, "up")
        self._ip(name, "address", "add", f"10.77.{number}.2/30", "dev", "eth0")
        self._ip(name, "link", "set", "eth0", "up")
        self._ip(name, "route", "add", "default", "via", f"10.77.{number}.1")

    def _ip(self, name: str, *arguments: str) -> None:
        _ip("-n", f"{self._prefix}-{name}", *arguments)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
