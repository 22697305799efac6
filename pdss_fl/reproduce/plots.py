"""The pictures of the comparison: accuracy over what is paid for it, a curve a mechanism."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pdss_fl.pages.pictures import as_data, pyplot
from pdss_fl.reproduce.methods import DSS, METHODS, STANDALONE, TEACHER, TRAINED, Method
from pdss_fl.reproduce.table import Row

_LINES: dict[str, tuple[str, Any]] = {
    "zero-shot SLM": ("0.6", ":"),
    "few-shot SLM": ("0.6", "-."),
    "few-shot LLM": ("tab:olive", ":"),
    STANDALONE.name: ("tab:blue", "--"),
    DSS.name: ("tab:green", "-"),
    TEACHER.name: ("tab:olive", "-."),
}
_BANDS = (STANDALONE.name, DSS.name)
_MECHANISM = "privacy.mechanism"
_MECHANISMS = list(dict.fromkeys(m.settings[_MECHANISM] for m in METHODS if _MECHANISM in m.settings))
_COLORS = ("tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:cyan", "black", "tab:orange", "0.45")

Price = Callable[[Row], float | None]
PRICES: dict[str, tuple[str, Price]] = {
    "attack-success": ("success of the best attack on a private word", lambda r: r.attack),
    "epsilon": ("epsilon per token", lambda r: r.entry.epsilon),
    "document-epsilon": ("epsilon per document", lambda r: r.document),
}
"""What accuracy is drawn over: the name in a file's name, the axis, and a row's value there."""


def draw(rows: Sequence[Row], price: str) -> Any:
    """Return the figure of one data set over one of ``PRICES``, with 95 % intervals over seeds.

    PDSS has a curve for each mechanism, of one colour in all figures, and a broken one where its decoder is trained;
    what has no price there, or sends raw text, is a horizontal line.
    """
    label, value = PRICES[price]
    figure, axes = pyplot().subplots(figsize=(10.5, 5.2), layout="constrained")
    curves: dict[Method, list[tuple[float, Row]]] = {}
    for row in rows:
        at = value(row)
        if row.entry.method.kind == "pdss" and at is not None and math.isfinite(at):
            curves.setdefault(row.entry.method, []).append((at, row))
        else:
            _level(axes, row)
    for method, points in curves.items():
        _curve(axes, method, sorted(points, key=lambda point: point[0]))
    axes.set_xlabel(label)
    if price == "attack-success":
        axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    axes.set_ylabel("accuracy on held-out questions, %")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8)
    return figure


def _level(axes: Any, row: Row) -> None:
    method = row.entry.method
    color, style = _LINES.get(method.name) or (_look(method)[0], (0, (1, 3)))
    axes.axhline(100 * row.accuracy.value, color=color, linestyle=style, linewidth=1.3, label=row.entry.label)
    if row.accuracy.n > 1 and method.name in _BANDS:
        axes.axhspan(100 * row.accuracy.low, 100 * row.accuracy.high, color=color, alpha=0.07, linewidth=0)


def _look(method: Method) -> tuple[str, str]:
    """Return the colour and the marker of a mechanism."""
    place = _MECHANISMS.index(method.settings[_MECHANISM]) if _MECHANISM in method.settings else 0
    return _COLORS[place % len(_COLORS)], "os^DvphX"[place % 8]


def _curve(axes: Any, method: Method, points: Sequence[tuple[float, Row]]) -> None:
    color, marker = _look(method)
    broken: dict[str, Any] = {"linestyle": "--", "markerfacecolor": "white"} if method in TRAINED else {}
    shares = [row.accuracy for _, row in points]
    middle = [100 * share.value for share in shares]
    sides = [(share.value - share.low, share.high - share.value) if share.n > 1 else (0.0, 0.0) for share in shares]
    reach = [[100 * side[i] for side in sides] for i in (0, 1)]
    axes.errorbar(
        [at for at, _ in points], middle, yerr=reach, color=color, marker=marker, capsize=3, elinewidth=0.8,
        label=method.name, **broken,
    )  # fmt: skip
    for at, row in points:
        if row.entry.epsilon is not None:
            text = f"{row.entry.epsilon:g}"
            offset = {"xytext": (4, 4), "textcoords": "offset points", "fontsize": 7, "color": "0.35"}
            axes.annotate(text, (at, 100 * row.accuracy.value), **offset)


def save(figure: Any, path: Path) -> str:
    """Write a figure as a PNG file, close it, and return it as an SVG picture for a page (a ``data:`` address)."""
    figure.savefig(path, dpi=120)
    return as_data(figure)
