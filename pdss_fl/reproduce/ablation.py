"""What carries the gain: each choice of the default changed alone, on the built-in set, paired over seeds.

Run ``make reproduce-ablation``. Resumable; writes ``cells.jsonl`` and ``ablation.md`` below ``--output``.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pdss_fl.reproduce import methods
from pdss_fl.reproduce.cells import Cell
from pdss_fl.reproduce.runner import run_cells
from pdss_fl.reproduce.statistics import Outcomes, accuracies, markdown, mean, paired_difference

STANDALONE = methods.STANDALONE.name
DEFAULT = "PDSS at the default"
CHANGES: Mapping[str, Mapping[str, Any]] = {
    DEFAULT: {},
    "sent: question and choices, all words": {
        "privacy.words": "all", "privacy.question-words": 12, "privacy.choices": 4, "privacy.choice-words": 1,
    },
    "sent: content words and choices": {"privacy.choices": 4},
    "sent: one word of the question": {"privacy.question-words": 1},
    "vocabulary: 4,000 words": {"privacy.vocabulary-size": 4000},
    "decoder: none": {"distill.decoder": "none"},
    "filter: drop what contradicts the label": {"distill.filter": "drop"},
    "filter: correct it": {"distill.filter": "correct"},
    "filter: off": {"distill.filter": "off"},
    "rationale: first 6 words": {"distill.rationale-words": 6},
    "rationale weight 0.5": {"distill.rationale-weight": 0.5},
    "rationale weight 0.95": {"distill.rationale-weight": 0.95},
    "LLM without its adapter": {"llm.adapter": ""},
}  # fmt: skip


def cells(seeds: int) -> list[Cell]:
    """Return the experiment; a change that is the default already is left out.

    The noise is seeded, so that whatever changes on the client alone is compared on the same prompts.
    """
    found: dict[str, Cell] = {}
    for seed in range(seeds):
        for name, change in {STANDALONE: {}, **CHANGES}.items():
            method = "standalone" if name == STANDALONE else "pdss"
            cell = Cell(name, method, seed, settings={**change, "insecure-noise-seed": seed})
            found.setdefault(cell.key, cell)
    return list(found.values())


def table(outcomes: Outcomes) -> str:
    """Return one line a change, in Markdown."""
    lines = []
    for group in dict.fromkeys(cell.group for cell, _ in outcomes):
        accuracy = mean(list(accuracies(outcomes, group).values()))
        gain, change = (paired_difference(outcomes, group, base) for base in (STANDALONE, DEFAULT))
        points = (f"{100 * gain.value:+.1f}", gain.interval, f"{100 * change.value:+.1f}")
        lines.append([group, f"{accuracy.value:.1%}", *points, str(accuracy.n)])
    columns = ("change", "accuracy", "minus Standalone", "95 % interval", "minus the default", "seeds")
    return markdown(columns, lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the experiment from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("runs", "reproduce"))
    parser.add_argument("--workers", type=int, help="processes at a time (default: one a core)")
    given = parser.parse_args(arguments)
    text = table(run_cells(cells(given.seeds), given.output, given.workers))
    (given.output / "ablation.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
