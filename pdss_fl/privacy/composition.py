"""What k releases are worth together: one function a theorem, in nats, each a bound that holds.

An epsilon is at least 0; an ``eta`` is a bounded range, the most that the logarithms of Pr[y|x] / Pr[y|x'] of two
outputs y differ by: eps-LDP is 2 eps-BR, and eta-BR is eta-LDP. Every bound but ``non_adaptive`` holds when the
k mechanisms and their inputs are chosen after seeing what was released before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import optimize, special

_BISECTIONS = 60


def basic(epsilon: float, tokens: int) -> float:
    """Return k eps, which needs no delta."""
    return tokens * epsilon


def advanced(epsilon: float, tokens: int, delta: float) -> float:
    """Return k eps (e^eps - 1)/(e^eps + 1) + eps sqrt(2 k ln(1/delta)) (Dwork, Rothblum, Vadhan 2010, thm. III.3)."""
    return tokens * epsilon * math.tanh(epsilon / 2) + epsilon * math.sqrt(2 * tokens * math.log(1 / delta))


def optimal_pure(epsilon: float, tokens: int, delta: float) -> float:
    """Return the optimum for all eps-LDP mechanisms, of the form (k - 2i) eps (Kairouz, Oh, Viswanath 2015, thm. 3.3).

    Basic composition where its numbers leave the range of a float, k eps above 700 or so, or what one resolves.
    """
    from dp_accounting.pld.accountant import advanced_composition  # a second to import
    from dp_accounting.pld.common import DifferentialPrivacyParameters

    resolved = max(0.0, delta - 1e-15)  # it computes 1 - (1 - delta), and so cannot see the last digits
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # a sum that is no number is never within delta
            return float(advanced_composition(DifferentialPrivacyParameters(epsilon, 0.0), tokens, resolved))
    except OverflowError:
        return basic(epsilon, tokens)


def bounded_range(eta: float, tokens: int, delta: float) -> float:
    """Return min{k eta, k eta^2 / 2 + eta sqrt(k ln(1/delta) / 2), advanced} (Durfee and Rogers 2019, 1905.04273)."""
    own = tokens * eta**2 / 2 + eta * math.sqrt(tokens * math.log(1 / delta) / 2)
    return min(tokens * eta, own, advanced(eta, tokens, delta))


def zcdp_of_pure(epsilon: float) -> float:
    """Return the rho of an eps-LDP mechanism, eps tanh(eps/2): the tight one, that of randomised response."""
    return epsilon * math.tanh(epsilon / 2)


def zcdp_of_bounded_range(eta: float) -> float:
    """Return the rho of an eta-BR mechanism: the tight eta/(e^eta - 1) + ln((e^eta - 1)/eta) - 1.

    Harrison and Manurangsi (arXiv 2510.25746). Just above it, eta^2 / 8, where eta is small.
    """
    if eta < 1e-3:  # below, the terms cancel each other
        return eta**2 / 8
    rest = -math.expm1(-eta)
    return eta * math.exp(-eta) / rest + eta + math.log(rest) - math.log(eta) - 1


def zcdp(rho: float, delta: float) -> float:
    """Return the epsilon at ``delta`` of rho-zCDP, as rho adds up over releases.

    The smallest over all orders a > 1 of what delta = exp((a-1)(a rho - eps) + a ln(1 - 1/a)) / (a-1) allows
    (Canonne, Kamath and Steinke 2020, arXiv 2004.00010, prop. 12 with D_a = a rho).
    """

    def at(log_order_less_one: float) -> float:
        order = 1 + math.exp(log_order_less_one)
        return order * rho + _conversion(order, delta)

    # Any order gives a valid bound; the search only has to find a good one.
    return max(0.0, float(optimize.minimize_scalar(at, bounds=(-15, 15), method="bounded").fun))


def renyi(curve: Sequence[tuple[float, float]], tokens: int, delta: float) -> float:
    """Return the epsilon at ``delta`` of k releases with a Renyi divergence D_a each.

    Parameters
    ----------
    curve : Sequence[tuple[float, float]]
        Orders a > 1 and D_a in nats, the largest over all pairs of inputs, as ``audit.renyi_curve`` finds it.
    tokens : int
        k.
    delta : float
        Above 0.
    """
    return max(0.0, min(tokens * divergence + _conversion(order, delta) for order, divergence in curve))


def gaussian(eta: float, tokens: int, delta: float) -> float:
    """Return the epsilon by mu-GDP, mu = -2 Phi^-1(1/(e^(eta/2) + 1)) for an eta-BR mechanism, sqrt(k) mu for k.

    Dong, Roth and Su 2019 (1905.02383), cor. 2.13 and 3.3; the step from eta to mu as in Google's dpsynth.
    """
    if eta < 1e-6:  # below, a float64's 1/2 - eta/4 is too coarse
        return basic(eta, tokens)
    mu = -2 * float(special.ndtri_exp(special.log_expit(-eta / 2))) * math.sqrt(tokens)

    def delta_at(epsilon: float) -> float:
        upper, lower = special.log_ndtr(mu / 2 - epsilon / mu), special.log_ndtr(-mu / 2 - epsilon / mu)
        return float(math.exp(upper) - math.exp(epsilon + lower))

    rho = mu**2 / 2
    return smallest_epsilon(delta_at, delta, rho + 2 * math.sqrt(rho * math.log(1 / delta)))


def non_adaptive(eta: float, tokens: int, delta: float) -> float:
    """Return the optimum for k eta-BR mechanisms that are fixed before anything is released.

    Dong, Durfee and Rogers 2019 (1909.13830). It does not hold where a mechanism depends on earlier releases.
    """
    return smallest_epsilon(lambda e: non_adaptive_delta(e, eta, tokens), delta, tokens * eta)


def non_adaptive_delta(epsilon: float, eta: float, tokens: int) -> float:
    """Return the delta at ``epsilon`` of k non-adaptive eta-BR mechanisms.

    The worst are k copies of generalised randomised response: loss t with probability
    p = (e^eta - e^t)/(e^eta - 1), else t - eta, so

        max over l = 0 .. k of sum over i of C(k, i) p^(k-i) (1-p)^i [1 - e^(epsilon - k t_l + i eta)]_+

    with t_l = (epsilon + (l+1) eta) / (k+1) clipped to [0, eta].
    """
    i = np.arange(tokens + 1)
    t = ((epsilon + (i + 1) * eta) / (tokens + 1)).clip(0, eta)[:, None]
    most = -math.expm1(-eta)
    p, q = -np.expm1(t - eta) / most, np.exp(t - eta) * -np.expm1(-t) / most
    choose = special.gammaln(tokens + 1) - special.gammaln(i + 1) - special.gammaln(tokens - i + 1)
    mass = np.exp(choose + special.xlogy(tokens - i, p) + special.xlogy(i, q))
    excess = -np.expm1(np.minimum(epsilon - tokens * t + i * eta, 0.0))
    return float((mass * excess).sum(axis=1).max())


def smallest_epsilon(delta_at: Callable[[float], float], delta: float, high: float) -> float:
    """Return, never below it, the smallest epsilon in [0, high] at which a falling ``delta_at`` is within delta.

    ``high`` itself must be one.
    """
    low = 0.0
    if delta_at(low) <= delta:
        return low
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if high - low <= 1e-9 * high:
            break
        low, high = (low, middle) if delta_at(middle) <= delta else (middle, high)
    return high


def _conversion(order: float, delta: float) -> float:
    """Return what is added to a Renyi divergence of that order to have an epsilon at ``delta``."""
    less = order - 1
    return (math.log(less) * less - order * math.log(order) - math.log(delta)) / less
