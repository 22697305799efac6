"""What a scheduler had its decoder do, written down and done again: the same forward passes and nothing beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pdss_fl.llm.decode import Decoder, RunningBatch
from pdss_fl.llm.scheduler import Scheduler

Step = tuple[Any, ...]


class Recording:
    """A batch that notes what is done to it."""

    def __init__(self, batch: RunningBatch, number: int, steps: list[Step]) -> None:
        self.batch, self.number, self._steps = batch, number, steps

    def __len__(self) -> int:
        return len(self.batch)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.batch, name)

    def keep(self, places: list[int]) -> None:
        """As of ``RunningBatch``."""
        self._steps.append(("keep", self.number, places))
        self.batch.keep(places)

    def advance(self) -> None:
        """As of ``RunningBatch``."""
        self._steps.append(("advance", self.number))
        self.batch.advance()

    def join(self, other: Recording) -> None:
        """As of ``RunningBatch``."""
        self._steps.append(("join", self.number, other.number))
        self.batch.join(other.batch)


class RecordingDecoder:
    """A decoder whose batches note what is done to them."""

    def __init__(self, decoder: Decoder, steps: list[Step]) -> None:
        self._decoder, self._steps, self._started = decoder, steps, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)

    def start(self, prompts: Sequence[Sequence[int]]) -> Recording:
        """As of ``Decoder``."""
        self._started += 1
        self._steps.append(("start", self._started, prompts))
        return Recording(self._decoder.start(prompts), self._started, self._steps)


def record(scheduler: Scheduler, write: Callable[[], int]) -> tuple[list[Step], int]:
    """Return what the decoder does while ``write`` runs, in order, and how many tokens ``write`` says it wrote."""
    steps: list[Step] = []
    runner, decoder = scheduler._runner, scheduler._decoder
    runner._decoder = RecordingDecoder(decoder, steps)  # type: ignore[assignment]
    try:
        return steps, write()
    finally:
        runner._decoder = decoder


def replay(decoder: Decoder, steps: list[Step]) -> None:
    """Do it again: rows join and leave as they did, but there is no text, no queue, no caller."""
    batches: dict[int, RunningBatch] = {}
    for name, number, *rest in steps:
        if name == "start":
            batches[number] = decoder.start(rest[0])
        elif name == "join":
            batches[number].join(batches.pop(rest[0]))
        else:
            getattr(batches[number], name)(*rest)
            batches[number].newest.tolist()  # as whoever decides what comes next has to wait for the token
