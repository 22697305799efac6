"""What a context-free mechanism's epsilon really is, from its matrix of probabilities."""

from __future__ import annotations

import torch
from torch import Tensor


def exact_epsilon(log_prob: Tensor) -> float:
    """Return the worst-case log-ratio over all pairs of inputs and all outputs, in nats.

    max over y of (max over x of ln P(y | x) - min over x of ln P(y | x)). It is infinite where an output is
    possible for one input and impossible for another.

    Parameters
    ----------
    log_prob : Tensor, shape (V, V)
        Row an input, as ``PrivacyMechanism.log_prob`` returns it.
    """
    high, low = log_prob.max(dim=0).values, log_prob.min(dim=0).values
    possible = high > -torch.inf
    return float((high[possible] - low[possible]).max())
