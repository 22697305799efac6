"""The table that a run prints at its end, from ``summary.json`` alone."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from rich.console import Console
from rich.table import Table

from pdss_fl.fairness import client_table, spread_lines

_TITLES = {
    "untrained": "untrained SLM",
    "standalone": "Standalone (labels only)",
    "pdss": "PDSS (perturbed prompts)",
    "dss": "DSS (raw prompts, no privacy)",
}
_MOST_ROWS = 10


def render_summary(summary: Mapping[str, Any]) -> str:
    """Return the comparison, the privacy it was made under, and what it cost, as plain text."""
    table = Table(title="Accuracy of the clients' small models on their held-out questions")
    table.add_column("method")
    for column in ("accuracy", "95 % interval", "questions"):
        table.add_column(column, justify="right")
    for method, row in summary["accuracy"].items():
        table.add_row(_TITLES.get(method, method), *_accuracy_cells(row))
    out = io.StringIO()
    console = Console(file=out, width=100, emoji=False)
    console.print(table)
    if summary.get("clients"):
        console.print(client_table(summary["clients"]))
    for line in spread_lines(summary.get("fairness", {})):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    absent = [*_left_out_lines(summary.get("left-out", ())), *_unshared_lines(summary.get("unshared", ()))]
    told = (_noise_lines(summary["accuracy"]), absent)
    for line in chain(*told, _privacy_lines(summary["privacy"]), _cost_lines(summary)):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    return out.getvalue().rstrip()


def _accuracy_cells(row: Mapping[str, Any] | None) -> tuple[str, str, str]:
    if row is None:
        return "left out", "", ""
    if row["value"] is None:
        return "not reported", "", "0"
    return f"{row['value']:.1%}", f"{row['low']:.1%} to {row['high']:.1%}", str(row["n"])


def _noise_lines(accuracies: Mapping[str, Any]) -> list[str]:
    noise = max((row.get("noise", 0.0) for row in accuracies.values() if row), default=0.0)
    text = f"counts of right answers are noisy (standard deviation {noise:.1f} questions); the intervals include that"
    return [text] if noise else []


def _left_out_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return _first(
        [f"without client {r['node']} in {r['method']}, round {r['round']}, {r['step']}: {r['why']}" for r in rows]
    )


def _unshared_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    times = Counter((row["node"], row["why"]) for row in rows)
    return _first([f"client {node} not averaged, {n} times: {why}" for (node, why), n in times.most_common()])


def _first(told: list[str]) -> list[str]:
    more = [f"and {len(told) - _MOST_ROWS} more, all of them in summary.json"] if len(told) > _MOST_ROWS else []
    return told[:_MOST_ROWS] + more


def _privacy_lines(privacy: Mapping[str, Any] | None) -> list[str]:
    if privacy is None:
        return ["privacy: no prompt was sent"]
    if privacy["kind"] == "none":
        return [f"privacy: mechanism {privacy['mechanism']} gives no guarantee"]
    return [
        f"privacy: {privacy['mechanism']} ({privacy['parameters']}), {privacy['kind']}",
        f"  epsilon per token {epsilon_text(privacy['epsilon_per_token'])}; per document "
        f"{epsilon_text(privacy['epsilon_per_document'])} at delta {privacy['delta']:g} for "
        f"{privacy['tokens_per_document']} tokens ({privacy['composition']})",
        f"  words kept as they are: {privacy['kept_tokens']:.1%} expected from the mechanism",
    ]


def _cost_lines(summary: Mapping[str, Any]) -> list[str]:
    llm, seconds = summary["llm"], summary["seconds"]
    phases = ", ".join(f"{phase} {value:.0f} s" for phase, value in seconds.items())
    used = f"LLM {llm['model']}: {llm['prompts']} prompts, {llm['tokens']} tokens generated"
    return [used if llm["model"] else "LLM: not used", f"time: {phases}"]


def epsilon_text(value: float | None) -> str:
    """Return an epsilon as a person reads it; ``None``, as JSON has it, is infinite."""
    return "infinite" if value is None or math.isinf(value) else f"{value:.4g}"
