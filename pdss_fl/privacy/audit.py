"""What a context-free mechanism really guarantees, exactly, from its rows of probabilities.

Rows come in blocks, so a vocabulary of 50,000 words, whose matrix takes 20 GB, needs a
fraction of that (``tests/benchmarks/bench_audit.py`` prints it).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pdss_fl.privacy.audit_rows import ROUNDING, WORK, Extremes, Rows, bounded_range
from pdss_fl.privacy.mechanism import PrivacyGuarantee, PrivacyMechanism

_MOST_EXPONENT = 600.0


@dataclass(frozen=True)
class Audit:
    """What was measured of a mechanism, beside what it claims.

    Parameters
    ----------
    mechanism : str
        Its name and parameters.
    guarantee : PrivacyGuarantee
        What it claims.
    epsilon : float
        The exact worst case over all pairs of inputs, in nats; infinity where an output is possible for one input
        and impossible for another.
    worst : tuple[int, int, int]
        Ids x, x' and y with ln(Pr[y|x] / Pr[y|x']) = epsilon.
    worst_tokens : tuple[str, str, str]
        What the three read.
    bounded_range : float
        eta*, at least epsilon and at most 2 epsilon.
    bounded_range_exact : bool
        Whether it is exact; otherwise it is an upper bound.
    row_error : float
        The most that the sum of a row differs from one.
    measured : float | None
        What the claim is held against: epsilon; the worst case within a class for ``partition-ldp``, and a unit of
        distance for ``metric-ldp``; delta at the claimed epsilon for ``approximate-ldp``. ``None`` where nothing is
        claimed or it cannot be measured here.
    holds : bool | None
        Whether the claim is true; ``None`` where it cannot be told.
    verdict : str
        Why, in a sentence.
    """

    mechanism: str
    guarantee: PrivacyGuarantee
    epsilon: float
    worst: tuple[int, int, int]
    worst_tokens: tuple[str, str, str]
    bounded_range: float
    bounded_range_exact: bool
    row_error: float
    measured: float | None
    holds: bool | None
    verdict: str

    @property
    def support_mismatch(self) -> bool:
        """Whether an output is possible for the first of ``worst`` and impossible for the second."""
        return math.isinf(self.epsilon)

    @property
    def tightness(self) -> float | None:
        """``measured`` over what is claimed, 1 if the claim is as small as can be; ``None`` if it has no meaning."""
        claimed = self.guarantee.delta if self.guarantee.kind == "approximate-ldp" else self.guarantee.epsilon
        return None if self.measured is None or not 0 < claimed < math.inf else self.measured / claimed


def audit(mechanism: PrivacyMechanism) -> Audit:
    """Measure a context-free mechanism exactly over all pairs of inputs, and judge its claim.

    At most four passes over all V rows of V log-probabilities, and for eta* up to ``4e9`` differences, or those of
    eight rows with all others.

    Raises
    ------
    NotImplementedError
        If the mechanism states no matrix; ``statistical_audit`` can still bound its epsilon from below.
    ValueError
        If a row holds NaN.
    """
    rows = Rows(mechanism)
    extremes, scaled, row_error = Extremes(), Extremes(), 0.0
    for ids, block in rows.blocks():
        extremes.add(ids, block)
        row_error = max(row_error, float((block.logsumexp(dim=1).exp() - 1).abs().max()))
        scaled.add(ids, block - block.amax(dim=1, keepdim=True))
    epsilon, worst = extremes.worst()
    eta, exact = (math.inf, True) if math.isinf(epsilon) else bounded_range(rows, scaled, epsilon)
    measured, holds, verdict = _judged(rows, mechanism, epsilon)
    if row_error > ROUNDING:
        holds, verdict = False, f"no probabilities: a row sums to one but for {row_error:.3g}"
    first, second, output = (mechanism.vocabulary.tokens[i] for i in worst)
    return Audit(
        f"{mechanism.name}: {mechanism.parameters}",
        mechanism.guarantee,
        epsilon,
        worst,
        (first, second, output),
        eta,
        exact,
        row_error,
        measured,
        holds,
        verdict,
    )


def exact_epsilon(log_prob: Tensor) -> float:
    """Return max over y of (max over x of ln P(y|x) - min over x of ln P(y|x)), in nats.

    Parameters
    ----------
    log_prob : Tensor, shape (V, V)
        Row = input, as ``PrivacyMechanism.log_prob`` returns it. Rows for all inputs that can occur must be
        there: a missing one can be the worst.

    Returns
    -------
    float
        The smallest epsilon of pure LDP; infinity where an output is possible for one input only.

    Raises
    ------
    ValueError
        If an entry is NaN, which is no probability.
    """
    extremes = Extremes()
    extremes.add(torch.arange(len(log_prob)), log_prob.double())
    return extremes.worst()[0]


def renyi_curve(mechanism: PrivacyMechanism, orders: Sequence[float]) -> Tensor:
    """Return the largest Renyi divergence D_a of any two inputs, ln(sum over y of P(y|x)^a P(y|x')^(1-a)) / (a-1).

    By a matrix product of P^a and P^(1-a) for every order, in blocks: V^3 multiplications each.

    Parameters
    ----------
    mechanism : PrivacyMechanism
        Context-free, with a matrix.
    orders : Sequence[float]
        a, each above 1.

    Returns
    -------
    Tensor, shape (orders,)
        float64, in nats; infinity where an output is possible for one input only. At orders so high that float64
        cannot hold the powers (a epsilon above 600 or so) it is the exact epsilon, which is an upper bound.
    """
    if not all(order > 1 for order in orders):
        raise ValueError(f"orders must be above 1, not {list(orders)}")
    rows, extremes = Rows(mechanism), Extremes()
    for ids, block in rows.blocks():
        extremes.add(ids, block)
    epsilon, _ = extremes.worst()
    curve = torch.full((len(orders),), epsilon, dtype=torch.float64)
    held = [i for i, order in enumerate(orders) if order * epsilon <= _MOST_EXPONENT]
    if not held:
        return curve
    possible = extremes.possible
    # The middle of a column taken out of both factors, so that neither has a larger exponent than a epsilon / 2.
    middle = (extremes.high[possible] + extremes.low[possible]) / 2
    curve[held] = 0.0
    for _, first in rows.blocks():
        for _, second in rows.blocks():
            for i in held:
                a = orders[i]
                left = a * (first[:, possible] - middle) + middle
                right = (1 - a) * (second[:, possible] - middle)
                shifts = left.amax(dim=1), right.amax(dim=1)
                product = (left - shifts[0][:, None]).exp_() @ (right - shifts[1][:, None]).exp_().T
                largest = float(product.log_().add_(shifts[0][:, None]).add_(shifts[1]).max())
                curve[i] = max(float(curve[i]), largest / (a - 1))
    return curve


def _judged(rows: Rows, mechanism: PrivacyMechanism, epsilon: float) -> tuple[float | None, bool | None, str]:
    """Return what was measured of the claim, whether it holds, and why."""
    claim = mechanism.guarantee
    if claim.kind == "pure-ldp":
        return _compared(epsilon, claim.epsilon, "epsilon", "")
    if claim.kind == "approximate-ldp":
        delta = _worst_delta(rows, claim.epsilon)
        if delta is None:
            return None, None, f"{rows.size} words are too many to measure delta at epsilon {claim.epsilon:.10g}"
        return _compared(delta, claim.delta, "delta", f" at epsilon {claim.epsilon:.10g}")
    if claim.kind == "partition-ldp":
        classes = mechanism.classes
        within = _worst_class(rows, _alike(rows) if classes is None else classes)
        if classes is None and within > claim.epsilon + ROUNDING:
            found = f"words with the same possible outputs are up to {within:.10g} apart"
            return None, None, f"the mechanism does not state its classes, and {found}"
        return _compared(within, claim.epsilon, "epsilon", " within a class")
    if claim.kind == "metric-ldp":
        rate = _worst_rate(rows, mechanism)
        if rate is None:
            return None, None, f"{rows.size} words are too many to measure a guarantee by distance"
        return _compared(rate, claim.epsilon, "epsilon", " a unit of distance")
    return None, None, "nothing is claimed"


def _compared(found: float, claimed: float, what: str, where: str) -> tuple[float, bool, str]:
    holds = found <= claimed + ROUNDING
    verdict = f"claims {what} {claimed:.10g}{where}, {'and' if holds else 'but'} the worst case is {found:.10g}"
    return found, holds, verdict


def _worst_delta(rows: Rows, epsilon: float) -> float | None:
    """Return the largest sum of (P(y|x) - e^epsilon P(y|x'))+ over all pairs; ``None`` if they are too many."""
    if rows.size**3 > WORK:
        return None
    worst = 0.0
    for _, second in rows.blocks():
        allowed = (second + epsilon).exp()
        for _, first in rows.blocks():
            for row in first.exp():
                worst = max(worst, float((row - allowed).clamp_min_(0).sum(dim=1).max()))
    return worst


def _worst_rate(rows: Rows, mechanism: PrivacyMechanism) -> float | None:
    """Return the largest loss of two inputs over their distance, of any pair; ``None`` if there are too many."""
    if rows.size**3 > WORK:
        return None
    worst = 0.0
    for ids, first in rows.blocks():
        distances = mechanism.distances(ids)
        for others, second in rows.blocks():
            for row, distance in zip(first, distances[:, others], strict=True):
                loss = torch.where(row > -torch.inf, row - second, -torch.inf).amax(dim=1)
                rate = torch.where(loss > ROUNDING, loss / distance, 0.0)  # infinite at distance 0
                worst = max(worst, float(rate.max()))
    return worst


def _worst_class(rows: Rows, classes: Sequence[Tensor]) -> float:
    """Return the exact epsilon of inputs that are known to be in the same class."""
    worst = 0.0
    for members in classes:
        extremes = Extremes()
        for ids, block in rows.blocks(members):
            extremes.add(ids, block)
        worst = max(worst, extremes.worst()[0])
    return worst


def _alike(rows: Rows) -> list[Tensor]:
    """Return the classes of inputs with the same possible outputs: two others have no finite epsilon."""
    classes: dict[bytes, list[int]] = {}
    for ids, block in rows.blocks():
        for i, support in zip(ids.tolist(), np.packbits(block.numpy() > -np.inf, axis=1), strict=True):
            classes.setdefault(hashlib.sha256(support.tobytes()).digest(), []).append(i)
    return [torch.tensor(members) for members in classes.values()]
