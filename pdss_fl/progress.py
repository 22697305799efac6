"""How far a client's training is, for its log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

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
