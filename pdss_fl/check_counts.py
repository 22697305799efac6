"""What the checks of ``testing`` share: a requirement, and counts held against exact probabilities."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

CHANCE = 1e-9
"""How likely a correct mechanism fails a check that depends on chance."""

ROUNDING = 1e-9

_RELIABLE = 20.0  # expected count from which the chi-square distribution can be trusted


def require(condition: bool, message: str) -> None:
    """Raise ``AssertionError`` with the message unless the condition holds."""
    if not condition:
        raise AssertionError(message)


def check_counts(counts: NDArray[np.float64], expected: NDArray[np.float64], where: str) -> None:
    """Compare counts with what is expected of them: frequent outcomes one by one, rare ones together."""
    require(not counts[expected == 0].any(), f"{where}: an output comes out that log_prob calls impossible")
    often = expected >= _RELIABLE
    distance = float(((counts - expected)[often] ** 2 / expected[often]).sum())
    require(
        stats.chi2.sf(distance, int(often.sum())) > CHANCE,
        f"{where}: outputs are not distributed as log_prob says (chi-square {distance:.0f} of {often.sum()})",
    )
    rare, likely = float(counts[~often].sum()), float(expected[~often].sum())
    require(
        min(stats.poisson.sf(rare - 1, likely), stats.poisson.cdf(rare, likely)) > CHANCE,
        f"{where}: {rare:.0f} outputs that log_prob calls rare came out, {likely:.1f} were expected",
    )


def check_count(happened: Tensor, likely: Tensor, what: str) -> None:
    """Compare a number of independent events with their probabilities, by Bernstein's inequality."""
    found, expected = float(happened.sum()), float(likely.sum())
    off, variance = abs(found - expected), float((likely * (1 - likely)).sum())
    chance = 2 * math.exp(-(off**2) / (2 * (variance + off / 3))) if off > ROUNDING * len(likely) else 1.0
    require(chance > CHANCE, f"{what}: {found:.0f} of {len(likely)}, and {expected:.1f} were expected")
