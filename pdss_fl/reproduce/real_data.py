"""The comparison on real questions, and a control of the student's half with a large model's rationales.

Run ``make reproduce-real DATA=DIR``. DIR holds one folder a data set with ``train.jsonl`` and ``dev.jsonl`` (or
``test.jsonl``); ``commonsenseqa`` also ``train_palm540b_rationales.jsonl``, whose rationales a 540-billion-parameter
model wrote. Resumable; writes ``cells.jsonl`` and ``table.md`` below ``--output``.

ARC-Easy and OpenBookQA run the whole comparison with the bundled LLM, without the built-in set's adapter.
CommonsenseQA compares Standalone with a student of the given rationales: no LLM, no privacy.
``--llm`` and ``--slm`` take any Hugging Face models.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pdss_fl.reproduce.cells import GIVEN, Cell
from pdss_fl.reproduce.everyday import STANDALONE
from pdss_fl.reproduce.runner import run_cells
from pdss_fl.reproduce.statistics import Outcomes, accuracies, markdown, mean, paired_difference

_RATIONALES = "train_palm540b_rationales.jsonl"
_TEXT: Mapping[str, Any] = {
    "data.source": "jsonl", "data.train-examples": 300, "data.test-examples": 500,
    "privacy.vocabulary": "english", "privacy.vocabulary-size": 4000, "privacy.words": "content",
    "privacy.question-words": 8, "privacy.choices": 4, "privacy.choice-words": 2,
    "slm.max-tokens": 256, "llm.max-new-tokens": 60, "distill.steps": 600,
}  # fmt: skip
_CONTROL: Mapping[str, Any] = {
    "data.source": "jsonl", "data.train-examples": 4000, "data.test-examples": 611, "privacy.vocabulary": "english",
    "slm.max-tokens": 256, "distill.steps": 1500, "distill.decoder": "none", "distill.filter": "off",
    "distill.rationale-words": 60,
}  # fmt: skip
EPSILONS = (8.0, 12.0)


def cells(data: Path, linked: Path, seeds: int, models: Mapping[str, Any]) -> list[Cell]:
    """Return the cells for the data sets that ``data`` holds, the control first; ``linked`` holds its files."""
    found = []
    for seed in range(seeds):
        if linked.is_dir():
            found += _row(
                "CommonsenseQA", seed, {**_CONTROL, "data.path": str(linked)}, {"DSS, PaLM-540B": (GIVEN, {})}
            )
        for name, title in (("arc_easy", "ARC-Easy"), ("openbookqa", "OpenBookQA")):
            if (data / name).is_dir():
                pdss = {f"PDSS, epsilon {e:g}": ("pdss", {"privacy.epsilon": e}) for e in EPSILONS}
                settings = {**_TEXT, **models, "data.path": str(data / name)}
                found += _row(title, seed, settings, {"untrained": ("untrained", {}), "DSS": ("dss", {}), **pdss})
    return found


def _row(
    title: str, seed: int, settings: Mapping[str, Any], methods: Mapping[str, tuple[str, Mapping[str, Any]]]
) -> list[Cell]:
    everyone = {STANDALONE: ("standalone", {}), **methods}
    return [
        Cell(f"{title}: {name}", method, seed, settings={**settings, **own}) for name, (method, own) in everyone.items()
    ]


def table(outcomes: Outcomes) -> str:
    """Return one line a data set and method, in Markdown."""
    lines = []
    for group in dict.fromkeys(cell.group for cell, _ in outcomes):
        accuracy = mean(list(accuracies(outcomes, group).values()))
        gain = paired_difference(outcomes, group, f"{group.split(':')[0]}: {STANDALONE}")
        lines.append([group, f"{accuracy.value:.1%}", f"{100 * gain.value:+.1f}", gain.interval, str(accuracy.n)])
    return markdown(("data and method", "accuracy", "minus Standalone", "95 % interval", "seeds"), lines)


def _link_control(data: Path, folder: Path) -> Path:
    """Put the training file with rationales beside the questions, under the names that a client reads."""
    sources = {"train.jsonl": data / "commonsenseqa" / _RATIONALES, "dev.jsonl": data / "commonsenseqa" / "dev.jsonl"}
    if all(source.is_file() for source in sources.values()):
        folder.mkdir(parents=True, exist_ok=True)
        for name, source in sources.items():
            if not (folder / name).exists():
                (folder / name).symlink_to(source.resolve())
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the experiment from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with one folder a data set")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--llm", help="the server's model instead of the bundled one")
    parser.add_argument("--slm", help="a pretrained model instead of one from scratch")
    parser.add_argument("--output", type=Path, default=Path("runs", "real-data"))
    parser.add_argument("--workers", type=int, help="processes at a time (default: one a core)")
    given = parser.parse_args(arguments)
    models = {key: value for key, value in (("llm.model", given.llm), ("slm.model", given.slm)) if value}
    linked = _link_control(given.data, given.output.resolve() / "commonsenseqa")
    wanted = cells(given.data.resolve(), linked, given.seeds, models)
    if not wanted:
        parser.error(f"{given.data} holds none of arc_easy, openbookqa, commonsenseqa")
    text = table(run_cells(wanted, given.output, given.workers))
    (given.output / "table.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
