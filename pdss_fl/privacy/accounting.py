"""What many releases are worth together."""

from __future__ import annotations

import math

import numpy as np


def staircase_document_epsilon(epsilon: float, near: int, size: int, tokens: int, delta: float) -> float:
    """Return the epsilon of a document of nearest-set staircase tokens at ``delta``.

    Two inputs with disjoint nearest sets dominate every other pair (the hockey-stick divergence falls as the
    sets overlap). With Z = k e^eps + V - k, the privacy loss of a token between them is +eps with probability
    k e^eps / Z, -eps with probability k / Z, else 0; a document's is its n-fold convolution, for inputs that
    depend on what was released before, too. All losses are whole multiples of eps, so the grid of
    dp-accounting's privacy loss distribution holds them without rounding.

    Parameters
    ----------
    epsilon : float
        Nats per token, above 0.
    near, size : int
        k and V, with V >= 2k.
    tokens : int
        n, at least 1.
    delta : float
        Above 0.

    Returns
    -------
    float
        Never below the exact value; infinity where the library resolves no better (``delta`` below 1e-12,
        results above 700).
    """
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution  # a second to import

    up = 1 / (1 + (size - near) / near * math.exp(-epsilon))
    down = up * math.exp(-epsilon)
    token = PrivacyLossDistribution.create_from_rounded_probability(
        {1: up, 0: down * (size - 2 * near) / near, -1: down}, 0.0, epsilon
    )
    reachable = delta - _LIBRARY_ERROR
    if reachable <= 0:
        return math.inf
    with np.errstate(over="ignore"):  # an epsilon above 700 or so comes out as infinity
        return float(token.self_compose(tokens).get_epsilon_for_delta(reachable))


_LIBRARY_ERROR = 1e-12
"""More than the Fourier transform's rounding can take away from a tail; handed back from delta."""
