"""One mechanism's audit: its claim, what it keeps of the texts, and what attackers get, each beside its cap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pdss_fl.audit_report.claims import Claim, measure_claim
from pdss_fl.audit_report.material import Encoded
from pdss_fl.data.example import Example
from pdss_fl.privacy import BLANK, DocumentGuarantee, PrivacyGuarantee
from pdss_fl.privacy.attacks import (
    AttackResult,
    Completer,
    Document,
    MaskedScores,
    Releases,
    Seen,
    SequenceScore,
    run_attacks,
)
from pdss_fl.privacy.contextual import Contextual
from pdss_fl.privacy.rewriting import RewritingMechanism
from pdss_fl.release import Perturber

CLOSE = 6
"""A released word is close if it is one of so many nearest to the private one, itself included."""


@dataclass(frozen=True)
class Models:
    """Language models that attack, each if it is there, and how many words they attack."""

    words: int
    score: SequenceScore | None = None
    complete: Completer | None = None
    masked: MaskedScores | None = None


@dataclass(frozen=True)
class Measured:
    """The audit of one mechanism at one epsilon; ``kept`` and ``close`` are shares of the texts' words."""

    name: str
    asked: float
    parameters: str
    guarantee: PrivacyGuarantee
    document: DocumentGuarantee
    claim: Claim
    kept: float
    close: float
    attacks: tuple[AttackResult, ...]
    words: int

    @property
    def failures(self) -> tuple[str, ...]:
        """Why the audit fails, if it does."""
        found = [self.claim.reason] if self.claim.holds is False else []
        for attack in self.attacks:
            if not attack.passes:
                rate = attack.exact if attack.cap is not None and attack.exact.low > attack.cap else attack.stem
                low = 0.0 if rate is None else rate.low
                found.append(
                    f"{attack.name}: its interval starts at {low:.2%}, above the cap that the claim puts on it"
                )
        return tuple(found)

    @property
    def status(self) -> str:
        """One of ``fails``, ``claims nothing``, ``holds`` and ``not refuted``."""
        if self.failures:
            return "fails"
        if self.guarantee.kind == "none":
            return "claims nothing"
        return "holds" if self.claim.holds else "not refuted"

    @property
    def best_attack(self) -> AttackResult | None:
        """The attack that names most private words at the first guess."""
        words = [a for a in self.attacks if a.target == "protected" and not a.name.endswith(_SEVERAL_GUESSES)]
        return max(words, key=lambda attack: attack.exact.value, default=None)


_AGAIN, _SLOW_AGAIN = 2000, 50  # documents released again for a cap; with a language model each takes a while
_SEVERAL_GUESSES = "inversion at 5"


def measure(
    perturber: Perturber,
    asked: float,
    texts: Encoded,
    examples: Sequence[Example],
    models: Models | None,
    confidence: float,
    seed: int,
) -> Measured:
    """Audit one mechanism.

    Parameters
    ----------
    perturber : Perturber
        The mechanism with its vocabulary and the public shape of prompts.
    asked : float
        The epsilon of the settings, for mechanisms that only name one.
    texts : Encoded
        Of both sides.
    examples : Sequence[Example]
        The private ones before they were encoded.
    models : Models | None
        Attackers with language models; on as many texts as hold their number of words.
    confidence : float
        Of each interval.
    seed : int
        Of noise, ties and samples; the releases are for measuring only and go nowhere.
    """
    generator = np.random.default_rng(seed)
    mechanism, vocabulary = perturber.mechanism, perturber.vocabulary
    released = _released(perturber, texts.raw, generator)
    releases = Releases(mechanism, texts.raw, released, shadow=texts.known)
    attacks = run_attacks(
        releases, bank=texts.bank, truth=range(len(released)), confidence=confidence, generator=generator,
        released_again=_SLOW_AGAIN if isinstance(mechanism, Contextual | RewritingMechanism) else _AGAIN,
    )  # fmt: skip
    if models is not None:
        attacks += _with_models(releases, texts.orders, examples, models, attacks, confidence, generator)
    private, out = (torch.cat([d.ids for d in documents]) for documents in (texts.raw, released))
    words = private < vocabulary.words
    near = vocabulary.neighbours(CLOSE)[private[words]] == out[words][:, None]
    return Measured(
        mechanism.name,
        asked,
        mechanism.parameters,
        mechanism.guarantee,
        perturber.document,
        measure_claim(mechanism, asked, [d.ids for d in released], seed),
        float(near[:, 0].double().mean()),
        float(near.any(dim=1).double().mean()),
        tuple(attacks),
        int(words.sum()),
    )


def _released(perturber: Perturber, raw: Sequence[Document], generator: np.random.Generator) -> list[Document]:
    out: list[Tensor] = perturber.mechanism.perturb_documents([document.ids for document in raw], generator)
    return [document.of_ids(ids) for document, ids in zip(raw, out, strict=True)]


def _with_models(
    releases: Releases,
    orders: Sequence[Sequence[int | None]],
    examples: Sequence[Example],
    models: Models,
    done: Sequence[AttackResult],
    confidence: float,
    generator: np.random.Generator,
) -> list[AttackResult]:
    """Return what language models get, on the first texts only: they are slow."""
    size = releases.mechanism.vocabulary.words
    counts = np.cumsum([int((document.ids < size).sum()) for document in releases.raw])
    n = min(len(counts), int(np.searchsorted(counts, models.words)) + 1)
    some = Releases(releases.mechanism, releases.raw[:n], releases.released[:n], releases.shadow)
    prompts = _seen(some, orders[:n], examples[:n], models.complete) if models.complete else []
    found = run_attacks(
        some, masked=models.masked, score=models.score, complete=models.complete, prompts=prompts,
        confidence=confidence, blind=models.words, generator=generator,
    )  # fmt: skip
    names = {attack.name for attack in done}
    return [attack for attack in found if attack.name not in names]


def _seen(
    releases: Releases, orders: Sequence[Sequence[int | None]], examples: Sequence[Example], complete: Completer
) -> list[Seen]:
    """Return what a server has of each prompt whose choices were sent, with a rationale that it writes itself."""
    rows = []
    for document, order, example in zip(releases.released, orders, examples, strict=True):
        answer = example.choices.index(example.answer) if example.answer in example.choices else None
        if answer in order and answer is not None and len(document.choices) > 1:
            question, *choices = (_said(releases, ids) for ids in (document.question, *document.choices))
            rows.append((question, tuple(choices), list(order).index(answer), len(document.ids)))
    written = complete([f"Question: {q}\nChoices: {', '.join(choices)}\nReason:" for q, choices, _, _ in rows])
    return [
        Seen(question, (text.strip().splitlines() or [""])[0].lower(), choices, answer, tokens)
        for (question, choices, answer, tokens), text in zip(rows, written, strict=True)
    ]


def _said(releases: Releases, ids: Tensor) -> str:
    return " ".join(word for word in releases.mechanism.vocabulary.decode(ids) if word != BLANK)
