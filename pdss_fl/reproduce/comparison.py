"""The whole comparison: every method over epsilon, paired over seeds, on the built-in set and on real questions.

Run ``make reproduce``; ``ARGS=--quick`` for a small form of it, ``DATA=DIR`` for real questions as well. Written below
``--output``: ``cells.jsonl`` (what is done; a killed experiment goes on from there), ``table.csv``, ``table.md``,
``page.html``, and for every data set accuracy over epsilon, over document epsilon and over attack success as PNG files.

DIR holds one folder a data set (``arc_easy``, ``openbookqa``, ``commonsenseqa``, ``boolq``, or some of them) with
``train.jsonl`` and ``dev.jsonl`` (or ``test.jsonl``). ``--llm`` and ``--slm`` take any Hugging Face models for real
questions; without ``--encoder`` (what ``pdss train-encoder-decoder`` wrote for their vocabulary) the encoders' rows are
left out there.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pdss_fl.data.sources import EACH_ITS_OWN, from_path
from pdss_fl.errors import DataError, PdssError
from pdss_fl.reproduce.expectations import Expectation, expectations
from pdss_fl.reproduce.methods import ENCODER, EVERYDAY, QUICK, REAL, DataSet, Entry, cells, entries, real_data
from pdss_fl.reproduce.page import Section, render
from pdss_fl.reproduce.plots import PRICES, draw, save
from pdss_fl.reproduce.runner import done_cells, run_cells, what_is_left
from pdss_fl.reproduce.statistics import Outcomes
from pdss_fl.reproduce.table import Row, rows, to_csv, to_markdown

SEEDS, QUICK_SEEDS = 5, 1
_PRETRAINED_RATE = 5e-5


def report(plan: Sequence[Entry], outcomes: Outcomes, folder: Path, left: str, command: str, quick: bool) -> str:
    """Write the table, the pictures and the page of what is done; returns a summary for a terminal."""
    found = rows(plan, outcomes)
    (folder / "table.md").write_text(to_markdown(found), encoding="utf-8")
    (folder / "table.csv").write_text(to_csv(found), encoding="utf-8")
    names = dict.fromkeys(row.entry.data.name for row in found)
    sections = [_section([row for row in found if row.entry.data.name == n], outcomes, folder) for n in names]
    (folder / "page.html").write_text(render(sections, left, command, quick), encoding="utf-8")
    told = [f"\n{section.data.name}: {section.headline}\n{_listed(section.expected)}" for section in sections]
    return to_markdown(found) + "".join(told) + f"\npage: {folder / 'page.html'}"


def _section(own: Sequence[Row], outcomes: Outcomes, folder: Path) -> Section:
    data = own[0].entry.data
    if all(row.entry.epsilon is None for row in own):  # a control: nothing to draw, nothing expected
        return Section(data, own, [], {})
    slug = "".join(letter if letter.isalnum() else "-" for letter in data.name.lower())
    pictures = {price: save(draw(own, price), folder / f"{slug}-accuracy-over-{price}.png") for price in PRICES}
    return Section(data, own, expectations(own, outcomes, data.reference), pictures)


def _listed(expected: Sequence[Expectation]) -> str:
    return "".join(f"  {e.verdict:<12} {e.what}{f' ({e.why})' if e.why else ''}\n" for e in expected)


def plan_of(given: argparse.Namespace) -> list[Entry]:
    """Return the rows that a command line asks for; raises ``SystemExit`` for a name that there is not."""
    sets = [EVERYDAY]
    if given.data is not None:
        real = real_data(given.data.resolve(), given.output.resolve() / "commonsenseqa", _models(given))
        if not real:
            raise SystemExit(f"DATA = {given.data}: there is no folder {', '.join(REAL)} in it")
        sets += real
    if given.quick:  # a control without epsilons says nothing then
        sets = [replace(data, settings={**data.settings, **QUICK}) for data in sets if data.epsilons]
    methods = {method.name for data in sets for method in data.methods}
    _check_names("--sets", given.sets, {data.name for data in sets})
    _check_names("--methods", given.methods, methods)
    wanted = [data for data in sets if not given.sets or data.name in given.sets]
    return [entry for data in wanted for entry in entries(data, _epsilons(data, given), given.methods or ())]


def check_data(plan: Sequence[Entry]) -> None:
    """Read all real questions of a plan, so that a wrong file is told before hours of work; ``SystemExit`` names it."""
    for name, path in {entry.data.name: entry.data.settings.get("data.path") for entry in plan}.items():
        if path is not None:
            try:
                from_path(Path(path), EACH_ITS_OWN, 0, 1, 1, 1, 0)
            except DataError as err:
                raise SystemExit(f"{name}: {err.public}: {err.private or path}") from None


def _epsilons(data: DataSet, given: argparse.Namespace) -> Sequence[float]:
    if given.epsilons:
        return sorted(given.epsilons)
    return (data.epsilons[0], data.reference) if given.quick else data.epsilons


def _check_names(option: str, asked: Sequence[str] | None, known: set[str]) -> None:
    unknown = sorted(set(asked or ()) - known)
    if unknown:
        raise SystemExit(f"{option}: there is no {'; '.join(unknown)}; there are {'; '.join(sorted(known))}")


def _models(given: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of other models, which go with them: a dtype of their own, a gentle learning rate."""
    found: dict[str, Any] = {}
    if given.llm:
        found |= {"llm.model": given.llm, "llm.dtype": "auto"}
    if given.slm:
        found |= {"slm.model": given.slm, "distill.learning-rate": _PRETRAINED_RATE}
    if given.encoder:
        found[ENCODER] = given.encoder
    return found


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", help="folder with one folder a data set of real questions")
    parser.add_argument("--quick", action="store_true", help="one seed, two epsilons, fewer labels")
    parser.add_argument("--show", action="store_true", help="run nothing: tell what is left, show what is done")
    parser.add_argument("--seeds", type=_count, help=f"number of seeds (default {SEEDS}, quick {QUICK_SEEDS})")
    parser.add_argument("--epsilons", type=float, nargs="+", help="per token, in place of each data set's own")
    parser.add_argument("--sets", nargs="+", help="these data sets only, by the names in the table")
    parser.add_argument("--methods", nargs="+", help="these methods only, by the names in the table")
    parser.add_argument("--llm", help="the server's model for real questions, instead of the bundled one")
    parser.add_argument("--slm", help="a pretrained small model for real questions, instead of one from scratch")
    parser.add_argument("--encoder", help="a trained encoder-decoder for real questions")
    parser.add_argument("--output", type=Path, default=Path("runs", "reproduce"))
    parser.add_argument("--workers", type=_count, help="processes at a time (default: one a core)")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the experiment from the command line; a wrong setting, model or file ends it in one line that says which."""
    try:
        _compare(_parser().parse_args(arguments), list(sys.argv[1:] if arguments is None else arguments))
    except PdssError as err:
        raise SystemExit(err.local) from None


def _compare(given: argparse.Namespace, words: Sequence[str]) -> None:
    plan = plan_of(given)
    check_data(plan)
    if given.data is not None and not given.encoder:
        print("real questions: no rows of encoders, since --encoder names none", flush=True)
    wanted = cells(plan, given.seeds or (QUICK_SEEDS if given.quick else SEEDS))
    if given.show:
        given.output.mkdir(parents=True, exist_ok=True)
        outcomes = done_cells(wanted, given.output)
        left = what_is_left(wanted, outcomes, given.workers)
        print(left)
    else:
        outcomes, left = run_cells(wanted, given.output, given.workers), ""
    command = f"python -m pdss_fl.reproduce.comparison {shlex.join(words)}".rstrip()
    print(report(plan, outcomes, given.output, left, command, given.quick))


if __name__ == "__main__":
    main()
