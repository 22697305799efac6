"""A ledger as text for people: who has spent what, what is left, and whether the file is all there."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pdss_fl.errors import StoreError
from pdss_fl.privacy.accounting import dataset_guarantee
from pdss_fl.privacy.counts import TEST_SPLIT
from pdss_fl.privacy.ledger import Totals
from pdss_fl.privacy.ledger_file import LedgerFile, epsilon_of, read_ledger
from pdss_fl.report import epsilon_text

_HASH = 12  # characters of a hash that are shown


def describe_ledger(path: Path, limit: float | None = None, rows: int = 50) -> str:
    """Return tables of a ledger's examples and persons, the totals, and the state of its running hash.

    Reads only, holds no lock, and shows what is there even if the file is damaged.

    Parameters
    ----------
    path : Path
        A node's ``state-dir/ledger.jsonl``.
    limit : float | None (default: None)
        The node's ``max-epsilon-per-example`` in nats; with it, what is left is shown.
    rows : int (default: 50)
        At least 1: how many examples, and persons, are shown; those that spent most come first.

    Raises
    ------
    StoreError
        If there is no file, or it cannot be read.
    """
    try:
        found = read_ledger(path)
    except OSError as err:
        raise StoreError(f"no ledger can be read at {str(path)!r}", type(err).__name__) from None
    prompts, counts = _by_kind(found.lines)
    totals = Totals()
    for line in prompts:
        totals.add(line)
    out = io.StringIO()
    console = Console(file=out, width=120)
    console.print(_examples(prompts, totals, limit, rows))
    if totals.person:
        console.print(_persons(totals, limit, rows))
    for text in _summary(found, prompts, counts, totals):
        console.print(text, highlight=False, soft_wrap=True, markup=False)
    return out.getvalue().rstrip()


def _by_kind(lines: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the releases of prompts, and the noisy counts of right answers."""
    return [x for x in lines if x["example"] != TEST_SPLIT], [x for x in lines if x["example"] == TEST_SPLIT]


def _examples(lines: list[dict[str, Any]], totals: Totals, limit: float | None, rows: int) -> Table:
    releases: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        releases.setdefault(line["example"], []).append(line)
    table = _table(f"Examples{_of_all(len(releases), rows)}", ("example", "person", "mechanism"), limit, "releases")
    table.add_column("delta", justify="right")
    table.add_column("last release (UTC)")
    for example in _most_spent(totals.example, rows):
        own = releases[example]
        table.add_row(
            example[:_HASH],
            ", ".join(map(_person, sorted(totals.persons_of[example]))) or "-",
            ", ".join(dict.fromkeys(line["recipe"].split(" ", 1)[0] for line in own)),
            str(len(own)),
            *_spent(totals.example[example], limit),
            f"{sum(line['delta'] for line in own):.3g}",
            str(own[-1]["time"])[:16].replace("T", " "),
        )
    return table


def _persons(totals: Totals, limit: float | None, rows: int) -> Table:
    table = _table(f"Persons{_of_all(len(totals.person), rows)}", ("person",), limit, "examples")
    for person in _most_spent(totals.person, rows):
        examples = sum(person in persons for persons in totals.persons_of.values())
        table.add_row(_person(person), str(examples), *_spent(totals.person[person], limit))
    return table


def _table(title: str, names: Iterable[str], limit: float | None, count: str) -> Table:
    table = Table(title=title)
    for name in names:
        table.add_column(name)
    for name in (count, "epsilon spent", *(["epsilon left"] if limit is not None else [])):
        table.add_column(name, justify="right")
    return table


def _summary(
    found: LedgerFile, prompts: list[dict[str, Any]], counts: list[dict[str, Any]], totals: Totals
) -> list[str]:
    # Who is not named counts as the example itself; an example of two persons counts to both.
    everyone = [
        (who, epsilon_of(x), x["delta"]) for x in prompts for who in totals.persons_of[x["example"]] or {x["example"]}
    ]
    epsilon, delta = dataset_guarantee(everyone)
    state = f"DAMAGED: {found.trouble}; what is shown is what comes before" if found.trouble else "ok"
    evaluations = (
        f"counts       epsilon {epsilon_text(sum(map(epsilon_of, counts)))} of each question of the test split, in "
        f"{len(counts)} noisy counts of right answers; adds to what else is told of the same text or person"
    )
    return [
        f"releases     {len(prompts)} of {len(totals.example)} examples, {len(totals.person)} persons named",
        f"sum          epsilon {epsilon_text(sum(totals.example.values()))} over all examples",
        f"data set     epsilon {epsilon_text(epsilon)} at delta {delta:.3g} for anyone in it: a person's examples "
        "add up, those of different persons do not; an example of nobody named counts as a person",
        *([evaluations] if counts else []),
        f"running hash {state}",
    ]


def _most_spent(spent: dict[str, float], rows: int) -> list[str]:
    return sorted(spent, key=lambda key: -spent[key])[:rows]


def _of_all(count: int, rows: int) -> str:
    return f", the {rows} of {count} that spent most" if count > rows else ""


def _spent(spent: float, limit: float | None) -> list[str]:
    if limit is None:
        return [epsilon_text(spent)]
    return [epsilon_text(spent), epsilon_text(limit if math.isinf(limit) else max(0.0, limit - spent))]


def _person(hashed: str) -> str:
    return hashed.removeprefix("person:")[:_HASH]
