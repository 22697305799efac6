"""Training of a small model on two tasks at once: predict the answer, and write the rationale."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator

from pdss_fl.data.example import Example
from pdss_fl.errors import SettingError
from pdss_fl.slm.checkpoint import Checkpoint, Progress, fingerprint
from pdss_fl.slm.collator import Row, encode_row
from pdss_fl.slm.lora import low_rank
from pdss_fl.slm.loss import LABEL, RATIONALE, check_rationale_weight, weighted_loss
from pdss_fl.slm.model import SmallModel
from pdss_fl.slm.packing import keeps_texts_apart, pack
from pdss_fl.slm.prompts import label_prompt, rationale_prompt

_MAX_GRAD_NORM = 1.0


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    Parameters
    ----------
    steps : int
        Optimiser steps, at least 1.
    batch_size : int
        Examples of each step; their rationales come on top.
    learning_rate : float
        Peak of AdamW's rate, after the warm-up; it falls to 0 by a cosine.
    rationale_weight : float
        w of ``multi_task_loss``, in [0, 1); at 0 the rationales are not even read.
    weight_decay : float (default: 0.01)
        Of AdamW, at least 0.
    warmup : int (default: 20)
        Steps of linear warm-up; a tenth of all steps if that is less.
    seed : int (default: 0)
        Decides the order of the examples and the dropout, if the model has any.
    checkpoint_every : int (default: 100)
        Steps from one checkpoint to the next, if there is a file for them; does not change what is learned.
    lora_rank : int (default: 0)
        Train low-rank updates of this rank (``slm.lora-rank``, see ``low_rank``); 0 trains all weights.
    """

    steps: int
    batch_size: int
    learning_rate: float
    rationale_weight: float
    weight_decay: float = 0.01
    warmup: int = 20
    seed: int = 0
    checkpoint_every: int = 100
    lora_rank: int = 0

    def __post_init__(self) -> None:
        check_rationale_weight(self.rationale_weight)
        for name, value, low in (
            ("steps", self.steps, 1), ("batch-size", self.batch_size, 1), ("warmup", self.warmup, 0),
            ("checkpoint-every", self.checkpoint_every, 1),
        ):  # fmt: skip
            if value < low:
                raise SettingError(f"distill.{name} = {value}: set it to at least {low}")
        if self.lora_rank < 0:
            raise SettingError(f"slm.lora-rank = {self.lora_rank}: set it to at least 1, or to 0 to train all weights")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise SettingError(f"distill.learning-rate = {self.learning_rate}: set it above 0, for example 0.002")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise SettingError(f"distill.weight-decay = {self.weight_decay}: set it to at least 0")


@dataclass(frozen=True)
class TrainingItem:
    """An example and its rationale; without one it trains the label task only."""

    example: Example
    rationale: str | None


@dataclass(frozen=True)
class TrainResult:
    """What a training did.

    Parameters
    ----------
    label_loss, rationale_loss : float
        Means over the steps, in nats per token; 0 for a task that had no tokens.
    seconds : float
        Wall time of the steps, also of those before a resumption.
    tokens : int
        Tokens that went through the model, padding not counted.
    truncated : int
        Rows of which the question or the completion had to be cut.
    """

    label_loss: float
    rationale_loss: float
    seconds: float
    tokens: int
    truncated: int


def train(
    slm: SmallModel,
    items: Sequence[TrainingItem],
    settings: TrainSettings,
    on_step: Callable[[int, float], None] | None = None,
    checkpoint: Path | None = None,
) -> TrainResult:
    """Train a small model in place.

    Equal models, items and settings give equal weights. Which examples a step draws depends on the seed,
    the number of items and the batch size alone, so trainings with and without rationales are paired.
    The caller's random state is left as it was.

    Parameters
    ----------
    slm : SmallModel
        Changed in place and left in evaluation mode.
    items : Sequence[TrainingItem]
        At least one.
    settings : TrainSettings
        How to train.
    on_step : Callable[[int, float], None] | None (default: None)
        Called after each step with its number, from 1, and its loss.
    checkpoint : Path | None (default: None)
        A file that keeps where the training stands, written every ``settings.checkpoint_every`` steps. Where it
        exists, a call with the same items, settings and small model (as it was at the beginning) goes on from
        there, and ends bit for bit as if it had not been stopped; otherwise it starts anew (see ``Checkpoint``).
        The caller removes the file.

    Raises
    ------
    SettingError
        If there are no items, if the choices of one do not fit into ``slm.max-tokens``, or if the
        loss stops being finite; the weights are then of no use, so save none of them.
    """
    if not items:
        raise SettingError("distill: there is nothing to train on; raise data.train-examples")
    with_rationales = settings.rationale_weight > 0
    rows = [_rows(slm, item, with_rationales) for item in items]
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(settings.seed)
        try:
            with low_rank(slm.model, settings.lora_rank, settings.seed):
                done = _optimise(slm, rows, settings, on_step, checkpoint)
        finally:
            slm.model.train(False)
    truncated = sum(row.truncated for pair in rows for row in pair)
    return TrainResult(
        done.label_sum / settings.steps, done.rationale_sum / settings.steps, done.seconds, done.tokens, truncated
    )


def _rows(slm: SmallModel, item: TrainingItem, with_rationale: bool) -> list[Row]:
    example = item.example
    rows = [encode_row(slm, label_prompt(example), example.answer, LABEL)]
    if with_rationale and item.rationale is not None:
        rows.append(encode_row(slm, rationale_prompt(example), item.rationale, RATIONALE))
    return rows


def _optimise(
    slm: SmallModel,
    rows: Sequence[Sequence[Row]],
    settings: TrainSettings,
    on_step: Callable[[int, float], None] | None,
    file: Path | None,
) -> Progress:
    accelerator = Accelerator()
    trained = [weights for weights in slm.model.parameters() if weights.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    warmup = min(settings.warmup, settings.steps // 10)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, warmup, settings.steps)
    checkpoint = _checkpoint(file, slm, rows, settings, {"optimizer": optimizer, "schedule": schedule})
    done = checkpoint.read() if checkpoint else Progress()
    several = keeps_texts_apart(slm)
    model, prepared = accelerator.prepare(slm.model.train(), optimizer)
    draws = _draws(len(rows), settings.batch_size, settings.seed)
    started = time.perf_counter() - done.seconds
    for step, drawn in enumerate(islice(draws, done.step, settings.steps), done.step + 1):
        chosen = [rows[i] for i in drawn]
        losses = pack(slm, chosen, several).token_losses(slm.model)
        loss, label_loss, rationale_loss = weighted_loss(*losses, settings.rationale_weight)
        _check_finite(loss.item(), step, settings)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), _MAX_GRAD_NORM)
        prepared.step()
        schedule.step()
        prepared.zero_grad()
        done.step = step
        done.label_sum += label_loss.item()
        done.rationale_sum += rationale_loss.item()
        done.tokens += sum(row.tokens for pair in chosen for row in pair)
        done.seconds = time.perf_counter() - started
        if checkpoint and step % settings.checkpoint_every == 0:
            checkpoint.write(done)
        if on_step is not None:
            on_step(step, loss.item())
    return done


def _checkpoint(
    file: Path | None, slm: SmallModel, rows: Sequence[Sequence[Row]], settings: TrainSettings, parts: dict[str, Any]
) -> Checkpoint | None:
    if file is None:
        return None
    training = fingerprint(slm.model, rows, str(replace(settings, checkpoint_every=1)))
    return Checkpoint(file, training, {"model": slm.model, **parts})


def _draws(count: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Yield batches of indices without end: one random order of all items after the other."""
    generator = torch.Generator().manual_seed(seed)
    waiting: list[int] = []
    while True:
        while len(waiting) < batch_size:
            waiting += torch.randperm(count, generator=generator).tolist()
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


def _check_finite(loss: float, step: int, settings: TrainSettings) -> None:
    if not math.isfinite(loss):
        raise SettingError(
            f"distill.learning-rate = {settings.learning_rate}: the loss of step {step} is not a finite "
            "number; set a lower rate"
        )
