"""Flower's own mods, and a user's, run around the client's actions and change nothing of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from flwr.app import ArrayRecord, Context, Message
from flwr.clientapp.mod import arrays_size_mod
from flwr.clientapp.typing import ClientAppCallable

from pdss_fl.client_app import create_client_app
from pdss_fl.strategy import StepByStepDistillation
from tests.harness import EchoGenerator, LoopbackGrid, context, node, number_questions, small_run


def grid_of(tmp_path: Path, tiny: Path, mods: list[object]) -> LoopbackGrid:
    data = number_questions(tmp_path / "data.jsonl")
    policy = node(tmp_path / "state", data, **{"allowed-models": f"scratch {tiny}"})
    return LoopbackGrid(create_client_app(mods), {1: context(1, policy, small_run(tiny))})


def test_a_round_with_mods_around_it(tmp_path: Path, tiny: Path) -> None:
    seen: list[str] = []

    def counting(msg: Message, ctx: Context, call_next: ClientAppCallable) -> Message:
        seen.append(msg.metadata.message_type)
        return call_next(msg, ctx)

    strategy = StepByStepDistillation(EchoGenerator())
    strategy.start(grid_of(tmp_path, tiny, [counting, arrays_size_mod]), ArrayRecord(), num_rounds=1)
    assert seen == ["query.perturb", "train.distill", "evaluate"]
    assert strategy.client_metrics[-1]["num-examples"] == 24


def test_what_a_mod_raises_stays_on_the_client(tmp_path: Path, tiny: Path) -> None:
    def failing(msg: Message, ctx: Context, call_next: ClientAppCallable) -> Message:
        call_next(msg, ctx)
        raise ValueError("zanzibarqx")

    grid = grid_of(tmp_path, tiny, [failing])
    with pytest.raises(Exception, match="0 clients answered"):
        StepByStepDistillation(EchoGenerator()).start(grid, ArrayRecord(), num_rounds=1)
    (reply,) = grid.replies
    assert reply.has_error()
    assert "zanzibarqx" not in reply.error.reason
