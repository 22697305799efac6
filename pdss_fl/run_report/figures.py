"""The pictures of a run's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pdss_fl.pages.pictures import as_data, pyplot
from pdss_fl.run_report.material import Curves

COLORS = {"untrained": "0.6", "standalone": "tab:blue", "pdss": "tab:red", "dss": "tab:green"}


def comparison(accuracy: Mapping[str, Any]) -> str:
    """Draw the accuracy of each method with its 95 % interval, all clients' questions together."""
    rows = [(method, row) for method, row in accuracy.items() if row][::-1]
    figure, axes = pyplot().subplots(figsize=(7.6, 0.9 + 0.5 * len(rows)), layout="constrained")
    for place, (method, row) in enumerate(rows):
        reach = [[100 * (row["value"] - row["low"])], [100 * (row["high"] - row["value"])]]
        axes.barh(place, 100 * row["value"], color=COLORS.get(method, "0.4"), alpha=0.8)
        axes.errorbar(100 * row["value"], place, xerr=reach, color="black", capsize=4)
    axes.set_yticks(range(len(rows)), [method for method, _ in rows])
    axes.set_xlim(0, 100)
    axes.set_xlabel("right answers on held-out questions, %")
    axes.grid(axis="x", alpha=0.3)
    return as_data(figure)


def clients(curves: Curves) -> str:
    """Draw one line a client: over the methods after one round, else over the rounds."""
    rounds = {r for nodes in curves.values() for points in nodes.values() for r, _ in points if r}
    figure, axes = pyplot().subplots(figsize=(7.6, 4.2), layout="constrained")
    if len(rounds) > 1:
        _over_rounds(axes, curves, sorted(rounds))
    else:
        _over_methods(axes, curves)
    axes.set_ylabel("right answers, %")
    axes.grid(alpha=0.3)
    return as_data(figure)


def _over_methods(axes: Any, curves: Curves) -> None:
    methods = list(curves)
    nodes = sorted({node for of in curves.values() for node in of})
    for node in nodes:
        line = [100 * curves[m][node][-1][1] if node in curves[m] else float("nan") for m in methods]
        label = f"node {str(node)[-4:]}" if len(nodes) <= 10 else None
        axes.plot(methods, line, marker="o", alpha=0.8 if label else 0.3, label=label)
    if len(nodes) <= 10:
        axes.legend(fontsize="small")


def _over_rounds(axes: Any, curves: Curves, rounds: Sequence[int]) -> None:
    for method, nodes in curves.items():
        for i, points in enumerate(nodes.values()):
            label = method if i == 0 else None
            color = COLORS.get(method, "0.4")
            if len(points) == 1:  # evaluated once, as the untrained model is
                axes.axhline(100 * points[0][1], color=color, linestyle=":", alpha=0.5, label=label)
            else:
                axes.plot([r for r, _ in points], [100 * v for _, v in points], color=color, alpha=0.6, label=label)
    axes.set_xlabel("round")
    axes.set_xticks(rounds)
    axes.legend(fontsize="small")


def attack(points: Sequence[tuple[float, float]], asked: float) -> str:
    """Draw how often the best context-free attack names a word over epsilon; the run's own is marked."""
    figure, axes = pyplot().subplots(figsize=(7.6, 3.4), layout="constrained")
    axes.plot([e for e, _ in points], [100 * v for _, v in points], color="tab:red", marker="o", markersize=4)
    own = dict(points)[asked]
    axes.plot(asked, 100 * own, "o", color="black", markersize=9, label=f"this run: {100 * own:.1f}%")
    axes.set_xlabel("epsilon of a word")
    axes.set_ylabel("words named, %")
    axes.set_ylim(0, 102)
    axes.grid(alpha=0.3)
    axes.legend()
    return as_data(figure)
