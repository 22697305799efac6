"""A federation that starts again in its folder, and whose hospitals come, go and change keys while it runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from examples.deployment.credentials import make_hospital, renew_node_key
from examples.deployment.federation import Federation
from examples.deployment.parties import Party, PartyError

pytestmark = pytest.mark.timeout(600)
ROOT = Path(__file__).parent.parent.parent
FIRST, LATER = "hospital-1", "hospital-2"


def online(federation: Federation) -> set[int]:
    """Return the ids of the nodes that the SuperLink takes for connected."""
    nodes = json.loads(federation.flwr("supernode", "list", "hospital", "--format", "json"))["nodes"]
    return {int(node["node-id"]) for node in nodes if node["status"] == "online"}


def unregister(federation: Federation, name: str) -> None:
    federation.flwr("supernode", "unregister", str(federation.node_id(name)), "hospital")


def test_hospitals_are_known_again_come_go_and_change_their_keys(tiny: Path, tmp_path: Path) -> None:
    llm = ["--model", str(tiny), "--adapter", ""]
    with Federation(tmp_path, ROOT, 1, llm) as federation:
        first = federation.node_id(FIRST)

    with Federation(tmp_path, ROOT, 1, llm) as federation:
        assert online(federation) == {first} == {federation.node_id(FIRST)}, "its key was registered already"

        make_hospital(tmp_path, LATER, [])
        federation.add(LATER)
        later = federation.node_id(LATER)
        assert online(federation) == {first, later}

        unregister(federation, FIRST)
        federation.hospitals[FIRST].wait(120)  # it ends at its next sign of life
        federation.hospitals[FIRST].start()
        assert federation.hospitals[FIRST].wait(120) != 0, "nor may it come back"
        assert online(federation) == {later}, "the others do not notice"

        federation.hospitals[LATER].stop()
        shutil.copy(renew_node_key(tmp_path / LATER), tmp_path / "superlink" / "nodes" / f"{LATER}.pub")
        unregister(federation, LATER)
        federation.add(LATER)
        assert online(federation) == {federation.node_id(LATER)}
        assert federation.node_id(LATER) not in (first, later)


def test_only_what_a_party_says_itself_counts_and_not_an_earlier_ones_log(tmp_path: Path) -> None:
    for said in ("results: one", "results: two"):
        party = Party("run-1", tmp_path, ["sh", "-c", f"echo {said}"])
        party.start()
        assert party.wait(30) == 0
        assert party.text() == f"{said}\n"
    silent = Party("run-1", tmp_path, ["true"])
    silent.start()
    with pytest.raises(PartyError, match="ended with code 0 before it said 'results: '"):
        silent.wait_for("results: ", 30)
    assert silent.log.read_text() == "results: one\nresults: two\n", "the log keeps both"
