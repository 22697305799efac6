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
from pdss_fl.data.prompts import PromptShape, RenderedPrompt, choice_order, render
from pdss_fl.errors import BudgetExhausted, DataError, StoreError
from pdss_fl.messages import PerturbedPrompt, PrivacyStatement, PromptBatch
from pdss_fl.privacy import Charge, DocumentGuarantee, Ledger, PrivacyMechanism, Vocabulary

_OS_RANDOM = secrets.SystemRandom()


@dataclass(frozen=True)
class Perturber:
    """A mechanism with its vocabulary and the public shape of prompts.

    ``generator`` is ``None`` (the operating system's entropy) except in a simulation that asked for
    ``insecure-noise-seed``. ``labels`` are the node's public choices, sent as they are, or empty.
    """

    vocabulary: Vocabulary
    mechanism: PrivacyMechanism
    shape: PromptShape
    delta: float
    generator: np.random.Generator | None = None
    labels: tuple[str, ...] = ()

    def shuffle(self, items: list[Any]) -> None:
        """Put a list into a random order, from the same source of randomness as the noise."""
        (self.generator or _OS_RANDOM).shuffle(items)

    @property
    def recipe(self) -> str:
        """Names everything that a stored release depends on; equal recipes may be sent again."""
        shape = self.shape
        return (
            f"{self.mechanism.name} {self.mechanism.parameters} vocabulary={self.vocabulary.sha256[:16]} "
            f"length={shape.length}:{shape.question_words}+{shape.choices}x{shape.choice_words} words={shape.words}"
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
        documents = [torch.cat(self.encode(prompt)) for prompt in rendered]
        released = self.mechanism.perturb_documents(documents, self.generator)
        words = (word for document in released for word in self.vocabulary.decode(document))
        return [self._payload(prompt, words) for prompt in rendered]

    def encode(self, prompt: RenderedPrompt) -> list[torch.Tensor]:
        """Return the ids of a prompt's question and of each of its choices, LongTensors (n_i,)."""
        return [self._ids(text) for text in (prompt.question, *prompt.choices)]

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
    refused: int
    truncated: int


@dataclass(frozen=True)
class ReleasePlan:
    """What a release is going to charge and send: written down before, so that a crash changes none of it.

    Parameters
    ----------
    recipe : str
        The perturber's; a plan of another one is of no use.
    order : list[str]
        Release keys of all distinct examples, in the random order in which they are sent.
    fresh : dict[str, dict]
        Payloads, by release key, of those that the ledger did not hold; stays on the client until it is charged.
    """

    recipe: str
    order: list[str]
    fresh: dict[str, dict[str, Any]]


def plan_release(examples: Sequence[Example], perturber: Perturber, ledger: Ledger) -> ReleasePlan:
    """Perturb what the ledger does not hold, and draw the order; charges and releases nothing.

    Raises
    ------
    DataError
        If an example's choices are not the public labels.
    """
    distinct = {e.release_key: e for e in examples}
    _check_labels(list(distinct.values()), perturber.labels)
    fresh = [e for e in distinct.values() if ledger.lookup(e.release_key, perturber.recipe) is None]
    payloads = perturber.perturb(fresh)
    order = list(distinct)
    perturber.shuffle(order)
    by_key = {e.release_key: payload for e, payload in zip(fresh, payloads, strict=True)}
    return ReleasePlan(perturber.recipe, order, by_key)


def release_prompts(
    examples: Sequence[Example], perturber: Perturber, ledger: Ledger, plan: ReleasePlan | None = None
) -> Released:
    """Return a batch of perturbed prompts for as many examples as the ledger can pay, in a random order.

    What the ledger holds for an example under the same recipe is sent again and costs nothing. The rest is
    perturbed and charged, and the ledger is written, before anything is put into the batch. Examples that
    agree in question, choices and person are sent once. The charge is basic composition (tokens x epsilon),
    which no setting of the run can lower; the batch states the tighter figure at ``delta`` beside it. With the
    ``plan`` of an interrupted call nothing is perturbed again, and what that call charged is not charged again.

    Raises
    ------
    BudgetExhausted
        If no example is left; an exhausted example alone is left out and counted.
    StoreError
        If the ledger cannot be written; nothing is released then.
    """
    plan = plan or plan_release(examples, perturber, ledger)
    distinct = {e.release_key: e for e in examples}
    planned = [distinct[key] for key in plan.order if key in distinct]  # a node may have lost data since
    charged = perturber.mechanism.compose(perturber.shape.tokens, 0.0)
    ledger.charge(
        [
            Charge(e.release_key, e.person, perturber.recipe, charged.epsilon, charged.delta, plan.fresh[e.release_key])
            for e in planned
            if e.release_key in plan.fresh
        ]
    )
    # Read back, so that what another process has just stored is sent and not perturbed twice.
    sent = [e for e in planned if ledger.lookup(e.release_key, perturber.recipe) is not None]
    if not sent:
        raise BudgetExhausted(
            f"none of the examples can pay epsilon {charged.epsilon:.4g} a prompt any more under this node's "
            "max-epsilon-per-example"
        )
    return resend_prompts(sent, len(planned) - len(sent), perturber, ledger)


def resend_prompts(sent: Sequence[Example], refused: int, perturber: Perturber, ledger: Ledger) -> Released:
    """Return the batch of examples that the ledger holds, in the order given; costs nothing."""
    payloads = [stored_payload(e, perturber, ledger) for e in sent]
    prompts = tuple(_prompt(i, payload, perturber.labels) for i, payload in enumerate(payloads))
    truncated = sum(
        render(e, p["order"], perturber.shape, perturber.vocabulary.split).truncated
        for e, p in zip(sent, payloads, strict=True)
    )
    return Released(PromptBatch(prompts, perturber.statement()), tuple(sent), refused, truncated)


def stored_payload(example: Example, perturber: Perturber, ledger: Ledger) -> dict[str, Any]:
    """Return what was released of an example; raises ``StoreError`` if the ledger no longer holds it."""
    payload = ledger.lookup(example.release_key, perturber.recipe)
    if payload is None:
        raise StoreError(
            "this node's ledger holds no release of an example of this run with the mechanism and vocabulary of now: "
            "put back what of this node's own privacy-* choices was changed since the prompts were sent, or let the "
            "next run use them"
        )
    return payload


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


def _check_labels(examples: Sequence[Example], labels: Sequence[str]) -> None:
    if labels and any(set(example.choices) != set(labels) for example in examples):
        raise DataError("an example's choices are not this node's public-choices, so they are not sent unperturbed")
