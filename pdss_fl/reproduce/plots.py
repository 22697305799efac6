"""The pictures of an experiment: accuracy over what is paid for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pdss_fl.reproduce.statistics import Mean

_LINES = {"untrained": ("0.6", ":"), "Standalone": ("tab:blue", "--"), "DSS": ("tab:green", "-.")}


@dataclass(frozen=True)
class Point:
    """An accuracy at a price, which is an epsilon or the success of an attack."""

    price: float
    accuracy: Mean


def plot_accuracy(path: Path, label: str, curves: Mapping[str, Sequence[Point]], levels: Mapping[str, Mean]) -> None:
    """Draw accuracy over a price, with 95 % intervals over seeds, as a PNG file.

    Parameters
    ----------
    path : Path
        The file.
    label : str
        What the price is, for the axis.
    curves : Mapping[str, Sequence[Point]]
        What has a price.
    levels : Mapping[str, Mean]
        What has none, drawn as horizontal lines.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for name, level in levels.items():
        color, style = _LINES.get(name, ("0.3", "--"))
        axes.axhline(100 * level.value, color=color, linestyle=style, label=name)
        axes.axhspan(100 * level.low, 100 * level.high, color=color, alpha=0.08, linewidth=0)
    for place, (name, points) in enumerate(curves.items()):
        ordered = sorted(points, key=lambda point: point.price)
        middle = [100 * p.accuracy.value for p in ordered]
        reach = [[100 * (p.accuracy.value - p.accuracy.low) for p in ordered]]
        reach.append([100 * (p.accuracy.high - p.accuracy.value) for p in ordered])
        prices, color = [p.price for p in ordered], f"C{3 + place}"
        axes.errorbar(prices, middle, yerr=reach, color=color, marker="o", capsize=3, label=name)
    axes.set_xlabel(label)
    axes.set_ylabel("accuracy on held-out questions, %")
    axes.grid(alpha=0.3)
    axes.legend(loc="best", fontsize="small")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
