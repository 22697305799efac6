"""The one place where private text becomes something that may leave: perturb, charge, then release.

``release_prompts`` is all that a client sends of its examples. Everything in its batch comes out of the
mechanism, from the node's ledger (where it was charged and written before), or from public settings.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pdss_fl.data.example import Example
from pdss_fl.data.prompts import PromptShape, RenderedPrompt, choice_order, public_labels, render
from pdss_fl.errors import BudgetExhausted
from pdss_fl.messages import PerturbedPrompt, PrivacyStatement, PromptBatch
from pdss_fl.privacy import Charge, DocumentGuarantee, Ledger, PrivacyMechanism, Vocabulary

_OS_RANDOM = secrets.SystemRandom()


@dataclass(frozen=True)
class Perturber:
    """A mechanism with its vocabulary and the public shape of prompts.

    ``generator`` is ``None`` (the operating system's entropy) except in a simulation that asked for
    ``insecure-noise-seed``.
    """

    vocabulary: Vocabulary
    mechanism: PrivacyMechanism
    shape: PromptShape
    delta: float
    generator: np.random.Generator | None = None

    def shuffle(self, items: list[Any]) -> None:
        """Put a list into a random order, from the same source of randomness as the noise."""
        (self.generator or _OS_RANDOM).shuffle(items)

    @property
    def recipe(self) -> str:
        """Names everything that a stored release depends on; equal recipes may be sent again."""
        shape = self.shape
        return (
            f"{self.mechanism.name} {self.mechanism.parameters} vocabulary={self.vocabulary.sha256[:16]} "
            f"length={shape.length}:{shape.question_words}+{shape.choices}x{shape.choice_words}"
            f"{' public-choices' if shape.public_choices else ''}"
        )

    @property
    def document(self) -> DocumentGuarantee:
        """The guarantee of one whole prompt at the public length bound."""
        return self.mechanism.compose(self.shape.tokens, self.delta)

    def statement(self) -> PrivacyStatement:
        """Return what the client claims; public parameters only, no count of the data."""
        document = self.document
        return PrivacyStatement(
            mechanism=self.mechanism.name,
            kind=self.mechanism.guarantee.kind,
            epsilon_per_token=self.mechanism.guarantee.epsilon,
            epsilon_per_document=document.epsilon,
            delta=document.delta,
            tokens_per_document=document.tokens,
            composition=document.composition,
            kept_tokens=self.mechanism.kept_tokens,
            parameters=self.mechanism.parameters,
            vocabulary_sha256=self.vocabulary.sha256,
        )

    def perturb(self, examples: Sequence[Example]) -> list[dict[str, Any]]:
        """Perturb each example once; returns payloads as the ledger stores them, charging nothing."""
        rendered = [
            render(e, choice_order(e, self.shape, self.shuffle), self.shape, self.vocabulary.split) for e in examples
        ]
        texts = [text for prompt in rendered for text in (prompt.question, *prompt.choices)]
        ids = torch.cat([self._ids(text) for text in texts]) if texts else torch.empty(0, dtype=torch.long)
        words = iter(self.vocabulary.decode(self.mechanism.perturb(ids, self.generator)))
        return [self._payload(prompt, words) for prompt in rendered]

    def _ids(self, text: Sequence[str | None]) -> torch.Tensor:
        words = [word for word in text if word is not None]
        blanks = self.vocabulary.blank_ids(len(text) - len(words))
        return torch.cat([self.vocabulary.word_ids(words), blanks])  # filling words stand at the end

    @staticmethod
    def _payload(prompt: RenderedPrompt, words: Any) -> dict[str, Any]:
        return {
            "question": [next(words) for _ in prompt.question],
            "choices": [[next(words) for _ in choice] for choice in prompt.choices],
            "order": list(prompt.order),
        }


@dataclass(frozen=True)
class Released:
    """What stays on the client to make use of the answers: ``examples[i]`` was sent as ordinal i."""

    batch: PromptBatch
    examples: tuple[Example, ...]
    payloads: tuple[dict[str, Any], ...]
    refused: int
    truncated: int


def release_prompts(examples: Sequence[Example], perturber: Perturber, ledger: Ledger) -> Released:
    """Return a batch of perturbed prompts for as many examples as the ledger can pay.

    What the ledger holds for an example under the same recipe is sent again and costs nothing. The
    rest is perturbed and charged, and the ledger is written, before anything is put into the batch.

    Raises
    ------
    BudgetExhausted
        If no example is left; an exhausted example alone is left out and counted.
    StoreError
        If the ledger cannot be written; nothing is released then.
    """
    labels = public_labels(examples) if perturber.shape.public_choices else ()
    stored = {e.content_hash: ledger.lookup(e.content_hash, perturber.recipe) for e in examples}
    fresh = list({e.content_hash: e for e in examples if stored[e.content_hash] is None}.values())
    document = perturber.document
    charges = [
        Charge(e.content_hash, e.person, perturber.recipe, document.epsilon, document.delta, payload)
        for e, payload in zip(fresh, perturber.perturb(fresh), strict=True)
    ]
    accepted = ledger.charge(charges)
    stored |= {c.example: c.payload for c, ok in zip(charges, accepted, strict=True) if ok}
    sent = [e for e in examples if stored[e.content_hash] is not None]
    if not sent:
        raise BudgetExhausted(
            f"none of the examples can pay epsilon {document.epsilon:.4g} a prompt any more under this node's "
            "max-epsilon-per-example"
        )
    perturber.shuffle(sent)
    payloads = [stored[e.content_hash] or {} for e in sent]
    prompts = tuple(_prompt(i, payload, labels) for i, payload in enumerate(payloads))
    truncated = sum(
        render(e, p["order"], perturber.shape, perturber.vocabulary.split).truncated
        for e, p in zip(sent, payloads, strict=True)
    )
    batch = PromptBatch(prompts, perturber.statement())
    return Released(batch, tuple(sent), tuple(payloads), len(examples) - len(sent), truncated)


def word_pairs(example: Example, payload: dict[str, Any], perturber: Perturber) -> list[tuple[str, str]]:
    """Return (released word, private word) for every position of a stored release; stays on the client.

    Filling words, and the random words that filling words became, have no private side and are left out.
    """
    prompt = render(example, payload["order"], perturber.shape, perturber.vocabulary.split)
    private = [word for text in (prompt.question, *prompt.choices) for word in text]
    released = [word for text in (payload["question"], *payload["choices"]) for word in text]
    return [(out, word) for out, word in zip(released, private, strict=True) if word is not None]


def _prompt(ordinal: int, payload: dict[str, Any], labels: Sequence[str]) -> PerturbedPrompt:
    choices = tuple(labels) or tuple(" ".join(words) for words in payload["choices"])
    return PerturbedPrompt(ordinal, " ".join(payload["question"]), choices)
