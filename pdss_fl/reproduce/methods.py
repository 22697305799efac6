"""What is compared, as data: the methods, the data sets, and the cells that follow from them.

A row of the table is a method, at one epsilon where it has one. A new mechanism is one more line in ``METHODS``.
"""

from __future__ import annotations

import filecmp
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pdss_fl.config import RunSettings
from pdss_fl.reproduce.cells import ATTACK, FEW_SHOT, FEW_SHOT_LLM, GIVEN, Cell


@dataclass(frozen=True)
class Method:
    """One method: ``kind`` is that of its cells; one that is ``swept`` runs once at each epsilon."""

    name: str
    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    swept: bool = False


def _pdss(name: str, mechanism: str, **own: Any) -> Method:
    return Method(f"PDSS, {name}", "pdss", {"privacy.mechanism": mechanism, **own}, swept=True)


_TRAINED = {"distill.decoder": "trained"}
ENCODER = "encoder-decoder.model"

ZERO_SHOT = Method("zero-shot SLM", "untrained")
STANDALONE = Method("Standalone", "standalone")
DSS = Method("DSS", "dss")
PDSS = _pdss("staircase", "staircase")
GRADED = _pdss("graded exponential", "exponential")
ADAPTIVE = _pdss("adaptive budget", "adaptive-staircase")
ENCODERS = (
    Method("PDSS, encoder, empirical", "pdss", {"privacy.mechanism": "encoder-empirical"}),
    _pdss("encoder, DP decoding", "encoder-dp-decoding"),
    _pdss("encoder, difference clipping", "encoder-difference-clipping"),
    _pdss("encoder, top words", "encoder-top"),
    _pdss("encoder, composed", "encoder-composed"),
)
"""All mechanisms are compared with one decoder, alignment; those below show what the trained one adds by itself."""
TRAINED = (
    _pdss("staircase, trained decoder", "staircase", **_TRAINED),
    _pdss("encoder, composed, trained decoder", "encoder-composed", **_TRAINED),
)
METHODS = (
    ZERO_SHOT,
    Method("few-shot SLM", FEW_SHOT),
    Method("few-shot LLM", FEW_SHOT_LLM, {"llm.adapter": ""}),
    STANDALONE,
    DSS,
    PDSS,
    GRADED,
    ADAPTIVE,
    *ENCODERS,
    *TRAINED,
)
TEACHER = Method("LLM with its adapter", FEW_SHOT_LLM)
"""What the built-in set's LLM answers itself: it is the one that writes the rationales there."""


@dataclass(frozen=True)
class DataSet:
    """One data set: ``settings`` of all its cells, and ``reference``, the epsilon that its headline speaks of."""

    name: str
    settings: Mapping[str, Any]
    methods: tuple[Method, ...]
    epsilons: tuple[float, ...]
    reference: float


_BUILT_IN = (*METHODS[:3], TEACHER, *METHODS[3:])
EVERYDAY = DataSet("everyday", {}, _BUILT_IN, (0.1, 5.0, 7.0, 9.0), RunSettings().privacy.epsilon)
QUICK: Mapping[str, Any] = {"data.train-examples": 150, "data.test-examples": 120, "distill.steps": 375}
"""The quick form: fewer labels, and as many passes over them."""

_TEXT: Mapping[str, Any] = {
    "data.source": "jsonl", "data.train-examples": 300, "data.test-examples": 500,
    "privacy.vocabulary": "english", "privacy.vocabulary-size": 4000, "privacy.words": "content",
    "privacy.question-words": 8, "privacy.choices": 4, "privacy.choice-words": 2,
    "slm.max-tokens": 256, "llm.max-new-tokens": 60, "distill.steps": 600,
}  # fmt: skip
_LABELS: Mapping[str, Any] = {"privacy.choices": 0, "data.public-choices": True}
REAL: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "arc_easy": ("ARC-Easy", {}),
    "openbookqa": ("OpenBookQA", {}),
    "commonsenseqa": ("CommonsenseQA", {"privacy.choices": 5}),
    "boolq": ("BoolQ", _LABELS),
}
_CONTROL: Mapping[str, Any] = {
    "data.source": "jsonl", "data.train-examples": 4000, "data.test-examples": 611, "privacy.vocabulary": "english",
    "slm.max-tokens": 256, "distill.steps": 1500, "distill.decoder": "none", "distill.filter": "off",
    "distill.rationale-words": 60,
}  # fmt: skip
_RATIONALES = "train_palm540b_rationales.jsonl"


def real_data(data: Path, links: Path, models: Mapping[str, Any]) -> list[DataSet]:
    """Return the data sets whose folders ``data`` holds.

    Parameters
    ----------
    data : Path
        Absolute; one folder a data set, with ``train.jsonl`` and ``dev.jsonl`` or ``test.jsonl``.
        ``commonsenseqa`` may also hold training rationales of a 540-billion-parameter model, which then are a
        control of the student's half: no LLM and no privacy.
    links : Path
        Where the control's two files are put together, as links; ``SystemExit`` if there are some to other data.
    models : Mapping[str, Any]
        Run-config keys of the models, added to the settings. The built-in encoder knows the built-in set only, so
        the encoders' rows are there if ``encoder-decoder.model`` names another.
    """
    methods = METHODS if ENCODER in models else tuple(m for m in METHODS if m not in (*ENCODERS, *TRAINED))
    found = [
        DataSet(title, {**_TEXT, **own, **models, "data.path": str(data / name)}, methods, (4.0, 8.0, 12.0, 16.0), 8.0)
        for name, (title, own) in REAL.items()
        if (data / name).is_dir()
    ]
    if _link_control(data / "commonsenseqa", links):
        settings = {**_CONTROL, "data.path": str(links)}
        given = Method("DSS, rationales of PaLM-540B", GIVEN)
        found.append(DataSet("CommonsenseQA-PaLM", settings, (STANDALONE, given), (), 0.0))
    return found


def _link_control(source: Path, links: Path) -> bool:
    files = {"train.jsonl": source / _RATIONALES, "dev.jsonl": source / "dev.jsonl"}
    if not all(file.is_file() for file in files.values()):
        return False
    links.mkdir(parents=True, exist_ok=True)
    for name, file in files.items():
        link = links / name
        if link.is_symlink() and link.resolve() != file.resolve():
            if not (link.exists() and filecmp.cmp(link, file, shallow=False)):
                raise SystemExit(
                    f"{links}: its {name} is of other data than {source}, or of a folder that has moved, and so are "
                    "the results beside it: give another --output, or remove that link if the data is the same"
                )
            link.unlink()
        if not link.exists():
            link.symlink_to(file.resolve())
    return True


@dataclass(frozen=True)
class Entry:
    """One row: a method on a data set, at ``epsilon`` a token if it is swept."""

    data: DataSet
    method: Method
    epsilon: float | None

    @property
    def group(self) -> str:
        """The row's name."""
        return f"{self.data.name}: {self.label}"

    @property
    def label(self) -> str:
        """The row's name within its data set."""
        return self.method.name if self.epsilon is None else f"{self.method.name}, epsilon {self.epsilon:g}"

    def cell(self, seed: int) -> Cell:
        """Return the cell that trains and tests under one seed."""
        return Cell(self.group, self.method.kind, seed, settings=self._settings)

    @property
    def attack(self) -> Cell | None:
        """The cell that tells what the method releases; ``None`` where nothing private is perturbed."""
        return Cell(self.group, ATTACK, 0, settings=self._settings) if self.method.kind == "pdss" else None

    @property
    def _settings(self) -> dict[str, Any]:
        swept = {} if self.epsilon is None else {"privacy.epsilon": self.epsilon}
        return {**self.data.settings, **self.method.settings, **swept}


def entries(data: DataSet, epsilons: Sequence[float], wanted: Sequence[str] = ()) -> list[Entry]:
    """Return the rows of a data set, of all its methods or of those whose names are ``wanted``."""
    methods = [method for method in data.methods if not wanted or method.name in wanted]
    return [Entry(data, method, epsilon) for method in methods for epsilon in (epsilons if method.swept else (None,))]


def cells(rows: Iterable[Entry], seeds: int) -> list[Cell]:
    """Return the experiment seed by seed, so that what ends early is paired; a cell of equal key once."""
    rows = list(rows)
    found = [entry.cell(seed) for seed in range(seeds) for entry in rows]
    attacks = [entry.attack for entry in rows]
    return [*filter(None, attacks), *found]
