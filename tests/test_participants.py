"""Rounds that ask a part of the clients: the same part for every method of a run, another one each round."""

from __future__ import annotations

import json
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from pdss_fl.client_app import create_client_app
from pdss_fl.config import RunSettings
from pdss_fl.errors import QuorumLost
from pdss_fl.journal import Journal
from pdss_fl.participants import draw
from pdss_fl.server_app import run_comparison
from pdss_fl.strategy import StepByStepDistillation
from tests.harness import EchoGenerator, LoopbackGrid, small_run
from tests.test_resume import differences, outcome

CLIENTS, ROUNDS = 10, 3
NODES = st.sets(st.integers(0, 2**64 - 1), max_size=20)

Asked = dict[tuple[str, int], set[int]]


class Killed(BaseException):
    """The ServerApp's machine went off; nothing of the project catches this."""


def run_of(tmp_path: Path, tiny: Path, **changes: Any) -> dict[str, Any]:
    """Return the settings of ten simulated clients of which three are asked in each of three rounds."""
    data = tmp_path / "data.jsonl"
    rows = [{"question": f"what has {w} {i}?", "choices": ["one", "two"], "answer": "one"}
            for i in range(40) for w in ("time", "year", "people")]  # fmt: skip
    data.write_text("\n".join(map(json.dumps, rows)))
    own = {
        "output-dir": str(tmp_path / "runs"), "methods": "untrained standalone pdss", "num-server-rounds": ROUNDS,
        "fraction-train": 0.3, "privacy.question-words": 8, "data.path": str(data), "data.train-examples": 6,
        "data.test-examples": 4, "min-available-nodes": CLIENTS, "insecure-noise-seed": 5,
    }  # fmt: skip
    return small_run(tiny, **{**own, **changes})


def compare(
    config: dict[str, Any], run_id: int = 1, killed_in: tuple[str, int] | None = None, **changes: Any
) -> tuple[Path | None, Asked, Asked]:
    """Run a comparison; return its directory, and whom it asked to train and to evaluate.

    ``killed_in`` is a method and a round whose second client to train never gets its message.
    """
    config = {**config, **changes}
    messages: list[Message] = []

    def die(message: Message) -> bool:
        messages.append(message)
        if killed_in and len(asked(messages, "train.distill")[killed_in]) == 2:
            raise Killed
        return False

    contexts = {
        1000 + i: Context(run_id, 1000 + i, {"partition-id": i, "num-partitions": CLIENTS}, RecordDict(), config)
        for i in range(CLIENTS)
    }
    grid, run = LoopbackGrid(create_client_app(), contexts, die), None
    with suppress(Killed):
        run = Path(run_comparison(grid, RunSettings.from_run_config(config), run_id))
    return run, asked(messages, "train.distill"), asked(messages, "evaluate")


def asked(messages: list[Message], kind: str) -> Asked:
    found: Asked = defaultdict(set)
    for message in messages:
        if message.metadata.message_type == kind:
            config = message.content["config"]
            assert isinstance(config, ConfigRecord)
            found[str(config["method"]), int(str(config["server-round"]))].add(message.metadata.dst_node_id)
    return found


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pdss_fl.client_app.in_simulation", lambda: True)
    monkeypatch.setattr("pdss_fl.server_app.load_generator", lambda *_: EchoGenerator())


@pytest.mark.usefixtures("simulated")
def test_all_methods_train_the_same_clients_and_each_round_others(tmp_path: Path, tiny: Path) -> None:
    run, trained, evaluated = compare(run_of(tmp_path, tiny))
    rounds = range(1, ROUNDS + 1)
    sets = [trained["standalone", number] for number in rounds]
    assert [trained["pdss", number] for number in rounds] == sets
    assert [len(nodes) for nodes in sets] == [3, 3, 3]
    assert len(set(map(frozenset, sets))) == ROUNDS
    every = set.union(*sets)
    assert len(every) < CLIENTS
    compared = [("untrained", 0), ("standalone", ROUNDS), ("pdss", ROUNDS)]
    assert [evaluated[place] for place in compared] == [every, every, every], "the table compares the same clients"
    assert run is not None
    summary = json.loads((run / "summary.json").read_text())
    assert len({summary["accuracy"][method]["n"] for method, _ in compared}) == 1, "and the same questions"
    assert all(entry["gain"].keys() >= {"pdss"} for entry in summary["clients"]), "each has a paired gain"


@pytest.mark.usefixtures("simulated")
def test_another_seed_draws_others_and_equal_runs_are_equal(tmp_path: Path, tiny: Path) -> None:
    config = run_of(tmp_path, tiny, methods="standalone", **{"distill.steps": 1})
    first, again, other = (compare(config, i, seed=seed)[1] for i, seed in enumerate((3, 3, 4)))
    assert first == again != other


@pytest.mark.usefixtures("simulated")
def test_an_interrupted_run_goes_on_with_the_clients_of_an_uninterrupted_one(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    whole, trained, _ = compare(run_of(tmp_path / "whole", tiny), 1)
    config = run_of(tmp_path / "killed", tiny)
    nothing, before, _ = compare(config, 1, killed_in=("pdss", 2))
    assert nothing is None
    assert before["pdss", 1] == trained["pdss", 1]
    assert before["pdss", 2] < trained["pdss", 2], "killed in the middle of a round"
    resumed, after, _ = compare(config, 2, resume=True)
    assert after == {place: trained[place] for place in (("pdss", 2), ("pdss", 3))}, "whole rounds are not done again"
    assert whole is not None
    assert resumed is not None
    assert not differences(outcome(whole), outcome(resumed))


@pytest.mark.parametrize("gone", [False, True])
def test_a_round_that_had_begun_goes_on_with_its_clients_if_all_are_there(tmp_path: Path, gone: bool) -> None:
    nodes = range(1, 11)
    begun = sorted(set(nodes) - set(draw(nodes, 3, 0, 1)))[:3]  # whom nothing but the journal names
    journal = Journal(tmp_path / "journal.jsonl")
    journal.add("sample", method="standalone", round=1, nodes=begun)
    there = [node for node in nodes if not gone or node != begun[0]]
    grid = LoopbackGrid(create_client_app(), {node: Context(1, node, {}, RecordDict(), {}) for node in there})
    strategy = StepByStepDistillation(None, method="standalone", fraction_train=0.34, journal=journal)
    messages = strategy.configure_train(1, ArrayRecord(), ConfigRecord(), grid)
    assert [m.metadata.dst_node_id for m in messages] == (draw(there, 3, 0, 1) if gone else begun)


def test_a_federation_below_its_quorum_ends_with_one_clear_line(tmp_path: Path) -> None:
    grid = LoopbackGrid(create_client_app(), {1: Context(1, 1, {}, RecordDict(), {})})
    strategy = StepByStepDistillation(None, method="standalone", quorum=2, fraction_train=0.3, perturb_timeout=0.1)
    with pytest.raises(QuorumLost, match=r"1 clients are connected after 0\.1 s .* fewer than quorum = 2"):
        strategy.start(grid, ArrayRecord(), num_rounds=1)
    assert not grid.requests


@given(NODES, st.integers(0, 20), st.integers(0, 9), st.integers(1, 9))
def test_a_draw_depends_on_its_arguments_alone(nodes: set[int], size: int, seed: int, server_round: int) -> None:
    found = draw(nodes, size, seed, server_round)
    assert found == draw(sorted(nodes, reverse=True), size, seed, server_round) == sorted(found)
    assert len(found) == min(size, len(nodes))
    assert set(found) <= nodes


@given(NODES.filter(bool), st.integers(1, 20), st.integers(1, 9), st.data())
def test_a_client_that_is_lost_changes_at_most_one_other(
    nodes: set[int], size: int, server_round: int, data: st.DataObject
) -> None:
    lost = data.draw(st.sampled_from(sorted(nodes)))
    before, after = (set(draw(there, size, 0, server_round)) for there in (nodes, nodes - {lost}))
    assert before - {lost} <= after
    assert len(after - before) <= (lost in before)


def test_each_client_is_drawn_about_as_often_as_any_other() -> None:
    drawn = [node for number in range(1, 3001) for node in draw(range(10), 3, 0, number)]
    counts = [drawn.count(node) for node in range(10)]
    assert all(abs(count - 900) < 4 * (3000 * 0.3 * 0.7) ** 0.5 for count in counts), counts
