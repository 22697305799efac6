"""What a mechanism's releases tell an attacker: the figures that stand beside an accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from pdss_fl.data.example import Example
from pdss_fl.privacy.attacks import optimal_success
from pdss_fl.privacy_report import word_frequencies
from pdss_fl.release import Perturber


def attack_success(perturber: Perturber, examples: Sequence[Example]) -> tuple[float, float]:
    """Return how often the best attack names a private word, and how often a word is released as it is.

    Both are exact for a mechanism with a matrix of probabilities: the optimal context-free attack at the
    frequencies of the private words, and the expected share of words that pass unchanged at these frequencies.

    Parameters
    ----------
    perturber : Perturber
        A mechanism with its vocabulary and prompt shape.
    examples : Sequence[Example]
        The private texts, at least one.

    Returns
    -------
    tuple[float, float]
        Attack success and token overlap, shares of the words sent.

    Raises
    ------
    NotImplementedError
        If the mechanism states no matrix.
    """
    prior = word_frequencies(perturber, tuple(examples))
    words = prior.nonzero()[:, 0]
    kept = perturber.mechanism.log_prob_rows(words)[torch.arange(len(words)), words].exp()
    return optimal_success(perturber.mechanism, prior), float(prior[words] @ kept)


def release_facts(perturber: Perturber, examples: Sequence[Example]) -> dict[str, Any]:
    """Return ``attack``, ``overlap``, ``document`` (epsilon; infinite without a guarantee) and ``delta``."""
    attack, overlap = attack_success(perturber, examples)
    document = perturber.document
    epsilon = math.inf if perturber.mechanism.guarantee.kind == "none" else document.epsilon
    return {"attack": attack, "overlap": overlap, "document": epsilon, "delta": document.delta}
