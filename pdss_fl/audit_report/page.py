"""An audit as one self-contained HTML page: pictures inside, no script, nothing loaded, all text escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pdss_fl.audit_report.figures import attacks_beside_caps, privacy_utility
from pdss_fl.audit_report.measure import Measured
from pdss_fl.pages import percent, render

_TARGETS = {
    "protected": "private words",
    "unprotected": "filling words",
    "document": "the question",
    "answer": "answer",
}


@dataclass(frozen=True)
class Facts:
    """What a page says of how it was made; all of it is text for a reader."""

    source: str
    documents: int
    vocabulary: str
    shape: str
    tokens: int
    delta: float
    close: int
    method: tuple[str, ...]
    versions: str
    command: str
    seed: int


def render_page(rows: Sequence[Measured], facts: Facts) -> str:
    """Return the page of at least one audit; the first one's attacks are drawn."""
    return render(
        "pdss_fl.audit_report",
        {"cap": cap, "target": _TARGETS.__getitem__},
        rows=rows,
        first=rows[0],
        facts=facts,
        failures=[(row, why) for row in rows for why in row.failures],
        nothing=[row for row in rows if row.guarantee.kind == "none" and row.asked == rows[0].asked],
        utility=privacy_utility(rows),
        caps=attacks_beside_caps(rows[0].attacks),
    )


def cap(value: float | None) -> str:
    """Return a cap as a percentage; "none" where nothing is claimed, "no limit" where a claim rules out none."""
    return "none" if value is None else "no limit" if value >= 1 else percent(value)
