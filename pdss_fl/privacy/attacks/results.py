"""How often an attack was right, with its interval, beside what the guarantee allows it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats
from torch import Tensor

CONFIDENCE = 0.99
"""Two-sided confidence of all intervals by default: an audit looks at dozens of them."""


@dataclass(frozen=True)
class Rate:
    """``hits`` of ``total`` trials and the interval ``low`` .. ``high`` of the probability behind them."""

    hits: float
    total: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """The share of hits; 0 without trials."""
        return self.hits / self.total if self.total else 0.0

    @classmethod
    def exact(cls, value: float) -> Rate:
        """Return a probability that was computed and not measured."""
        return cls(value, 1, value, value)

    @classmethod
    def measured(cls, hits: Tensor, groups: Tensor | None = None, confidence: float = CONFIDENCE) -> Rate:
        """Return the rate of trials with its Clopper-Pearson interval.

        Parameters
        ----------
        hits : Tensor, shape (n,)
            Which trials succeeded, bool; without trials the interval is 0 .. 1.
        groups : LongTensor | None, shape (n,) (default: None)
            The document of each trial. Attacks that read a document's other words are right or wrong together
            within one, so the interval is that of n / (design effect) trials (Korn and Graubard 1998).
        confidence : float (default: CONFIDENCE)
            Two-sided, within (0, 1).
        """
        total, found = len(hits), int(hits.sum())
        if total == 0:
            return cls(0, 0, 0.0, 1.0)
        trials = total / _design_effect(hits.double(), groups)
        counted, tail = trials * found / total, (1 - confidence) / 2
        low = float(stats.beta.ppf(tail, counted, trials - counted + 1)) if found else 0.0
        high = float(stats.beta.isf(tail, counted + 1, trials - counted)) if found < total else 1.0
        return cls(found, total, low, high)


def _design_effect(hits: Tensor, groups: Tensor | None) -> float:
    """Return the variance of the rate over that of as many independent trials, at least 1."""
    rate, total = float(hits.mean()), len(hits)
    if groups is None or not 0 < rate < 1:
        return 1.0
    group = np.unique(groups.numpy(), return_inverse=True)[1]
    residuals = np.bincount(group, weights=(hits - rate).numpy())  # summed over each document
    count = len(residuals)
    if count == 1:
        return 1.0
    variance = count / (count - 1) * float((residuals**2).sum()) / total**2
    return min(float(total), max(1.0, variance * total / (rate * (1 - rate))))


@dataclass(frozen=True)
class AttackResult:
    """One attack on one kind of positions.

    Parameters
    ----------
    name : str
        Which attack.
    target : str
        What is guessed: ``protected`` or ``unprotected`` words, ``document`` or ``answer``.
    exact, stem : Rate | None
        How often the guess was right, and right but for a suffix; ``stem`` only where words are guessed.
    blind, blind_stem : Rate | None
        The same attacker's rates where the released word (or document) is replaced by one that does not
        depend on the private one; ``None`` where nothing is claimed.
    cap, stem_cap : float | None
        What the guarantee allows at most, 1 if it rules nothing out; ``None`` where nothing is claimed.
    note : str
        What a reader needs to know besides.
    """

    name: str
    target: str
    exact: Rate
    stem: Rate | None = None
    blind: Rate | None = None
    blind_stem: Rate | None = None
    cap: float | None = None
    stem_cap: float | None = None
    note: str = ""

    @property
    def passes(self) -> bool:
        """Whether no interval lies wholly above its cap."""
        pairs = ((self.exact, self.cap), (self.stem, self.stem_cap))
        return all(rate is None or cap is None or rate.low <= cap + _ROUNDING for rate, cap in pairs)

    @property
    def says(self) -> str:
        """The note, and that a cap of 1 rules nothing out."""
        vacuous = "the guarantee rules out no rate (cap 1)" if self.cap == 1 else ""
        return "; ".join(part for part in (self.note, vacuous) if part)


_ROUNDING = 1e-9
