"""What a mechanism's releases tell an attacker: the figures that stand beside an accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pdss_fl.data.example import Example
from pdss_fl.data.prompts import choice_order, render
from pdss_fl.privacy.attacks import empirical_success, optimal_success, token_overlap
from pdss_fl.privacy_report import word_frequencies
from pdss_fl.release import Perturber

_SHADOW = 4


def attack_success(perturber: Perturber, examples: Sequence[Example]) -> tuple[float, float]:
    """Return how often the best attack names a private word, and the share of private words that are released.

    The attacker knows the private texts' distribution: it counts what comes out of them in releases of its own
    (``empirical_success``). Where there is a matrix of probabilities, the optimal context-free attack is tried, too.

    Parameters
    ----------
    perturber : Perturber
        A mechanism with its vocabulary and prompt shape.
    examples : Sequence[Example]
        The private texts, at least one.
    """
    mechanism, generator = perturber.mechanism, np.random.default_rng(0)
    private = [_document(perturber, example, generator) for example in examples]
    shadow = private * _SHADOW
    released, other = (mechanism.perturb_documents(of, generator) for of in (private, shadow))
    found = empirical_success(private, released, shadow, other, perturber.vocabulary)
    overlap = token_overlap(private, released, perturber.vocabulary.words)
    try:
        exact = optimal_success(mechanism, word_frequencies(perturber, tuple(examples)))
    except NotImplementedError:  # the mechanism states no matrix of words
        exact = 0.0
    return max(exact, found), overlap


def _document(perturber: Perturber, example: Example, generator: np.random.Generator) -> Tensor:
    order = choice_order(example, perturber.shape, generator.shuffle)
    return torch.cat(perturber.encode(render(example, order, perturber.shape, perturber.vocabulary.split)))


def release_facts(perturber: Perturber, examples: Sequence[Example]) -> dict[str, Any]:
    """Return ``attack``, ``overlap``, ``document`` (epsilon; infinite without a guarantee) and ``delta``."""
    attack, overlap = attack_success(perturber, examples)
    document = perturber.document
    epsilon = math.inf if perturber.mechanism.guarantee.kind == "none" else document.epsilon
    return {"attack": attack, "overlap": overlap, "document": epsilon, "delta": document.delta}
