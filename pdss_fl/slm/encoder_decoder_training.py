"""Training of the encoder-decoder, on public quadruples only.

``L = encoder_weight * L_encoder + (1 - encoder_weight) * L_decoder``, each the mean cross-entropy of its family's
completions, both in one forward and backward pass. What a step trains on follows from the seed and its number, so a
training that goes on from a checkpoint makes the same weights, bit for bit, as one that was never interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import get_cosine_schedule_with_warmup

from pdss_fl.data.public import PublicExample, require_public
from pdss_fl.errors import SettingError, StoreError
from pdss_fl.slm.collator import Row, collate, encode_row
from pdss_fl.slm.decoder import DecodeRequest
from pdss_fl.slm.encoder_decoder import decoder_prompt, encoder_prompt
from pdss_fl.slm.loss import LABEL, RATIONALE, multi_task_loss
from pdss_fl.slm.model import SmallModel

ENCODER, DECODER = LABEL, RATIONALE
"""The tasks of ``multi_task_loss`` that the two families are."""

_MAX_GRAD_NORM = 1.0
_SAVE_EVERY = 100
_EMBEDDING_SCALE = 3.0  # times what random ones have, so that training moves words within what they are near to


@dataclass(frozen=True)
class Quadruple:
    """A raw public prompt, a perturbed one, and the LLM's rationale of each.

    Parameters
    ----------
    public : PublicExample
        The raw prompt; an ``Example`` is refused.
    words, perturbed : tuple[str, ...]
        Of the raw and the perturbed prompt, as many, filled to their public length.
    released : tuple[str, ...]
        The perturbed question and choices as the LLM read them, without filling words.
    rationale, perturbed_rationale : str
        What the LLM wrote of each.

    Raises
    ------
    TypeError
        If the prompt is not a ``PublicExample``.
    """

    public: PublicExample
    words: tuple[str, ...]
    perturbed: tuple[str, ...]
    released: tuple[str, ...]
    rationale: str
    perturbed_rationale: str

    def __post_init__(self) -> None:
        require_public([self.public])


@dataclass(frozen=True)
class Lesson:
    """What one step learns from a quadruple; both sides are made from public text and public words alone."""

    words: tuple[str, ...]
    target: tuple[str, ...]
    request: DecodeRequest
    rationale: str


Lessons = Callable[[Quadruple, Random], Lesson]
"""Makes a lesson of a quadruple, another one at every call."""


@dataclass(frozen=True)
class EncoderDecoderTraining:
    """How to train: ``steps`` of ``batch_size`` quadruples; AdamW's peak rate, then a cosine to 0."""

    steps: int
    batch_size: int = 16
    learning_rate: float = 2e-3
    encoder_weight: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.encoder_weight <= 1:
            raise SettingError(f"--encoder-weight = {self.encoder_weight}: set it in (0, 1], for example 0.5")
        if self.steps < 1 or self.batch_size < 1:
            raise SettingError(f"--steps = {self.steps}, --batch-size = {self.batch_size}: set both to at least 1")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise SettingError(f"--learning-rate = {self.learning_rate}: set it above 0, for example 0.002")


def encoder_decoder_loss(
    logits: Tensor, labels: Tensor, task: Tensor, encoder_weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mixed loss, the encoder's and the decoder's; arguments as of ``multi_task_loss``."""
    return multi_task_loss(logits, labels, task, 1 - encoder_weight)


def lesson_rows(slm: SmallModel, lesson: Lesson) -> tuple[Row, Row]:
    """Return the encoder's and the decoder's row of a lesson."""
    return (
        encode_row(slm, encoder_prompt(lesson.words), " ".join(lesson.target), ENCODER),
        encode_row(slm, decoder_prompt(lesson.request), lesson.rationale, DECODER),
    )


def train_encoder_decoder(
    slm: SmallModel,
    quadruples: Sequence[Quadruple],
    lessons: Lessons,
    settings: EncoderDecoderTraining,
    checkpoint: Path | None = None,
    on_step: Callable[[int, float, float], None] | None = None,
) -> tuple[float, float]:
    """Train a small model in place and return the last hundred steps' mean losses of encoder and decoder.

    Parameters
    ----------
    slm : SmallModel
        Changed in place and left in evaluation mode.
    quadruples : Sequence[Quadruple]
        At least one; each from a ``PublicExample``.
    lessons : Lessons
        Makes what a step trains on.
    settings : EncoderDecoderTraining
        How to train.
    checkpoint : Path | None (default: None)
        A file that is written every hundred steps, replaced at once; where it exists, training goes on from it. The
        caller names it by everything that the training depends on.
    on_step : Callable[[int, float, float], None] | None (default: None)
        Called after each step with its number, from 1, and both losses.

    Raises
    ------
    TypeError
        If something else than a ``Quadruple`` of a ``PublicExample`` is among them.
    SettingError
        If there is none, or the loss stops being finite.
    StoreError
        If the checkpoint is damaged.
    """
    for quadruple in quadruples:
        if type(quadruple) is not Quadruple:
            raise TypeError(f"an encoder-decoder is trained on Quadruple only, not on {type(quadruple).__name__}")
    require_public([quadruple.public for quadruple in quadruples])
    if not quadruples:
        raise SettingError("--public: there is nothing to train on")
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(settings.seed)
        slm.model.train()
        try:
            return _optimise(slm, quadruples, lessons, settings, checkpoint, on_step)
        finally:
            slm.model.train(False)


def _optimise(
    slm: SmallModel,
    quadruples: Sequence[Quadruple],
    lessons: Lessons,
    settings: EncoderDecoderTraining,
    checkpoint: Path | None,
    on_step: Callable[[int, float, float], None] | None,
) -> tuple[float, float]:
    accelerator = Accelerator()
    optimizer = torch.optim.AdamW(slm.model.parameters(), lr=settings.learning_rate, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, settings.steps // 20, settings.steps)
    model, prepared = accelerator.prepare(slm.model, optimizer)
    state = _State(slm, optimizer, schedule, checkpoint)
    losses = state.load()
    for step in range(state.step + 1, settings.steps + 1):
        random = Random(f"{settings.seed} {step}")  # not of earlier steps, so that a resumed run draws the same
        drawn = [lessons(random.choice(quadruples), random) for _ in range(settings.batch_size)]
        rows = [row for lesson in drawn for row in lesson_rows(slm, lesson)]
        batch = collate(rows, slm.tokenizer.pad_token_id, accelerator.device)
        loss, *each = encoder_decoder_loss(*batch.run(model), batch.task, settings.encoder_weight)
        if not math.isfinite(loss.item()):
            raise SettingError(f"--learning-rate = {settings.learning_rate}: the loss of step {step} is not finite")
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), _MAX_GRAD_NORM)
        prepared.step()
        schedule.step()
        prepared.zero_grad()
        losses = [*losses[-_SAVE_EVERY + 1 :], (each[0].item(), each[1].item())]
        if on_step is not None:
            on_step(step, *losses[-1])
        if step % _SAVE_EVERY == 0 or step == settings.steps:
            state.save(step, losses)
    encoder, decoder = (sum(column) / len(losses) for column in zip(*losses, strict=True))
    return encoder, decoder


class _State:
    """Everything that the next step depends on, in one file."""

    def __init__(self, slm: SmallModel, optimizer: Any, schedule: Any, path: Path | None) -> None:
        self.slm, self.optimizer, self.schedule, self.path, self.step = slm, optimizer, schedule, path, 0

    def load(self) -> list[tuple[float, float]]:
        """Take up what was saved, and return the last losses; nothing happens without a file."""
        if self.path is None or not self.path.is_file():
            return []
        try:
            saved = torch.load(self.path, weights_only=True)
            self.slm.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.schedule.load_state_dict(saved["schedule"])
            torch.set_rng_state(saved["random"])
            self.step = saved["step"]
        except Exception as err:  # torch has no common base for what a damaged file can raise
            raise StoreError("the checkpoint is damaged; remove it to start anew", f"{self.path}: {err}") from None
        return [cast(tuple[float, float], tuple(pair)) for pair in saved["losses"]]

    def save(self, step: int, losses: Sequence[tuple[float, float]]) -> None:
        """Write the state beside the file and put it in its place."""
        if self.path is None:
            return
        fresh = self.path.with_suffix(".new")
        content = {
            "model": self.slm.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(), "random": torch.get_rng_state(), "step": step,
            "losses": [list(pair) for pair in losses],
        }  # fmt: skip
        torch.save(content, fresh)
        fresh.replace(self.path)


def start_from_embeddings(slm: SmallModel, words: Sequence[str], embeddings: Tensor) -> None:
    """Give a from-scratch model's word tokens the public embeddings of their words, projected to its width.

    Words of one kind then start close together, so that what is learned of some is learned of those that no
    training text has.

    Parameters
    ----------
    slm : SmallModel
        Changed in place; words of several tokens stay as they are.
    words : Sequence[str]
        N public words.
    embeddings : Tensor
        Shape (N, d), float.
    """
    table = cast(torch.nn.Embedding, slm.model.get_input_embeddings()).weight
    centred = embeddings.float() - embeddings.float().mean(dim=0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    projected = centred @ directions[: table.shape[1]].T
    scale = table.std() * _EMBEDDING_SCALE / projected.std()
    with torch.no_grad():
        for word, row in zip(words, projected, strict=True):
            ids = slm.encode_next(word)
            if len(ids) == 1:
                table[ids[0]] = 0.0
                table[ids[0], : len(row)] = (row * scale).to(table)
