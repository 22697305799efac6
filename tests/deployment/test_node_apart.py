"""An app that was changed to read the data finds nothing to read where ``pdss node`` is the client; a node may die.

Two hospitals run it. One is a plain SuperNode of root's (or of whoever runs this); the spy finds its data, and what the
other's node has in memory, which shows that it can spy. At the other ``pdss node`` has the data, as one user, and the
SuperNode is another's. Its node is killed in the first of two rounds, while it trains, and started again.

Only root can be two users. For anybody else the node and the SuperNode are one user's, and the tests say what then
holds.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from examples.deployment.federation import Federation, Outcome, outcome
from examples.deployment.parties import Party
from pdss_fl.bundled import cache_directory
from pdss_fl.processes import program
from tests.deployment.scene import CANARY, EXAMPLES, QUESTIONS, SETTINGS, charges_in, data, lying_app
from tests.deployment.users import FLOWER, NODE, as_user, give, mode

PLAIN, APART = "hospital-1", "hospital-2"
TWO_USERS = os.geteuid() == 0
PRIVATE = ("data.jsonl", "policy.toml", "state/ledger.jsonl", "state/order.key")
OWN = ("ledger.jsonl", "ledger.jsonl.witness", "order.key")
OF_THE_PROCESS = ("environ", "maps", "mem", "fd", "cwd", "root")  # anybody may see its command line

pytestmark = pytest.mark.timeout(900)


@dataclass
class Spied:
    """How the run went, what the spy was told and what it found at each hospital, and what the node left behind."""

    outcome: Outcome
    told: dict[str, str]
    found: dict[str, str]
    modes: dict[str, str]
    charges: tuple[int, int]  # when the node was killed, and at the end
    apart: int  # the second hospital's id


@pytest.fixture(scope="module")
def machine() -> Iterator[Path]:
    """A folder that every user may pass through, as pytest's own is not, with a short name as a socket needs it."""
    with tempfile.TemporaryDirectory(prefix="pdss-") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


@pytest.fixture(scope="module")
def spied(tiny: Path, machine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spied]:
    app = lying_app(tmp_path_factory.mktemp("spy") / "app", "spy")
    federation = Federation(machine / "f", app, 2, ["--model", str(tiny), "--adapter", ""])
    for hospital in federation.names:
        (federation.folder / hospital / "data.jsonl").write_text(data())
    node, state = apart(federation, machine), machine / "node" / "state"
    known = os.pathsep.join(str(machine / "node" / name) for name in ("", *PRIVATE))
    plain, go_on = federation.hospitals[PLAIN], machine / "go-on"
    federation.hospitals[PLAIN] = Party(
        PLAIN, plain.folder, plain.command, {"PDSS_SPY": known, "PDSS_HOLD": str(go_on)}
    )
    settings = [setting for setting in SETTINGS if not setting.startswith("distill.steps")]
    node.start()
    try:
        node.wait_for("node at", 120)
        with federation:
            run = federation.submit([*settings, "distill.steps=50", "num-server-rounds=2"])
            node.wait_for("asks for 'train.distill'", 400)
            node.kill()
            at_death, said = charges_in(state), len(node.text())
            node.start()
            node.wait_for("node at", 120, said)
            made = [*(state / name for name in OWN), machine / "run" / "s"]
            modes = {path.name: mode(path) for path in made}
            go_on.touch()  # the other hospital waits for it, so that there is a node again in the second round
            run.wait(400)
            number = federation.node_id(APART)
        told, found = (
            {name: (party.folder / file).read_text() for name, party in federation.hospitals.items()}
            for file in ("told.txt", "found.txt")
        )
        yield Spied(outcome(run), told, found, modes, (at_death, charges_in(state)), number)
    finally:
        node.stop()


def apart(federation: Federation, machine: Path) -> Party:
    """Part the second hospital's data from its SuperNode, as the runbook says, and return the ``pdss node``."""
    home, desk, socket = machine / "node", machine / "supernode", machine / "run" / "s"
    old = federation.folder / APART
    desk.mkdir()
    socket.parent.mkdir()
    for name in ("ca.crt", "node.key"):
        shutil.move(old / name, desk / name)
    old.rename(home)
    policy = home / "policy.toml"
    policy.write_text(policy.read_text().replace(str(old), str(home)))
    command = [part.replace(f"{old}/", f"{desk}/") for part in federation.hospitals[APART].command]
    command[command.index("--node-config") + 1] = f'node-socket="{socket}"'
    serve = [program("pdss"), "node", str(policy), "--socket", str(socket)]
    if TWO_USERS:
        for folder in (home, desk):
            (folder / "flwr").mkdir()
        # Its own, as each user's cache is; what `pdss prepare` made for this one is readable by this one only.
        shutil.copytree(cache_directory(), home / "cache", ignore=shutil.ignore_patterns("*.lock", "*-bf16"))
        give(home, NODE, 0o700)
        give(desk, FLOWER, 0o700)
        give(socket.parent, NODE, 0o750)
        command, serve = as_user(FLOWER, command), as_user(NODE, serve)
    known = os.pathsep.join(str(home / name) for name in ("", *PRIVATE))
    federation.hospitals[APART] = Party(APART, desk, command, {"PDSS_SPY": known, "HOME": str(desk)})
    cache = home / "cache" if TWO_USERS else cache_directory()
    return Party("node", home, serve, {"HOME": str(home), "PDSS_CACHE_DIR": str(cache)})


def test_the_spy_reads_what_a_plain_supernode_can_read(spied: Spied) -> None:
    assert CANARY in spied.told[PLAIN]
    assert "ledger.jsonl" in spied.told[PLAIN]
    for path in ("data.jsonl", "state/ledger.jsonl"):
        assert f"/node/{path}\n{{" in spied.found[PLAIN], "root, or the node's own user"
    assert f"== /proc/node/mem\n{CANARY} has which" in spied.found[PLAIN]


def test_beside_a_node_the_app_is_told_of_nothing_private(spied: Spied) -> None:
    assert "/run/s: " in spied.told[APART], "the socket is all that it is told of"
    assert CANARY not in spied.told[APART]
    assert "ledger.jsonl" not in spied.told[APART]


def test_beside_a_node_of_another_user_it_finds_nothing_where_it_knows_to_look(spied: Spied, machine: Path) -> None:
    found = spied.found[APART]
    assert f"--socket\0{machine / 'run' / 's'}" in found, "anybody may see a command line"
    if not TWO_USERS:
        assert CANARY in found, "one user has no walls against itself; the runbook asks for two"
        return
    assert CANARY not in found
    for path in PRIVATE:
        assert f"== {machine / 'node' / path}: PermissionError" in found
    for name in OF_THE_PROCESS:
        assert f"== /proc/node/{name}: PermissionError" in found
    assert "/proc/node/environ\n" not in found


def test_the_socket_answers_messages_and_nothing_else(spied: Spied) -> None:
    for method in ("ReadData", "ReadLedger"):
        assert f"== {method}: UNIMPLEMENTED" in spied.found[APART]


def test_what_a_node_makes_is_its_users_and_the_socket_its_groups(spied: Spied) -> None:
    assert spied.modes == {**dict.fromkeys(OWN, "-rw-------"), "s": "srw-rw----"}


def test_a_node_that_died_at_work_is_named_takes_part_again_and_is_charged_once(spied: Spied) -> None:
    assert spied.outcome.directory is not None, spied.outcome.text[-2000:]
    summary = json.loads((spied.outcome.directory / "summary.json").read_text())
    (absence,) = summary["left-out"]
    assert (absence["node"], absence["step"]) == (spied.apart, "distill")
    assert absence["why"].startswith("failed (code 107): this client's `pdss node` did not answer")
    rows = [json.loads(line) for line in (spied.outcome.directory / "metrics.jsonl").read_text().splitlines()]
    assert sum(row["phase"] == "distill" for row in rows) == 3, "one of them in the first round, both in the second"
    assert summary["accuracy"]["pdss"]["n"] == 2 * QUESTIONS
    assert spied.charges == (EXAMPLES // 2, EXAMPLES), "each round's half of the texts once"
