"""Means and paired differences over seeds, with their intervals, 95 % unless asked for others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy import stats

from pdss_fl.reproduce.cells import Cell

Outcomes = Sequence[tuple[Cell, Mapping[str, Any]]]


@dataclass(frozen=True)
class Mean:
    """A mean over ``n`` seeds and its t-interval; shares or differences of shares, 0.01 = one point."""

    value: float
    low: float
    high: float
    n: int

    @property
    def interval(self) -> str:
        """The interval in points, as tables show it; one value alone has none to show."""
        if self.n < 2:
            return ""
        return f"{100 * self.low:+.1f} to {100 * self.high:+.1f}"


def markdown(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    rows = [columns, ["---"] * len(columns), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def mean(values: Sequence[float], confidence: float = 0.95) -> Mean:
    """Return the mean of at least one value; one alone has an infinite interval, equal ones an empty one."""
    center = sum(values) / len(values)
    if len(values) < 2:
        return Mean(center, -float("inf"), float("inf"), len(values))
    error = float(stats.sem(values))
    half = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1)) * error
    return Mean(center, center - half, center + half, len(values))


def accuracies(outcomes: Outcomes, group: str) -> dict[int, float]:
    """Return a group's share of right answers by seed, all its clients' questions together.

    Outcomes that count no answers are passed over.
    """
    correct: dict[int, int] = {}
    total: dict[int, int] = {}
    for cell, outcome in outcomes:
        if cell.group == group and "total" in outcome:
            correct[cell.seed] = correct.get(cell.seed, 0) + outcome["correct"]
            total[cell.seed] = total.get(cell.seed, 0) + outcome["total"]
    return {seed: correct[seed] / total[seed] for seed in correct}


def paired_difference(outcomes: Outcomes, group: str, baseline: str) -> Mean:
    """Return the mean over seeds of a group's accuracy minus the baseline's on the same seed, of at least one.

    The interval speaks of the seeds: of divisions of the data, initial weights, noise and order of training.
    """
    these, those = accuracies(outcomes, group), accuracies(outcomes, baseline)
    return mean([these[seed] - those[seed] for seed in common(these, those)])


def common(these: Iterable[int], those: Iterable[int]) -> list[int]:
    """Return the seeds that both hold, in order."""
    return sorted(set(these) & set(those))
