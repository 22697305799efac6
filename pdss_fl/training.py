"""A client's training in one round: what a run's settings make of it, and how far it is, for the client's log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from pdss_fl.config import RunSettings
from pdss_fl.sharing_settings import OFF
from pdss_fl.slm.trainer import TrainSettings

logger = logging.getLogger("pdss_fl.client")

_PROGRESS_SECONDS = 5.0


def training_progress(client: int, method: str, steps: int) -> Callable[[int, float], None]:
    """Return what logs a training's steps, at most every few seconds and never with their loss."""
    last = time.monotonic()

    def on_step(step: int, _loss: float) -> None:
        nonlocal last
        if time.monotonic() - last >= _PROGRESS_SECONDS or step == steps:
            last = time.monotonic()
            logger.info("client %d: %s: training step %d of %d", client, method, step, steps)

    return on_step


def train_settings(settings: RunSettings, server_round: int, rationales: bool) -> TrainSettings:
    """Return how one round trains: its share of all steps, and labels alone if there are no rationales."""
    distill = settings.distill
    # Where updates are shared, the client has put them on the model itself: it keeps them from round to round.
    rank = 0 if settings.sharing.mode != OFF else settings.slm.lora_rank
    return TrainSettings(
        steps=max(1, distill.steps // settings.num_server_rounds),
        batch_size=distill.batch_size,
        learning_rate=distill.learning_rate,
        rationale_weight=distill.rationale_weight if rationales else 0.0,
        weight_decay=distill.weight_decay,
        seed=settings.seed * 1000 + server_round,
        lora_rank=rank,
    )
