"""The context-free Bayesian attack: the likeliest word behind a released one, given how frequent words are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pdss_fl.privacy.mechanism import PrivacyMechanism

BLOCK_ROWS = 512
"""Inputs whose rows of the matrix are looked at together: 512 V float64 are in memory."""


def word_prior(documents: Sequence[Tensor], size: int, smoothing: float = 1.0) -> Tensor:
    """Return how frequent each word is, float64 (V,), summing to 1.

    Parameters
    ----------
    documents : Sequence[Tensor]
        LongTensors (n_i,) within 0 .. V-1: a public corpus; or the private texts themselves with
        ``smoothing`` 0, for the bound that no attacker's guess of the frequencies exceeds.
    size : int
        V.
    smoothing : float (default: 1.0)
        Added to every count; above 0 unless there is a word.

    Raises
    ------
    ValueError
        If all counts are 0.
    """
    counts = torch.full((size,), smoothing, dtype=torch.float64)
    for document in documents:
        counts += torch.bincount(document, minlength=size)
    if counts.sum() == 0:
        raise ValueError("the frequencies of no words are undefined: give a document, or a smoothing above 0")
    return counts / counts.sum()


def candidates(mechanism: PrivacyMechanism, prior: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the ``k`` likeliest words behind every released one.

    Parameters
    ----------
    mechanism : PrivacyMechanism
        One with a matrix of probabilities.
    prior : Tensor, shape (V,)
        Probability of each word, float64, summing to 1.
    k : int
        1 .. V.

    Returns
    -------
    tuple[Tensor, Tensor]
        Ids, LongTensor (V, k), row = released word, best first; and ln(prior(x) P(y|x)), float64 (V, k).

    Raises
    ------
    ValueError
        If the prior is not a distribution over the vocabulary.
    NotImplementedError
        If the mechanism states no matrix.
    """
    log_prior, size = _checked(mechanism, prior).log(), len(prior)
    ids = torch.empty((0, size), dtype=torch.long)
    scores = torch.empty((0, size), dtype=torch.float64)
    for block in torch.split(torch.arange(size), BLOCK_ROWS):
        joint = mechanism.log_prob_rows(block) + log_prior[block, None]
        ids = torch.cat([ids, block[:, None].expand(-1, size)])
        top = torch.cat([scores, joint]).topk(min(k, len(ids)), dim=0)
        ids, scores = ids.gather(0, top.indices), top.values
    return ids.T, scores.T


def optimal_success(mechanism: PrivacyMechanism, prior: Tensor, classes: Tensor | None = None) -> float:
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
    classes : LongTensor | None, shape (V,) (default: None)
        Where given, naming any word of the private word's class is enough (``stem_classes``).

    Raises
    ------
    ValueError
        If the prior is not a distribution over the vocabulary.
    """
    log_prior = _checked(mechanism, prior).log()
    best = torch.full_like(log_prior, -torch.inf)
    for block in _whole_classes(torch.arange(len(prior)) if classes is None else classes):
        joint = mechanism.log_prob_rows(block) + log_prior[block, None]
        if classes is not None:
            joint = _summed(joint, classes[block])
        best = torch.maximum(best, joint.amax(dim=0))
    return float(best.exp().sum())


def log_prob_between(mechanism: PrivacyMechanism, inputs: Tensor, outputs: Tensor) -> Tensor:
    """Return ln P(y|x) for the inputs x (n,) and outputs y (m,), float64 (n, m), never the whole matrix."""
    return torch.cat([mechanism.log_prob_rows(block)[:, outputs] for block in torch.split(inputs, BLOCK_ROWS)])


def _checked(mechanism: PrivacyMechanism, prior: Tensor) -> Tensor:
    size = len(mechanism.vocabulary)
    if prior.shape != (size,) or not (prior >= 0).all() or abs(float(prior.sum()) - 1) > 1e-6:
        raise ValueError("the prior must be one probability for each of the vocabulary's ids, summing to 1")
    return prior.double()


def _whole_classes(classes: Tensor) -> list[Tensor]:
    """Return all ids in blocks that cut no class in two."""
    order = classes.argsort(stable=True)
    ends = np.cumsum(np.unique(classes.numpy(), return_counts=True)[1])
    cuts = ends[np.unique(np.searchsorted(ends, np.arange(BLOCK_ROWS, len(order), BLOCK_ROWS)))]
    sizes = np.diff(cuts, prepend=0, append=len(order))
    return [block for block in torch.split(order, sizes.tolist()) if len(block)]


def _summed(joint: Tensor, classes: Tensor) -> Tensor:
    """Return the log of the summed probability of each class, row by row of (n, V)."""
    highest = joint.amax(dim=0).clamp_min(torch.finfo(torch.float64).min)
    row = torch.from_numpy(np.unique(classes.numpy(), return_inverse=True)[1])
    sums = torch.zeros((int(row.max()) + 1, joint.shape[1]), dtype=torch.float64)
    return sums.index_add_(0, row, (joint - highest).exp()).log() + highest
