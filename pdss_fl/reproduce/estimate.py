"""How long cells take: as long as those of their kind that are done, else by unit costs.

What counts is the processor's time, since a cell has one thread and another process may have the core meanwhile.
The unit costs were measured on the built-in set with the bundled LLM and a student from scratch; for anything
else they only stand in until the first cell of a kind has ended.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from pdss_fl.reproduce.cells import ATTACK, FEW_SHOT_LLM, GIVEN, Cell

_LOAD = 4.0  # seconds for the data, the vocabulary and the models
_PROMPT = 0.13  # seconds of the LLM, at 40 new tokens
_SHOWN_PROMPT = 0.3  # the same without the adapter, which spares the demonstrations
_STEP = 0.02  # seconds of the student on labels alone, with 16 rows
_RATIONALE_STEP = 0.06  # and with rationales beside them
_TOKENS = 40


class Costs:
    """Expected seconds of cells.

    Parameters
    ----------
    ended : Sequence[tuple[Cell, Mapping[str, Any]]]
        Cells with their outcomes, whose ``cpu`` counts, or ``seconds`` where that was not written yet.
    """

    def __init__(self, ended: Sequence[tuple[Cell, Mapping[str, Any]]]) -> None:
        measured: defaultdict[tuple[Any, ...], list[float]] = defaultdict(list)
        for cell, outcome in ended:
            measured[_kind(cell)].append(outcome.get("cpu", outcome["seconds"]))
        self._measured = {kind: median(seconds) for kind, seconds in measured.items()}

    def seconds(self, cell: Cell) -> float:
        """Return how long a cell will take in one process, at least a second."""
        return max(1.0, self._measured.get(_kind(cell)) or _guess(cell))


def duration(seconds: float) -> str:
    """Return a duration for a person."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return "a minute"
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"


def _kind(cell: Cell) -> tuple[Any, ...]:
    s = cell.run_settings()
    work = (s.data.train_examples, s.data.test_examples, s.distill.steps, s.distill.decoder, s.llm.max_new_tokens)
    return (cell.method, s.privacy.mechanism, s.data.path, s.llm.model, s.slm.model, *work)


def _guess(cell: Cell) -> float:
    settings = cell.run_settings()
    prompt = _PROMPT if settings.data.path == "" and settings.llm.adapter else _SHOWN_PROMPT
    prompt *= settings.llm.max_new_tokens / _TOKENS
    seconds = _LOAD
    if cell.method in ("pdss", "dss", GIVEN):
        seconds += _RATIONALE_STEP * settings.distill.steps
    if cell.method in ("pdss", "dss"):
        seconds += prompt * settings.data.train_examples
    if cell.method == FEW_SHOT_LLM:
        seconds += prompt * settings.data.test_examples
    if cell.method == "standalone":
        seconds += _STEP * settings.distill.steps
    return _LOAD / 2 if cell.method == ATTACK else seconds
