"""What a run cannot know or choose of a deployed node's examples: their order, and where a round cuts them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pdss_fl.client import DistillationClient
from pdss_fl.config import RunSettings
from pdss_fl.errors import MessageError
from pdss_fl.policy import NodePolicy
from tests.harness import node


def client(tmp_path: Path, tiny: Path, state: str = "a", **asked: Any) -> DistillationClient:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps({"question": f"is it number {i}?", "answer": "yes"}) for i in range(100)))
    settings = RunSettings.from_run_config(
        {
            "privacy.embeddings": str(tiny),
            "privacy.vocabulary": "english",
            "privacy.vocabulary-size": 200,
            "data.source": "jsonl",
            **asked,
        }
    )
    policy = node(tmp_path / state, path, **{"allowed-models": f"scratch {tiny}"})
    return DistillationClient(settings, NodePolicy.from_node_config(policy), 1)


def test_the_order_of_a_nodes_examples_is_its_own_and_stays(tmp_path: Path, tiny: Path) -> None:
    one, again, other = (client(tmp_path, tiny, state) for state in ("a", "a", "b"))
    assert one.train_examples == again.train_examples, "what was released is found again"
    assert one.train_examples != other.train_examples, "the run's seed alone does not tell it"
    assert (tmp_path / "a" / "order.key").stat().st_mode & 0o077 == 0


def test_two_runs_cannot_test_on_all_but_one_of_the_same_questions(tmp_path: Path, tiny: Path) -> None:
    some, more = (set(client(tmp_path, tiny, **{"data.test-examples": n}).test_examples) for n in (20, 21))
    assert (len(some), len(more)) == (20, 21)
    assert not some < more


@pytest.mark.parametrize("server_round", [0, 2, 50])
def test_a_round_that_the_run_does_not_have_is_refused(tmp_path: Path, tiny: Path, server_round: int) -> None:
    asked = client(tmp_path, tiny)
    with pytest.raises(MessageError, match="not one of 1 to 1"):
        asked.perturb("pdss", server_round)
    with pytest.raises(MessageError, match="not one of 1 to 1"):
        asked.distill("standalone", server_round, None)
