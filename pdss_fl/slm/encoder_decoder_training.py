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
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import get_cosine_schedule_with_warmup

from pdss_fl.data.public import PublicExample, require_public
from pdss_fl.errors import SettingError
from pdss_fl.slm.checkpoint import Checkpoint, Progress, fingerprint
from pdss_fl.slm.collator import Row, encode_row
from pdss_fl.slm.decoder import DecodeRequest
from pdss_fl.slm.encoder_decoder import decoder_prompt, encoder_prompt
from pdss_fl.slm.loss import LABEL, RATIONALE, weighted_loss
from pdss_fl.slm.model import SmallModel
from pdss_fl.slm.packing import keeps_texts_apart, pack

ENCODER, DECODER = LABEL, RATIONALE
"""The tasks of ``weighted_loss`` that the two families are."""

_MAX_GRAD_NORM = 1.0
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
    sent : tuple[str, ...]
        What the LLM read in the place of each word.
    released : tuple[str, ...]
        The same as texts, question and choices, without filling words.
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
    sent: tuple[str, ...]
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
    checkpoint_every: int = 100

    def __post_init__(self) -> None:
        if not 0 < self.encoder_weight <= 1:
            raise SettingError(f"--encoder-weight = {self.encoder_weight}: set it in (0, 1], for example 0.5")
        if self.steps < 1 or self.batch_size < 1:
            raise SettingError(f"--steps = {self.steps}, --batch-size = {self.batch_size}: set both to at least 1")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise SettingError(f"--learning-rate = {self.learning_rate}: set it above 0, for example 0.002")


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
    """Train a small model in place and return the mean losses of encoder and decoder over all steps.

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
        A file that keeps where the training stands, as in ``pdss_fl.slm.trainer.train``; the caller names it by the
        quadruples and by what makes lessons of them.
    on_step : Callable[[int, float, float], None] | None (default: None)
        Called after each step with its number, from 1, and both losses.

    Raises
    ------
    TypeError
        If something else than a ``Quadruple`` of a ``PublicExample`` is among them.
    SettingError
        If there is none, or the loss stops being finite.
    """
    for quadruple in quadruples:
        if type(quadruple) is not Quadruple:
            raise TypeError(f"an encoder-decoder is trained on Quadruple only, not on {type(quadruple).__name__}")
    require_public([quadruple.public for quadruple in quadruples])
    if not quadruples:
        raise SettingError("--public: there is nothing to train on")
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(settings.seed)
        try:
            done = _optimise(slm, quadruples, lessons, settings, checkpoint, on_step)
        finally:
            slm.model.train(False)
    return done.label_sum / settings.steps, done.rationale_sum / settings.steps


def _optimise(
    slm: SmallModel,
    quadruples: Sequence[Quadruple],
    lessons: Lessons,
    settings: EncoderDecoderTraining,
    file: Path | None,
    on_step: Callable[[int, float, float], None] | None,
) -> Progress:
    accelerator = Accelerator()
    optimizer = torch.optim.AdamW(slm.model.parameters(), lr=settings.learning_rate, weight_decay=0.01, fused=True)
    schedule = get_cosine_schedule_with_warmup(optimizer, settings.steps // 20, settings.steps)
    parts = {"model": slm.model, "optimizer": optimizer, "schedule": schedule}
    checkpoint = Checkpoint(file, fingerprint(slm.model, [], repr(settings)), parts) if file else None
    done = checkpoint.read() if checkpoint else Progress()
    several = keeps_texts_apart(slm)
    _, prepared = accelerator.prepare(slm.model.train(), optimizer)
    for step in range(done.step + 1, settings.steps + 1):
        random = Random(f"{settings.seed} {step}")  # not of earlier steps, so that a resumed run draws the same
        drawn = [lessons(random.choice(quadruples), random) for _ in range(settings.batch_size)]
        packed = pack(slm, [lesson_rows(slm, lesson) for lesson in drawn], several)
        loss, encoder, decoder = weighted_loss(*packed.token_losses(slm.model), 1 - settings.encoder_weight)
        if not math.isfinite(loss.item()):
            raise SettingError(f"--learning-rate = {settings.learning_rate}: the loss of step {step} is not finite")
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(slm.model.parameters(), _MAX_GRAD_NORM)
        prepared.step()
        schedule.step()
        prepared.zero_grad()
        done.step = step
        done.label_sum += encoder.item()
        done.rationale_sum += decoder.item()
        if checkpoint and step % settings.checkpoint_every == 0:
            checkpoint.write(done)
        if on_step is not None:
            on_step(step, encoder.item(), decoder.item())
    return done


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
