"""DP-SGD: training of a small model whose weights may leave the client (Abadi et al. 2016), with Opacus.

An example, its label row and its rationale row together, is drawn by a coin of its own in every step (Poisson
sampling), its gradient is clipped as a whole, and noise is added to the sum. What is guaranteed is about one example
more or less in the training set; how many there are counts as public. Coins come from the operating system; the noise
is in floating point, from PyTorch's generator with a state of the operating system's, made of several draws as
Opacus's secure mode does: not the exact sampling of this project's text mechanisms.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from pdss_fl.errors import SettingError
from pdss_fl.slm.collator import Row, batch_of, encode_row
from pdss_fl.slm.loss import LABEL, RATIONALE, multi_task_loss
from pdss_fl.slm.model import SmallModel
from pdss_fl.slm.prompts import label_prompt, rationale_prompt
from pdss_fl.slm.trainer import TrainingItem, TrainSettings

_ACCOUNTANT = "rdp"
_RANDOM = secrets.SystemRandom()
_TWISTER_PLACE, _TWISTER_WORDS = 3, 624  # of the Mersenne Twister in the state of PyTorch's generator, in 8 bytes each


@dataclass(frozen=True)
class Privacy:
    """What a training may tell of an example: ``epsilon`` (nats) at ``delta``; ``clip`` bounds a gradient's L2 norm."""

    epsilon: float
    delta: float
    clip: float


class PrivateSteps:
    """Optimiser steps on clipped and noised gradients.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        What makes a step of a gradient; it holds the parameters that are trained.
    noise : float
        Standard deviation of the noise in units of ``clip``.
    clip : float
        Largest L2 norm of one example's gradient; longer ones are shortened to it.
    expected : float
        Expected number of examples of a step, by which their sum is divided.

    Raises
    ------
    SettingError
        If Opacus is missing.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, noise: float, clip: float, expected: float) -> None:
        opacus = _opacus()
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._private = opacus.optimizers.DPOptimizer(
            optimizer,
            noise_multiplier=noise,
            max_grad_norm=clip,
            expected_batch_size=expected,
            generator=noise_generator(self.parameters[0].device),
            secure_mode=True,
        )

    def step(self, losses: Iterable[Callable[[], Tensor]]) -> None:
        """Make one step.

        Parameters
        ----------
        losses : Iterable[Callable[[], Tensor]]
            One for each example drawn, none among them if the coins fell so; each is called once and returns a
            scalar, so that one example's gradient is held at a time.
        """
        for loss in losses:
            found = torch.autograd.grad(loss(), self.parameters, allow_unused=True)
            gradients = [
                g if g is not None else torch.zeros_like(p) for p, g in zip(self.parameters, found, strict=True)
            ]
            # No clipping bounds what is no number, and weights that a server chose may lead one example to it.
            finite = all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                parameter.grad_sample = (gradient if finite else torch.zeros_like(gradient))[None]
            self._private.signal_skip_step(True)  # add it to the sum, and wait
            self._private.step()
            self._private.zero_grad()
        for parameter in self.parameters:
            parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))
        self._private.step()
        self._private.zero_grad()


def noise_generator(device: torch.device) -> torch.Generator:
    """Return PyTorch's generator in a state of the operating system's random bits.

    On a CPU its own seeding keeps 32 bits of a seed: so few noises could be tried one after the other.
    """
    generator = torch.Generator(device).manual_seed(secrets.randbits(63))
    if generator.device.type == "cpu":
        state = generator.get_state()
        drawn = np.frombuffer(secrets.token_bytes(4 * _TWISTER_WORDS), dtype="<u4")
        state.view(torch.int64)[_TWISTER_PLACE : _TWISTER_PLACE + _TWISTER_WORDS] = torch.from_numpy(drawn.astype("i8"))
        generator.set_state(state)
    return generator


def noise_for(privacy: Privacy, rate: float, steps: int) -> float:
    """Return the noise, in units of ``clip``, with which so many steps tell no more than ``privacy`` allows.

    Parameters
    ----------
    privacy : Privacy
        What may be told.
    rate : float
        Probability that a step draws an example, in (0, 1].
    steps : int
        At least 1.

    Raises
    ------
    SettingError
        If no noise suffices, or Opacus is missing.
    """
    accountants = _opacus().accountants.utils
    try:
        return float(
            accountants.get_noise_multiplier(
                target_epsilon=privacy.epsilon,
                target_delta=privacy.delta,
                sample_rate=rate,
                steps=steps,
                accountant=_ACCOUNTANT,
            )
        )
    except ValueError:
        raise SettingError(
            f"sharing.epsilon: {privacy.epsilon:.3g} at delta {privacy.delta:.3g} for {steps} steps is too little for "
            "any noise: raise it, or lower distill.steps, distill.batch-size or num-server-rounds"
        ) from None


def train_privately(
    slm: SmallModel,
    items: Sequence[TrainingItem],
    settings: TrainSettings,
    privacy: Privacy,
    on_step: Callable[[int, float], None] | None = None,
) -> int:
    """Train a small model in place by DP-SGD and return how many rows had to be cut.

    Parameters
    ----------
    slm : SmallModel
        Changed in place and left in evaluation mode.
    items : Sequence[TrainingItem]
        At least one; each is an example of its own for the guarantee.
    settings : TrainSettings
        How to train; ``batch_size`` is the expected number of examples of a step, and its seed is not used.
    privacy : Privacy
        What this training may tell.
    on_step : Callable[[int, float], None] | None (default: None)
        Called after each step with its number and 0: the loss is not looked at.
    """
    if not items:
        raise SettingError("distill: there is nothing to train on; raise data.train-examples")
    rows = [_rows(slm, item, settings.rationale_weight > 0) for item in items]
    rate = min(1.0, settings.batch_size / len(items))
    noise = noise_for(privacy, rate, settings.steps)
    trained = [p for p in slm.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = transformers.get_cosine_schedule_with_warmup(
        optimizer, min(settings.warmup, settings.steps // 10), settings.steps
    )
    steps = PrivateSteps(optimizer, noise, privacy.clip, rate * len(items))
    slm.model.train()
    try:
        for step in range(1, settings.steps + 1):
            drawn = [example for example in rows if _RANDOM.random() < rate]
            steps.step([_loss_of(slm, example, settings.rationale_weight) for example in drawn])
            schedule.step()
            if on_step is not None:
                on_step(step, 0.0)
    finally:
        slm.model.train(False)
    return sum(row.truncated for example in rows for row in example)


def _loss_of(slm: SmallModel, example: Sequence[Row], rationale_weight: float) -> Callable[[], Tensor]:
    def loss() -> Tensor:
        batch = batch_of(slm, example)
        return multi_task_loss(*batch.run(slm.model), batch.task, rationale_weight)[0]

    return loss


def _rows(slm: SmallModel, item: TrainingItem, with_rationale: bool) -> list[Row]:
    rows = [encode_row(slm, label_prompt(item.example), item.example.answer, LABEL)]
    if with_rationale and item.rationale is not None:
        rows.append(encode_row(slm, rationale_prompt(item.example), item.rationale, RATIONALE))
    return rows


def _opacus() -> Any:
    try:
        import opacus
    except ImportError:
        raise SettingError("sharing.epsilon needs Opacus: pip install 'pdss-fl[dp-sgd]'") from None
    return opacus
