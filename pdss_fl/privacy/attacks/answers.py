"""Answer inference: which of the released choices is the right one, from all that the server sees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pdss_fl.privacy.attacks.language import SequenceScore


@dataclass(frozen=True)
class Seen:
    """What the server has of one prompt, and what it would like to know.

    Parameters
    ----------
    question, rationale : str
        The released question and what the server wrote about it.
    choices : tuple[str, ...]
        As the server got them, in its order.
    answer : int | None
        The place of the right one among them; ``None`` if it was not sent: such a prompt is not counted.
    tokens : int
        Number of perturbed words of the prompt.
    """

    question: str
    rationale: str
    choices: tuple[str, ...]
    answer: int | None
    tokens: int


AnswerGuess = Callable[[Sequence[Seen]], list[int]]
"""From prompts to the place of the choice that is taken for the right one."""


def named_in_rationale(same: Callable[[str, str], bool], generator: np.random.Generator) -> AnswerGuess:
    """Return the attacker who takes the choice of whose words the rationale names the largest share.

    Parameters
    ----------
    same : Callable[[str, str], bool]
        Whether two words are the same, for example by their stems.
    generator : numpy.random.Generator
        Decides ties.
    """

    def share(choice: str, words: set[str]) -> float:
        own = choice.split()
        return sum(any(same(word, other) for other in words) for word in own) / max(1, len(own))

    def guess(prompts: Sequence[Seen]) -> list[int]:
        found = []
        for prompt in prompts:
            words = set(prompt.rationale.split())
            shares = np.array([share(choice, words) for choice in prompt.choices])
            found.append(int(generator.choice(np.flatnonzero(shares == shares.max()))))
        return found

    return guess


def likeliest_answer(score: SequenceScore) -> AnswerGuess:
    """Return the attacker who takes the choice that a language model finds likeliest after question and rationale."""

    def guess(prompts: Sequence[Seen]) -> list[int]:
        texts = [
            f"Question: {prompt.question}\nReason: {prompt.rationale}\nAnswer: {choice}"
            for prompt in prompts
            for choice in prompt.choices
        ]
        parts = torch.split(score(texts), [len(prompt.choices) for prompt in prompts])
        return [int(part.argmax()) for part in parts]

    return guess


def answer_hits(guess: AnswerGuess, prompts: Sequence[Seen]) -> Tensor:
    """Return which of the prompts whose answer was sent were guessed right, BoolTensor (n,)."""
    counted = [prompt for prompt in prompts if prompt.answer is not None]
    return torch.tensor([g == p.answer for g, p in zip(guess(counted), counted, strict=True)], dtype=torch.bool)


def majority_hits(prompts: Sequence[Seen]) -> Tensor:
    """Return the same for whoever names the most frequent place among as many choices, without reading them."""
    counted = [(len(prompt.choices), prompt.answer) for prompt in prompts if prompt.answer is not None]
    most = {size: Counter(place for n, place in counted if n == size).most_common(1)[0][0] for size, _ in counted}
    return torch.tensor([most[size] == place for size, place in counted], dtype=torch.bool)
