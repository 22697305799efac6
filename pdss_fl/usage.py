"""What a strategy uses, and how far the LLM is."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

logger = logging.getLogger("pdss_fl.strategy")

_PROGRESS_SECONDS = 5.0


@dataclass
class Usage:
    """What a strategy has used so far: prompts, generated tokens, bytes over the relay, and seconds by phase."""

    prompts: int = 0
    tokens: int = 0
    prompt_bytes: int = 0
    rationale_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def add_seconds(self, phase: str, since: float) -> None:
        """Add the time since ``since`` (``time.monotonic``) to a phase."""
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.monotonic() - since


class Progress:
    """Logs how many prompts are answered, at most every few seconds."""

    def __init__(self, total: int) -> None:
        self.done, self.total, self.last = 0, total, time.monotonic()

    def one_more(self) -> None:
        """Count one answered prompt."""
        self.done += 1
        if self.done == self.total or time.monotonic() - self.last >= _PROGRESS_SECONDS:
            self.last = time.monotonic()
            logger.info("LLM: %d of %d prompts answered", self.done, self.total)
