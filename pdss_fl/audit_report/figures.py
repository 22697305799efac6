"""The two pictures of an audit's page, as SVG data that stands in the page itself."""

from __future__ import annotations

from collections.abc import Sequence

from pdss_fl.audit_report.measure import Measured
from pdss_fl.pages.pictures import as_data
from pdss_fl.pages.pictures import pyplot as plotting
from pdss_fl.privacy.attacks import AttackResult


def privacy_utility(rows: Sequence[Measured]) -> str:
    """Draw what is kept of the meaning over the best attack: a line a mechanism, a point an epsilon."""
    pyplot = plotting()
    figure, axes = pyplot.subplots(figsize=(8.6, 5.0), layout="constrained")
    names = list(dict.fromkeys(row.name for row in rows))
    colors = pyplot.get_cmap("tab10")
    for i, name in enumerate(names):
        points = sorted(
            (row.asked, 100 * row.best_attack.exact.value, 100 * row.close)
            for row in rows
            if row.name == name and row.best_attack is not None
        )
        claims = any(row.name == name and row.guarantee.kind != "none" for row in rows)
        style = {"linestyle": "-", "marker": "os^Dv"[i % 5]} if claims else {"linestyle": ":", "marker": "x"}
        axes.plot([p[1] for p in points], [p[2] for p in points], color=colors(i % 10), label=name, **style)
        for epsilon, x, y in points:
            axes.annotate(f"{epsilon:g}", (x, y), (4, 4), textcoords="offset points", fontsize=8, color=colors(i % 10))
    axes.set_xlabel("private words that the best attack names, %")
    axes.set_ylabel("released words close to the private one, %")
    axes.set_xlim(-2, 102)
    axes.set_ylim(-2, 105)
    axes.grid(alpha=0.3)
    axes.legend(title="x and dotted: claims nothing", loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8)
    return as_data(figure)


def attacks_beside_caps(attacks: Sequence[AttackResult]) -> str:
    """Draw the success of each attack with its interval, and the cap that the claim puts on it."""
    pyplot = plotting()
    shown = [attack for attack in attacks if attack.target != "unprotected"][::-1]
    figure, axes = pyplot.subplots(figsize=(8.6, 0.8 + 0.36 * len(shown)), layout="constrained")
    for place, attack in enumerate(shown):
        rate = attack.exact
        color = "tab:blue" if attack.passes else "tab:red"
        axes.plot([100 * rate.low, 100 * rate.high], [place, place], color=color, linewidth=4, alpha=0.35)
        axes.plot(100 * rate.value, place, "o", color=color)
        if attack.cap is not None:
            axes.plot(100 * attack.cap, place, "|", color="black", markersize=14, markeredgewidth=2)
    axes.set_yticks(range(len(shown)), [attack.name for attack in shown])
    axes.set_xlim(-2, 102)
    axes.set_xlabel("success, %: dot with interval; black bar: cap by the claim")
    axes.grid(axis="x", alpha=0.3)
    return as_data(figure)
