"""The comparison as rows: what a method costs in privacy, what it brings, and how good its rationales are."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pdss_fl.report import epsilon_text
from pdss_fl.reproduce.cells import ATTACK, FEW_SHOT_LLM
from pdss_fl.reproduce.methods import STANDALONE, Entry
from pdss_fl.reproduce.statistics import Mean, Outcomes, accuracies, common, markdown, mean, paired_difference


@dataclass(frozen=True)
class Row:
    """One method on one data set, at one epsilon where it has one.

    Parameters
    ----------
    entry : Entry
        Which.
    document : float | None
        Epsilon of a whole prompt, infinite without a guarantee; ``None`` where nothing is sent.
    attack, overlap : float | None
        From ``attack_success``; ``None`` where nothing is sent or not yet measured.
    accuracy : Mean
        Over seeds.
    gain : Mean | None
        Minus Standalone on the same seeds.
    right, kept, kind : float | None
        Shares of the prompts sent: see ``rationale_quality``.
    """

    entry: Entry
    document: float | None
    attack: float | None
    overlap: float | None
    accuracy: Mean
    gain: Mean | None
    right: float | None
    kept: float | None
    kind: float | None


def rows(plan: Sequence[Entry], outcomes: Outcomes) -> list[Row]:
    """Return a row for every entry of which at least one seed is done."""
    released = {cell.group: outcome for cell, outcome in outcomes if cell.method == ATTACK}
    done = [(entry, accuracies(outcomes, entry.group)) for entry in plan]
    return [_row(entry, by_seed, outcomes, released.get(entry.group)) for entry, by_seed in done if by_seed]


def _row(entry: Entry, by_seed: Mapping[int, float], outcomes: Outcomes, released: Mapping[str, Any] | None) -> Row:
    sends_raw = entry.method.kind in ("dss", FEW_SHOT_LLM)
    price = {"document": math.inf, "attack": 1.0, "overlap": 1.0} if sends_raw else (released or {})
    own = [outcome for cell, outcome in outcomes if cell.group == entry.group and cell.method != ATTACK]
    return Row(
        entry,
        price.get("document"),
        price.get("attack"),
        price.get("overlap"),
        mean(list(by_seed.values())),
        _gain(entry, outcomes),
        _share(own, "right"),
        _share(own, "rationales"),
        _share(own, "kind"),
    )


def _gain(entry: Entry, outcomes: Outcomes) -> Mean | None:
    base = Entry(entry.data, STANDALONE, None).group
    if entry.method == STANDALONE or not common(accuracies(outcomes, entry.group), accuracies(outcomes, base)):
        return None
    return paired_difference(outcomes, entry.group, base)


def _share(own: Sequence[Mapping[str, Any]], what: str) -> float | None:
    """Return a count as a share of the prompts sent; ``None`` where nothing was sent or not all counted it."""
    prompts = sum(int(outcome["prompts"]) for outcome in own)
    if not prompts or not all(what in outcome for outcome in own):
        return None
    return sum(int(outcome[what]) for outcome in own) / prompts


COLUMNS = (
    "data", "method", "epsilon per token", "epsilon per document", "attack success", "token overlap",
    "accuracy", "95 % interval", "minus Standalone", "its 95 % interval",
    "rationales right", "kept", "right kind", "seeds",
)  # fmt: skip


def lines(found: Sequence[Row]) -> list[list[str]]:
    """Return the cells of the table as texts, shares in percent and differences in points."""
    return [
        [
            row.entry.data.name, row.entry.method.name,
            _epsilon(row.entry.epsilon if row.document != math.inf else math.inf), _epsilon(row.document),
            percent(row.attack), percent(row.overlap),
            percent(row.accuracy.value), _interval(row.accuracy),
            "" if row.gain is None else f"{100 * row.gain.value:+.1f}",
            "" if row.gain is None else row.gain.interval,
            percent(row.right), percent(row.kept), percent(row.kind), str(row.accuracy.n),
        ]
        for row in found
    ]  # fmt: skip


def percent(share: float | None) -> str:
    """Return a share in percent; nothing for none."""
    return "" if share is None else f"{share:.1%}"


def _epsilon(value: float | None) -> str:
    return "" if value is None else epsilon_text(value)


def _interval(share: Mean) -> str:
    return "" if share.n < 2 else f"{max(0.0, share.low):.1%} to {min(1.0, share.high):.1%}"


def to_csv(found: Sequence[Row]) -> str:
    """Return the table as CSV."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([COLUMNS, *lines(found)])
    return out.getvalue()


def to_markdown(found: Sequence[Row]) -> str:
    """Return the table in Markdown."""
    return markdown(COLUMNS, lines(found))
