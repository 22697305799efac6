"""An app that was changed to read the data finds nothing to read where ``pdss node`` is the client.

Two hospitals run it. One is a plain SuperNode; the spy finds its data, which shows that it can spy. Beside the other
runs ``pdss node``, and its SuperNode is started where the hospital's folder cannot be seen, as for another user.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from examples.deployment.federation import Federation, Outcome
from examples.deployment.parties import Party
from pdss_fl.processes import program
from tests.deployment.scene import CANARY, EXAMPLES, SETTINGS, data, lying_app

PLAIN, APART = "hospital-1", "hospital-2"

pytestmark = pytest.mark.timeout(900)


@dataclass
class Spied:
    """How the run went, what the spy found at each hospital, and how many texts the second one released."""

    outcome: Outcome
    found: dict[str, str]
    charges: int


def hidden(folder: Path, command: list[str]) -> list[str]:
    """Return a command that starts another where a folder is empty."""
    rights = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    script = 'mount -t tmpfs tmpfs "$0" && exec "$@"'
    return ["unshare", *rights, "--mount", "sh", "-c", script, str(folder), *command]


def apart(federation: Federation) -> Party:
    """Put ``pdss node`` beside the second hospital's SuperNode, and return it."""
    home, desk = federation.folder / APART, federation.folder / f"{APART}-supernode"
    desk.mkdir(mode=0o700)
    for name in ("ca.crt", "node.key"):
        shutil.copy(home / name, desk / name)
    old = federation.hospitals[APART]
    command = [part.replace(str(home / "ca.crt"), str(desk / "ca.crt")) for part in old.command]
    command = [part.replace(str(home / "node.key"), str(desk / "node.key")) for part in command]
    command[command.index("--node-config") + 1] = f'node-socket="{desk / "s"}"'
    federation.hospitals[APART] = Party(APART, desk, hidden(home, command), {"PDSS_SPY": str(home)})
    return Party("node", home, [program("pdss"), "node", str(home / "policy.toml"), "--socket", str(desk / "s")])


@pytest.fixture(scope="module")
def spied(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spied]:
    folder = tmp_path_factory.mktemp("spy")
    app = lying_app(folder / "app", "spy")
    federation = Federation(folder / "f", app, 2, ["--model", str(tiny), "--adapter", ""])
    for hospital in federation.names:
        (federation.folder / hospital / "data.jsonl").write_text(data())
    node = apart(federation)
    node.start()
    try:
        node.wait_for("node at", 120)
        with federation:
            outcome = federation.run([*SETTINGS, "privacy.epsilon=6.0"], seconds=600)
        found = {name: (party.folder / "found.txt").read_text() for name, party in federation.hospitals.items()}
        ledger = federation.folder / APART / "state" / "ledger.jsonl"
        yield Spied(outcome, found, len(ledger.read_text().splitlines()))
    finally:
        node.stop()


def test_the_spy_reads_what_a_plain_supernode_can_read(spied: Spied) -> None:
    assert CANARY in spied.found[PLAIN]
    assert "ledger.jsonl" in spied.found[PLAIN]


def test_beside_a_node_it_finds_nothing(spied: Spied) -> None:
    assert spied.found[APART], "it looked"
    assert CANARY not in spied.found[APART]
    assert "ledger.jsonl" not in spied.found[APART]
    assert "data.jsonl" not in spied.found[APART]


def test_the_run_has_a_result_of_both(spied: Spied) -> None:
    assert spied.outcome.directory is not None, spied.outcome.text[-2000:]
    assert spied.charges >= EXAMPLES, "the node perturbed and paid"
    rows = (spied.outcome.directory / "metrics.jsonl").read_text()
    assert rows.count('"distill"') == 2
