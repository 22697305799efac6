"""A training in a file: where it stands, so that it can go on after whoever trained died."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pdss_fl.slm.collator import Row

logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far a training is: steps done, sums over them, and the seconds that they took."""

    step: int = 0
    label_sum: float = 0.0
    rationale_sum: float = 0.0
    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Checkpoint:
    """Weights, optimizer, schedule, random state and progress of one training in one file.

    A file that is damaged, or belongs to another training, is as good as none: the log says so, and what it holds is
    overwritten in time. A file that cannot be written costs a warning, since the training itself can go on.

    Parameters
    ----------
    path : Path
        The file; whoever trains removes it once the result is safe.
    training : str
        Tells one training from another: ``fingerprint``.
    parts : dict[str, Any]
        What has ``state_dict`` and ``load_state_dict``, by name.
    """

    path: Path
    training: str
    parts: dict[str, Any]

    def write(self, progress: Progress) -> None:
        """Replace the file in one move, after the new one is on the disk."""
        state = {
            "training": self.training,
            "progress": vars(progress),
            "random": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
        }
        partial = self.path.with_name(self.path.name + ".partial")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, self.path)
        except (OSError, RuntimeError) as err:  # torch raises the latter where a disk is full
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            logger.warning("a checkpoint of the training could not be written (%s)", type(err).__name__)

    def read(self) -> Progress:
        """Put everything back as it was written and return the progress; a new one where there is nothing to read."""
        if not self.path.exists():
            return Progress()
        try:
            with zipfile.ZipFile(self.path) as archive:  # torch writes checksums and does not read them
                if archive.testzip() is not None:
                    raise ValueError("a wrong checksum")
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            training, progress = state["training"], Progress(**state["progress"])
            random, cuda, parts = state["random"], state["cuda"], [state["parts"][name] for name in self.parts]
        except Exception as err:  # torch has no common base for what a damaged file can raise
            logger.warning("the checkpoint of the training is damaged (%s): starting anew", type(err).__name__)
            return Progress()
        if training != self.training:
            logger.warning("the checkpoint belongs to a training with other data, model or settings: starting anew")
            return Progress()
        for part, saved in zip(self.parts.values(), parts, strict=True):
            part.load_state_dict(saved)
        torch.set_rng_state(random)
        if torch.cuda.is_available():
            torch.cuda.set_rng_state_all(cuda)
        logger.info("the training goes on after step %d", progress.step)
        return progress


def fingerprint(model: torch.nn.Module, rows: Sequence[Sequence[Row]], settings: str) -> str:
    """Return a digest of a training's beginning: initial weights, token ids in their order, and settings."""
    digest = hashlib.sha256(f"{settings} {rows}".encode())
    for name, values in model.state_dict().items():
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
