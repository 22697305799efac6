"""What was expected of the comparison, each expectation held against the data with its interval.

A difference decides only if its whole interval does: else an expectation stays undecided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pdss_fl.reproduce.methods import ADAPTIVE, DSS, ENCODERS, GRADED, PDSS, STANDALONE, Method
from pdss_fl.reproduce.statistics import Mean, Outcomes, accuracies, common, mean
from pdss_fl.reproduce.table import Row

HELD, NOT_HELD, UNDECIDED, NOT_MEASURED = "held", "not held", "undecided", "not measured"
EQUAL = 0.03
"""Two accuracies that are less than so far apart count as equal."""
_CONFIDENCE = 0.95
_RIVALS = (ADAPTIVE, *(method for method in ENCODERS if method.swept))  # those with a guarantee


@dataclass(frozen=True)
class Expectation:
    """What was expected, the verdict, and the difference that it rests on, as text."""

    what: str
    verdict: str
    why: str


def above(difference: Mean | None, or_equal: bool = False) -> str:
    """Return the verdict on "A is above B" from A - B, or with ``or_equal`` on "A is not below B"."""
    if difference is None:
        return NOT_MEASURED
    if difference.low > 0 or (or_equal and difference.low >= 0):
        return HELD
    if difference.high < 0 or (not or_equal and difference.high <= 0):
        return NOT_HELD
    return UNDECIDED


def equal(difference: Mean | None) -> str:
    """Return the verdict on "A and B are less than ``EQUAL`` apart" from A - B."""
    if difference is None:
        return NOT_MEASURED
    if max(abs(difference.low), abs(difference.high)) < EQUAL:
        return HELD
    return NOT_HELD if difference.low > EQUAL or difference.high < -EQUAL else UNDECIDED


def expectations(found: Sequence[Row], outcomes: Outcomes, reference: float) -> list[Expectation]:
    """Judge what was expected of one data set.

    Parameters
    ----------
    found : Sequence[Row]
        Of this data set.
    outcomes : Outcomes
        What the rows were made of.
    reference : float
        The epsilon per token at which PDSS is held against the bounds.
    """
    shares = {(row.entry.method, row.entry.epsilon): accuracies(outcomes, row.entry.group) for row in found}

    def minus(a: Method, b: Method, at: float | None, b_at: float | None = None) -> Mean | None:
        these, those = shares.get((a, at), {}), shares.get((b, b_at), {})
        seeds = common(these, those)
        return mean([these[s] - those[s] for s in seeds]) if seeds else None

    epsilons = sorted(epsilon for method, epsilon in shares if method == PDSS and epsilon is not None)
    judged = [
        _judged(f"DSS is not below PDSS at epsilon {reference:g}", minus(DSS, PDSS, None, reference), or_equal=True),
        _judged(f"PDSS at epsilon {reference:g} is above Standalone", minus(PDSS, STANDALONE, reference)),
    ]
    for low, high in pairwise(epsilons):
        what = f"PDSS at epsilon {low:g} is not above PDSS at epsilon {high:g}"
        judged.append(_judged(what, minus(PDSS, PDSS, high, low), or_equal=True))
    for least in [epsilon for epsilon in epsilons[:1] if epsilon < reference]:
        difference = minus(PDSS, STANDALONE, least)
        what = f"at epsilon {least:g} PDSS equals Standalone within {100 * EQUAL:g} points"
        judged.append(Expectation(what, equal(difference), points(difference)))
    for epsilon in epsilons:
        what = f"the staircase is above the graded mechanism at epsilon {epsilon:g}"
        judged.append(_judged(what, minus(PDSS, GRADED, epsilon, epsilon)))
    return [*judged, *_at_equal_attack(found, outcomes)]


def _judged(what: str, difference: Mean | None, or_equal: bool = False) -> Expectation:
    return Expectation(what, above(difference, or_equal), points(difference))


def points(difference: Mean | None, confidence: float = _CONFIDENCE) -> str:
    """Return a difference in points with its interval, as text."""
    if difference is None:
        return ""
    within = f"; {100 * confidence:.4g} % interval {difference.interval}" if difference.n > 1 else "; one seed"
    return f"{100 * difference.value:+.1f} points{within}"


def _at_equal_attack(found: Sequence[Row], outcomes: Outcomes) -> list[Expectation]:
    staircase = sorted((row for row in found if row.entry.method == PDSS and row.attack), key=_attack)
    inside = [row for row in found if row.attack and staircase and _within(row, staircase)]
    rivals = [own for m in _RIVALS if (own := [row for row in inside if row.entry.method == m])]
    what = "an encoder-decoder guarantee or the adaptive budget is above the staircase at "
    return [
        _best(what + "equal attack success", rivals, staircase, outcomes, at_most=False),
        _best(what + "equal or less attack success", rivals, staircase, outcomes, at_most=True),
    ]


def _within(row: Row, staircase: Sequence[Row]) -> bool:
    return _attack(staircase[0]) <= _attack(row) <= _attack(staircase[-1])


def _best(
    what: str, rivals: Sequence[Sequence[Row]], staircase: Sequence[Row], outcomes: Outcomes, at_most: bool
) -> Expectation:
    """Hold each rival, the mean over its epsilons, against the staircase; the intervals hold together (Bonferroni)."""
    confidence = 1 - (1 - _CONFIDENCE) / max(1, len(rivals))
    measured = [(rows, _over_staircase(rows, staircase, outcomes, at_most, confidence)) for rows in rivals]
    known = [(rows, difference) for rows, difference in measured if difference is not None]
    if not known:
        return Expectation(what, NOT_MEASURED, "no rival lies between the staircase's weakest and strongest attack")
    rows, best = max(known, key=lambda pair: (pair[1].low, pair[1].value))
    verdicts = {above(difference) for _, difference in known}
    verdict = HELD if HELD in verdicts else UNDECIDED if UNDECIDED in verdicts else NOT_HELD
    epsilons = f"{'mean over ' if len(rows) > 1 else ''}epsilon {', '.join(f'{row.entry.epsilon:g}' for row in rows)}"
    others = f", the best of {len(known)}" if len(known) > 1 else ""
    why = f"{rows[0].entry.method.name}, {epsilons}{others}: {points(best, confidence)}"
    return Expectation(what, verdict, why)


def _over_staircase(
    rows: Sequence[Row], staircase: Sequence[Row], outcomes: Outcomes, at_most: bool, confidence: float
) -> Mean | None:
    """Return a rival's accuracy minus the staircase's where attacks succeed as often, interpolated seed by seed.

    With ``at_most`` the staircase stands where its mean is best among all attack successes up to the rival's.
    """
    own, curve = ([accuracies(outcomes, row.entry.group) for row in side] for side in (rows, staircase))
    seeds = sorted(set.intersection(*(set(shares) for shares in (*own, *curve))))
    if not seeds:
        return None
    attacks = np.array([_attack(row) for row in staircase])
    heights = np.array([[shares[s] for s in seeds] for shares in curve])  # (staircase's epsilons, seeds)
    ahead = [
        np.array([shares[s] for s in seeds]) - _staircase_at(_attack(row), attacks, heights, at_most)
        for row, shares in zip(rows, own, strict=True)
    ]
    return mean(np.mean(ahead, axis=0).tolist(), confidence)


def _staircase_at(
    attack: float, attacks: NDArray[np.float64], heights: NDArray[np.float64], at_most: bool
) -> NDArray[np.float64]:
    """Return the staircase's accuracy by seed at an attack success, or where it is best up to that one."""
    places = np.append(attacks[attacks < attack], attack) if at_most else np.array([attack])
    curve = np.array([np.interp(places, attacks, column) for column in heights.T])  # (seeds, places)
    best: NDArray[np.float64] = curve[:, int(curve.mean(axis=0).argmax())]
    return best


def _attack(row: Row) -> float:
    return row.attack or 0.0
