"""The comparison as one self-contained HTML page: pictures inside, no script, nothing loaded, all text escaped."""

from __future__ import annotations

import math
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from pdss_fl import pages
from pdss_fl.reproduce.expectations import HELD, NOT_HELD, NOT_MEASURED, UNDECIDED, Expectation, points
from pdss_fl.reproduce.methods import DSS, PDSS, STANDALONE, DataSet, Method
from pdss_fl.reproduce.table import COLUMNS, Row, lines, percent

_ORDER = (HELD, NOT_HELD, UNDECIDED, NOT_MEASURED)


@dataclass(frozen=True)
class Section:
    """What the page shows of one data set; ``pictures`` by their price."""

    data: DataSet
    rows: Sequence[Row]
    expected: Sequence[Expectation]
    pictures: Mapping[str, str]

    @property
    def headline(self) -> str:
        """The result in a sentence or two."""
        return headline(self)

    @property
    def verdicts(self) -> str:
        """How many expectations held, in words."""
        counts = Counter(e.verdict for e in self.expected)
        return ", ".join(f"{counts[verdict]} {verdict}" for verdict in _ORDER if counts[verdict])

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the table's columns."""
        return COLUMNS[1:]

    @property
    def lines(self) -> list[tuple[Row, list[str]]]:
        """The table, each row with its texts."""
        return [(row, line[1:]) for row, line in zip(self.rows, lines(self.rows), strict=True)]


def headline(section: Section) -> str:
    """Say what PDSS with the staircase brings at the reference epsilon, or that it was not measured."""

    def of(method: Method, epsilon: float | None = None) -> Row | None:
        return next((r for r in section.rows if r.entry.method == method and r.entry.epsilon == epsilon), None)

    pdss, alone, bound = of(PDSS, section.data.reference), of(STANDALONE), of(DSS)
    if pdss is None or alone is None or pdss.gain is None:
        return "PDSS at its default and Standalone were not both measured yet."
    document = "" if pdss.document is None or math.isinf(pdss.document) else f" ({pdss.document:.4g} a prompt)"
    text = (
        f"At epsilon {section.data.reference:g} a word{document} PDSS answers {percent(pdss.accuracy.value)} of "
        f"held-out questions, Standalone {percent(alone.accuracy.value)}: {points(pdss.gain)}."
    )
    if bound is not None:
        text += f" Without privacy (DSS) it is {percent(bound.accuracy.value)}."
    if pdss.attack is not None:
        text += f" The best attack measured names {percent(pdss.attack)} of the private words."
    return text


def render(sections: Sequence[Section], left: str, command: str, quick: bool) -> str:
    """Return the page.

    Parameters
    ----------
    sections : Sequence[Section]
        One a data set, the main one first.
    left : str
        What of the experiment is not done yet; empty if nothing.
    command : str
        What made the page.
    quick : bool
        Whether it is of the quick form, which trains on fewer labels.
    """
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "numpy"))
    versions = f"Python {platform.python_version()}, {packages}"
    return pages.render(
        "pdss_fl.reproduce", sections=sections, left=left, command=command, quick=quick, versions=versions
    )
