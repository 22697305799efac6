"""What the epsilon of a context-free mechanism really is, from its matrix of probabilities."""

from __future__ import annotations

import torch
from torch import Tensor


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
    high, low = log_prob.amax(dim=0).double(), log_prob.amin(dim=0).double()
    if low.isnan().any():
        raise ValueError("the matrix of log-probabilities holds NaN")
    possible = high > -torch.inf  # an output that no input leads to tells nothing
    return float((high[possible] - low[possible]).max())
