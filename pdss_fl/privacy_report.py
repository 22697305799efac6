"""What the default mechanism protects on the built-in data set, in numbers that a command prints."""

from __future__ import annotations

import torch

from pdss_fl.config import RunSettings
from pdss_fl.data.everyday import private_examples
from pdss_fl.data.example import Example
from pdss_fl.data.prompts import render
from pdss_fl.privacy.attacks import optimal_success
from pdss_fl.release import Perturber
from pdss_fl.vocabularies import load_perturber


def describe_default(epsilon: float | None, neighbours: int | None, vocabulary_size: int | None) -> str:
    """Return the guarantee of the run's default mechanism beside the best attack's success, as text.

    Parameters
    ----------
    epsilon, neighbours, vocabulary_size : float | int | None
        Take the place of the defaults where given.
    """
    given = {"epsilon": epsilon, "neighbours": neighbours, "vocabulary-size": vocabulary_size}
    settings = RunSettings.from_run_config({f"privacy.{k}": v for k, v in given.items() if v is not None})
    return "\n".join(_lines(load_perturber(settings, settings.privacy.mechanism)))


def _lines(perturber: Perturber) -> list[str]:
    mechanism, document = perturber.mechanism, perturber.document
    prior = word_frequencies(perturber, private_examples())
    uniform = torch.full_like(prior, 1 / len(prior))
    return [
        f"mechanism            {mechanism.name}: {mechanism.parameters}",
        f"guarantee            {mechanism.guarantee.kind}: {mechanism.guarantee.statement}",
        f"epsilon per token    {mechanism.guarantee.epsilon:.4g}",
        f"epsilon per document {document.epsilon:.4g} at delta {document.delta:g} for {document.tokens} tokens "
        f"({document.composition})",
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
