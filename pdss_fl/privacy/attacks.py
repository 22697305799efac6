"""How often the best possible attacker names the word behind a released one."""

from __future__ import annotations

import torch
from torch import Tensor

from pdss_fl.privacy.mechanism import PrivacyMechanism


def optimal_success(mechanism: PrivacyMechanism, prior: Tensor) -> float:
    """Return the success of the optimal context-free attack, the posterior Bayes vulnerability.

    The attacker knows the mechanism and how frequent words are, sees one released word, and names the
    likeliest word behind it: sum over y of max over x of prior(x) P(y | x). Attacks that use context can
    do better.

    Parameters
    ----------
    mechanism : PrivacyMechanism
        One with a matrix of probabilities.
    prior : Tensor, shape (V,)
        Probabilities of the words, summing to 1.
    """
    if prior.shape != (len(mechanism.vocabulary),) or not torch.isclose(prior.sum(), torch.ones(()).to(prior)):
        raise ValueError("the prior must be one probability a word, summing to 1")
    joint = mechanism.log_prob() + prior.double().log().unsqueeze(1)
    return float(joint.max(dim=0).values.exp().sum())
