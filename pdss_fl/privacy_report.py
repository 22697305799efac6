"""What the default mechanism protects on the built-in data set, in numbers that a command prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pdss_fl.config import RunSettings
from pdss_fl.data.everyday import private_examples
from pdss_fl.data.example import Example
from pdss_fl.data.prompts import render
from pdss_fl.privacy.attacks import optimal_success
from pdss_fl.release import Perturber
from pdss_fl.report import epsilon_text
from pdss_fl.vocabularies import load_perturber


def describe_default(epsilon: float | None, neighbours: int | None, vocabulary_size: int | None) -> str:
    """Return the guarantee of the run's default mechanism beside the best attack's success, as text.

    Parameters
    ----------
    epsilon, neighbours, vocabulary_size : float | int | None
        Take the place of the defaults where given.
    """
    settings = privacy_settings({"epsilon": epsilon, "neighbours": neighbours, "vocabulary-size": vocabulary_size})
    return "\n".join(_lines(load_perturber(settings, settings.privacy.mechanism)))


def privacy_settings(given: Mapping[str, Any]) -> RunSettings:
    """Return a run's settings with the values of ``privacy.*`` that are not ``None``, checked as a run's are."""
    return RunSettings.from_run_config({f"privacy.{key}": value for key, value in given.items() if value is not None})


def guarantee_lines(perturber: Perturber) -> list[str]:
    """Return what a mechanism guarantees of a token and of a whole prompt, a line each."""
    mechanism, document = perturber.mechanism, perturber.document
    return [
        f"mechanism            {mechanism.name}: {mechanism.parameters}",
        f"guarantee            {mechanism.guarantee.kind}: {mechanism.guarantee.statement}",
        f"epsilon per token    {epsilon_text(mechanism.guarantee.epsilon)}"
        + (" for each released word, between any two documents" if mechanism.guarantee.unit == "document" else ""),
        f"epsilon per document {epsilon_text(document.epsilon)} at delta {document.delta:g} for {document.tokens} "
        f"tokens ({document.composition})",
    ]


def _lines(perturber: Perturber) -> list[str]:
    mechanism = perturber.mechanism
    prior = word_frequencies(perturber, private_examples())
    uniform = torch.full_like(prior, 1 / len(prior))
    return [
        *guarantee_lines(perturber),
        f"words kept           {mechanism.kept_tokens:.1%} expected from the mechanism",
        "best context-free attack on a word, all words equally likely: right "
        f"{optimal_success(mechanism, uniform):.1%}",
        "best context-free attack on a word, at the frequencies of the built-in questions: right "
        f"{optimal_success(mechanism, prior):.1%} (without the released word {prior.max():.1%})",
    ]


def word_frequencies(perturber: Perturber, examples: tuple[Example, ...]) -> torch.Tensor:
    """Return how often each vocabulary word is perturbed, filling words left out, as a float64 vector (V,)."""
    vocabulary, shape = perturber.vocabulary, perturber.shape
    words = []
    for example in examples:
        prompt = render(example, range(len(example.choices)), shape, vocabulary.split)
        words += [w for text in (prompt.question, *prompt.choices) for w in text if w is not None]
    counts = torch.bincount(vocabulary.word_ids(words), minlength=len(vocabulary)).double()
    return counts / counts.sum()
