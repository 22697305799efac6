"""Does PDSS help? The whole comparison on the built-in set, paired over seeds, at several epsilons.

Run ``make reproduce-everyday``, or with ``ARGS=--quick`` a small form of it. Written below ``--output``:
``cells.jsonl`` (what is done; a killed experiment goes on from there), ``table.csv``, ``table.md``,
``accuracy-over-document-epsilon.png`` and ``accuracy-over-attack-success.png``.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pdss_fl.config import RunSettings
from pdss_fl.data.everyday import private_examples
from pdss_fl.privacy.attacks import optimal_success
from pdss_fl.privacy_report import word_frequencies
from pdss_fl.reproduce.cells import Cell
from pdss_fl.reproduce.plots import Point, plot_accuracy
from pdss_fl.reproduce.runner import run_cells
from pdss_fl.reproduce.statistics import Mean, Outcomes, accuracies, markdown, mean, paired_difference
from pdss_fl.vocabularies import load_perturber

EPSILONS = (0.1, 5.0, 7.0, 9.0)
SEEDS = 8
QUICK_EPSILONS = (0.1, RunSettings().privacy.epsilon)
QUICK_SEEDS = 2
STANDALONE = "Standalone"


@dataclass(frozen=True)
class Row:
    """One line of the table. ``document`` and ``attack`` are ``None`` where nothing is sent."""

    group: str
    epsilon: float | None
    document: float | None
    attack: float | None
    accuracy: Mean
    gain: Mean | None


def cells(epsilons: Sequence[float], seeds: int) -> list[Cell]:
    """Return the experiment, seed by seed, so that what ends early is paired."""
    groups: list[tuple[str, str, dict[str, float]]] = [
        ("untrained", "untrained", {}), (STANDALONE, "standalone", {}), ("DSS", "dss", {}),
    ]  # fmt: skip
    groups += [(_pdss(epsilon), "pdss", {"privacy.epsilon": epsilon}) for epsilon in epsilons]
    return [Cell(group, method, seed, settings=own) for seed in range(seeds) for group, method, own in groups]


def rows(outcomes: Outcomes) -> list[Row]:
    """Return one row for every group, in the order in which the cells stand."""
    groups = {cell.group: cell for cell, _ in outcomes}
    return [_row(cell, outcomes) for cell in groups.values()]


def _row(cell: Cell, outcomes: Outcomes) -> Row:
    accuracy = mean(list(accuracies(outcomes, cell.group).values()))
    gain = None if cell.group == STANDALONE else paired_difference(outcomes, cell.group, STANDALONE)
    if cell.method not in ("pdss", "dss"):
        return Row(cell.group, None, None, None, accuracy, gain)
    if cell.method == "dss":
        return Row(cell.group, math.inf, math.inf, 1.0, accuracy, gain)
    settings = cell.run_settings()
    perturber = load_perturber(settings, settings.privacy.mechanism)
    attack = optimal_success(perturber.mechanism, word_frequencies(perturber, private_examples()))
    return Row(cell.group, settings.privacy.epsilon, perturber.document.epsilon, attack, accuracy, gain)


def _pdss(epsilon: float) -> str:
    return f"PDSS, epsilon {epsilon:g}"


COLUMNS = (
    "method", "epsilon per token", "epsilon per document", "attack success", "accuracy", "minus Standalone",
    "95 % interval", "seeds",
)  # fmt: skip


def table(found: Sequence[Row]) -> list[list[str]]:
    """Return the cells of the table as texts, shares in percent and differences in points."""
    return [
        [
            row.group,
            _number(row.epsilon, "{:g}"),
            _number(row.document, "{:.4g}"),
            _number(row.attack, "{:.1%}"),
            f"{row.accuracy.value:.1%}",
            "" if row.gain is None else f"{100 * row.gain.value:+.1f}",
            "" if row.gain is None else row.gain.interval,
            str(row.accuracy.n),
        ]
        for row in found
    ]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else "infinite" if math.isinf(value) else form.format(value)


def to_csv(lines: Sequence[Sequence[str]]) -> str:
    """Return the table as CSV."""
    out = io.StringIO()
    csv.writer(out).writerows([COLUMNS, *lines])
    return out.getvalue()


def write(found: Sequence[Row], folder: Path) -> None:
    """Write the table and the pictures."""
    lines = table(found)
    (folder / "table.md").write_text(markdown(COLUMNS, lines), encoding="utf-8")
    (folder / "table.csv").write_text(to_csv(lines), encoding="utf-8")
    levels = {row.group: row.accuracy for row in found if row.document is None or math.isinf(row.document)}
    swept = [row for row in found if row.document is not None and not math.isinf(row.document)]
    for name, label, prices in (
        ("document-epsilon", "epsilon per document", [row.document for row in swept]),
        ("attack-success", "success of the best context-free attack on a word", [row.attack for row in swept]),
    ):
        points = [Point(price or 0.0, row.accuracy) for price, row in zip(prices, swept, strict=True)]
        plot_accuracy(folder / f"accuracy-over-{name}.png", label, {"PDSS": points}, levels)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the experiment from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two seeds and two epsilons")
    parser.add_argument("--seeds", type=int, help=f"number of seeds (default {SEEDS}, quick {QUICK_SEEDS})")
    parser.add_argument("--epsilons", type=float, nargs="+", help="per token")
    parser.add_argument("--output", type=Path, default=Path("runs", "reproduce"))
    parser.add_argument("--workers", type=int, help="processes at a time (default: one a core)")
    given = parser.parse_args(arguments)
    epsilons = given.epsilons or (QUICK_EPSILONS if given.quick else EPSILONS)
    seeds = given.seeds or (QUICK_SEEDS if given.quick else SEEDS)
    found = rows(run_cells(cells(epsilons, seeds), given.output, given.workers))
    write(found, given.output)
    print(markdown(COLUMNS, table(found)))
    print(f"table and pictures: {given.output}")


if __name__ == "__main__":
    main()
