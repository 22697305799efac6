"""How often the best attacker names the word behind a released one."""

from __future__ import annotations

import torch
from torch import Tensor

from pdss_fl.privacy.mechanism import PrivacyMechanism

_BLOCK_ROWS = 512


def optimal_success(mechanism: PrivacyMechanism, prior: Tensor) -> float:
    """Return the success of the optimal context-free attack, sum over y of max over x of prior(x) P(y|x).

    The attacker knows the mechanism and how frequent words are, sees one released word, and names the
    likeliest word behind it. With all words equally likely, the staircase allows e^eps / Z. Attacks that
    use the words around it can do better.

    Parameters
    ----------
    mechanism : PrivacyMechanism
        One with a matrix of probabilities.
    prior : Tensor, shape (V,)
        Probability of each word, float64, summing to 1.

    Raises
    ------
    ValueError
        If the prior is not a distribution over the vocabulary.
    """
    size = len(mechanism.vocabulary)
    if prior.shape != (size,) or not (prior >= 0).all() or abs(float(prior.sum()) - 1) > 1e-6:
        raise ValueError("the prior must be one probability for each of the vocabulary's ids, summing to 1")
    log_prior = prior.double().log()
    best = torch.full_like(log_prior, -torch.inf)
    log_prob = mechanism.log_prob()
    for start in range(0, len(log_prior), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        best = torch.maximum(best, (log_prob[rows] + log_prior[rows, None]).amax(dim=0))
    return float(best.exp().sum())
