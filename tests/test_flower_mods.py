"""Flower's own mods, and a user's, run around the client's actions and change nothing of them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.client.mod import secagg_mod, secaggplus_mod
from flwr.clientapp.mod import LocalDpMod, adaptiveclipping_mod, arrays_size_mod, fixedclipping_mod, message_size_mod
from flwr.clientapp.typing import ClientAppCallable

from pdss_fl.client_app import create_client_app
from pdss_fl.direct import Offer
from pdss_fl.errors import QuorumLost, SettingError
from pdss_fl.messages import GenerationSettings
from pdss_fl.node import listening
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
    mods = [counting, arrays_size_mod, message_size_mod]
    strategy.start(grid_of(tmp_path, tiny, mods), ArrayRecord(), num_rounds=1)
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


@pytest.mark.parametrize(
    "mod", [fixedclipping_mod, adaptiveclipping_mod, LocalDpMod(1.0, 1.0, 1.0, 1e-5)], ids=lambda mod: str(mod)[:15]
)
def test_mods_that_clip_or_noise_weights_say_that_prompts_are_none(
    tmp_path: Path, tiny: Path, mod: ClientAppCallable
) -> None:
    strategy = StepByStepDistillation(EchoGenerator())
    with pytest.raises(QuorumLost):
        strategy.start(grid_of(tmp_path, tiny, [mod]), ArrayRecord(), num_rounds=1)
    (row,) = strategy.left_out
    assert row["step"] == "query.perturb"
    assert "expects exactly one ArrayRecord, but found 0" in row["why"]
    assert not (tmp_path / "state").exists(), "nothing was charged or released"


@pytest.mark.parametrize("mod", [secagg_mod, secaggplus_mod])
def test_a_mod_that_would_let_weights_pass_unmasked_is_refused(mod: ClientAppCallable) -> None:
    with pytest.raises(SettingError, match="secagg"):
        create_client_app([mod])


def test_in_front_of_a_node_no_mod_of_the_app_runs(tiny: Path) -> None:
    def seeing(msg: Message, ctx: Context, call_next: ClientAppCallable) -> Message:
        raise AssertionError("a mod ran")

    with tempfile.TemporaryDirectory(prefix="pdss") as made:  # a socket's path has to be short
        policy, listener = Path(made) / "policy.toml", Path(made) / "s"
        keys = node(Path(made) / "state", number_questions(Path(made) / "data.jsonl"), **{"allowed-models": str(tiny)})
        policy.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items()))
        run = small_run(tiny, **{"slm.model": str(tiny)})
        grid = LoopbackGrid(create_client_app([seeing]), {1: context(1, {"node-socket": str(listener)}, run)})
        with listening(policy, listener):
            config = ConfigRecord({"method": "pdss", "server-round": 1})
            (reply,) = grid.send_and_receive([Message(RecordDict({"config": config}), 1, "query.perturb")])
    assert "prompts" in reply.content


@pytest.mark.parametrize(("token", "code"), [("", 100), ("token", 102)])
def test_a_size_is_told_of_an_offer_with_a_token_only(tmp_path: Path, tiny: Path, token: str, code: int) -> None:
    """What fails is Flower's, at an empty text; with a token the node's own policy refuses the address."""
    content = RecordDict({"config": ConfigRecord({"method": "pdss", "server-round": 1})})
    Offer("127.0.0.1:1", token, GenerationSettings()).add_to(content)
    (reply,) = grid_of(tmp_path, tiny, [message_size_mod]).send_and_receive([Message(content, 1, "train.distill")])
    assert reply.error.code == code
