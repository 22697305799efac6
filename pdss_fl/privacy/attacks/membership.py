"""Membership inference: who was in a model's training data, told by how well the model knows them.

The attacker ranks examples by a score, such as minus the model's loss (Yeom et al. 2018), or how much lower the loss is
than that of a reference model that did not see them (Watson et al. 2022, a light form of LiRA). Numbers only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm, rankdata

from pdss_fl.privacy.attacks.results import CONFIDENCE, Rate

LOW_RATES = (0.1, 0.01, 0.001)
"""False positive rates at which true positives are counted: what counts is whom an attacker can be sure of."""

_INSIDE = 1e-9  # the score equation has a root of no interest at 0 and at 1


@dataclass(frozen=True)
class Membership:
    """How well members are told from others.

    Parameters
    ----------
    auc : float
        Probability that a random member has a higher score than a random other, ties counting half; 0.5 is a guess.
    low, high : float
        Its interval.
    true_positives : dict[float, Rate]
        By false positive rate: the share of members whose score is above that of all but so many others. The
        interval is for the threshold that these others gave.
    members, others : int
        How many of each there were.
    """

    auc: float
    low: float
    high: float
    true_positives: dict[float, Rate]
    members: int
    others: int


def membership_attack(
    members: Sequence[float],
    others: Sequence[float],
    rates: Sequence[float] = LOW_RATES,
    confidence: float = CONFIDENCE,
) -> Membership:
    """Return how well scores tell members from others.

    Parameters
    ----------
    members, others : Sequence[float]
        Finite scores, at least two of each; higher means more like a member.
    rates : Sequence[float] (default: LOW_RATES)
        False positive rates, in [0, 1).
    confidence : float (default: CONFIDENCE)
        Of the intervals, two-sided.

    Raises
    ------
    ValueError
        If there are fewer than two of either, or a score is not finite.
    """
    inside, outside = np.asarray(members, dtype=float), np.asarray(others, dtype=float)
    if min(len(inside), len(outside)) < 2 or not (np.isfinite(inside).all() and np.isfinite(outside).all()):
        raise ValueError("membership needs at least two finite scores of members and of others")
    auc = _auc(inside, outside)
    low, high = _interval(auc, len(inside), len(outside), confidence)
    found = {rate: _true_positives(inside, outside, rate, confidence) for rate in rates}
    return Membership(auc, low, high, found, len(inside), len(outside))


def _auc(members: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """Return the Mann-Whitney statistic over all pairs, exactly."""
    ranks = rankdata(np.concatenate([members, others]))[: len(members)]
    count = len(members)
    return float((ranks.sum() - count * (count + 1) / 2) / (count * len(others)))


def _interval(auc: float, members: int, others: int, confidence: float) -> tuple[float, float]:
    """Return Newcombe's score interval (2006, method 5), which is not empty at 0 and 1."""
    z = float(norm.isf((1 - confidence) / 2))
    spare = (members + others) / 2 - 1

    def far(truth: float) -> float:
        variance = truth * (1 - truth) * (1 + spare * (1 - truth) / (2 - truth) + spare * truth / (1 + truth))
        return abs(auc - truth) - z * float(np.sqrt(variance / (members * others)))

    low = float(brentq(far, 0.0, min(auc, 1 - _INSIDE))) if auc > 0 else 0.0
    high = float(brentq(far, max(auc, _INSIDE), 1.0)) if auc < 1 else 1.0
    return low, high


def _true_positives(members: NDArray[np.float64], others: NDArray[np.float64], rate: float, confidence: float) -> Rate:
    """Count members above a threshold that at most ``rate`` of the others exceed."""
    threshold = np.sort(others)[::-1][int(rate * len(others))]
    return Rate.measured(torch.from_numpy(members > threshold), confidence=confidence)
