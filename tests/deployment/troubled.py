"""The ClientApp of the fault tests: the real one, but for the trouble that a node's file asks for in a phase.

It is put into a copy of the app, as whoever submits a run could. The file ``trouble.json`` lies beside the node's
policy: ``{"perturb": "garbage"}``. What must not need the real client does not import it, since that takes seconds.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from pdss_fl.messages import PerturbedPrompt, PrivacyStatement, PromptBatch
from pdss_fl.mods import error_guard_mod

PROMPTS = 4
STATEMENT = PrivacyStatement("staircase", "pure-ldp", 6.0, 18.0, 0.0, 3, "basic", 0.1, "epsilon=6", "00")

app = ClientApp(mods=[error_guard_mod])


@app.query("perturb")
def perturb(msg: Message, context: Context) -> Message:
    """Answer as the real client, or in trouble."""
    return _answer("perturb", msg, context)


@app.train("distill")
def distill(msg: Message, context: Context) -> Message:
    """Answer as the real client, or in trouble."""
    return _answer("distill", msg, context)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    """Answer as the real client, or in trouble."""
    return _answer("evaluate", msg, context)


def _answer(phase: str, msg: Message, context: Context) -> Message:
    home = Path(str(context.node_config["policy"])).parent
    path = home / "trouble.json"
    trouble = json.loads(path.read_text()).get(phase) if path.exists() else None
    if trouble == "fail":
        raise ValueError((home / "data.jsonl").read_text())
    if trouble == "garbage":
        return _reply(msg, os.urandom(300))  # without the counts that ``distill`` reports
    if trouble == "ordinals":  # those of the next client's prompts, in a batch of all
        batch = _batch(PROMPTS).to_proto()
        for prompt in batch.prompts:
            prompt.ordinal += PROMPTS
        return _reply(msg, batch.SerializeToString())
    if trouble == "flood":
        return _reply(msg, _batch(10_000 * PROMPTS).to_proto().SerializeToString())
    from pdss_fl.client_app import app as real

    if trouble == "halfway":
        _hang_after_a_training_step(home / f"reached-{phase}")
    reply = real(msg, context)
    if trouble == "slow":
        time.sleep(float((home / "seconds").read_text()))
    if trouble == "hang":  # after the work is done and before anybody knows
        (home / f"reached-{phase}").touch()
        time.sleep(600)
    return reply


def _hang_after_a_training_step(reached: Path) -> None:
    """Let the real client train one step, write a checkpoint as after a hundred, and come no further."""
    from pdss_fl import client, training

    def on_step(step: int, loss: float) -> None:
        reached.touch()
        time.sleep(600)

    client.train_settings = lambda *asked: replace(training.train_settings(*asked), checkpoint_every=1)
    client.training_progress = lambda *_: on_step


def _batch(prompts: int) -> PromptBatch:
    return PromptBatch(tuple(PerturbedPrompt(i, "thing place time") for i in range(prompts)), STATEMENT)


def _reply(msg: Message, payload: bytes) -> Message:
    return Message(RecordDict({"prompts": ConfigRecord({"payload": payload})}), reply_to=msg)
