"""All attacks on one set of releases, each beside its cap: what an audit prints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pdss_fl.privacy.attacks.answers import (
    AnswerGuess,
    Seen,
    answer_hits,
    likeliest_answer,
    majority_hits,
    named_in_rationale,
)
from pdss_fl.privacy.attacks.bayes import candidates, optimal_success, word_prior
from pdss_fl.privacy.attacks.caps import Cap, Targets, blind_documents, blind_words, token_cap, words_at
from pdss_fl.privacy.attacks.inversion import nearest_words
from pdss_fl.privacy.attacks.language import (
    Completer,
    MaskedScores,
    SequenceScore,
    masked_words,
    reconstructed_words,
    words_in_context,
)
from pdss_fl.privacy.attacks.linkage import Document, link
from pdss_fl.privacy.attacks.results import CONFIDENCE, AttackResult, Rate
from pdss_fl.privacy.attacks.stems import matches, stem_classes, text_classes
from pdss_fl.privacy.mechanism import PrivacyMechanism

Guess = Callable[[Targets], Tensor]
"""An attacker of words: from n targets to its guesses, LongTensor (n, g); right if one of the g is."""

INVERSION_AT = (1, 5)
CANDIDATES = 10
EXAMPLES = 3
_BLIND = 20_000  # words with which the blind attacker is measured


@dataclass(frozen=True)
class Releases:
    """What was released of what, and what an attacker has besides.

    Parameters
    ----------
    mechanism : PrivacyMechanism
        What released it.
    raw, released : Sequence[Document]
        Private words and what came out, position by position; choices in the order sent.
    shadow : Sequence[Document]
        Public texts of the same kind: the attacker's word frequencies and examples.
    protected : Sequence[Tensor] | None (default: None)
        For each document which positions of ``ids`` hold a protected private word, BoolTensors (n_i,). By
        default all but the filling words. Nothing is claimed of the others, and where this is given, nothing
        of whole documents either, since some words may have passed through.
    """

    mechanism: PrivacyMechanism
    raw: Sequence[Document]
    released: Sequence[Document]
    shadow: Sequence[Document] = ()
    protected: Sequence[Tensor] | None = None

    def __post_init__(self) -> None:
        if not self.raw or [len(d.ids) for d in self.raw] != [len(d.ids) for d in self.released]:
            raise ValueError("attacks need at least one document, and a released word for each private one")

    def places(self, protected: bool) -> Tensor:
        """Return (document, position) of all protected words, or of all others, LongTensor (n, 2)."""
        words = self.mechanism.vocabulary.words
        masks = self.protected or [document.ids < words for document in self.raw]
        found = [(d, i) for d, mask in enumerate(masks) for i, kept in enumerate(mask.tolist()) if kept == protected]
        return torch.tensor(found, dtype=torch.long).reshape(-1, 2)


def run_attacks(
    releases: Releases,
    *,
    masked: MaskedScores | None = None,
    score: SequenceScore | None = None,
    complete: Completer | None = None,
    bank: Sequence[Document] = (),
    truth: Sequence[int] = (),
    prompts: Sequence[Seen] = (),
    confidence: float = CONFIDENCE,
    blind: int = 200,
    released_again: int = 2000,
    generator: np.random.Generator | None = None,
) -> list[AttackResult]:
    """Run every attack that the arguments allow.

    Parameters
    ----------
    releases : Releases
        What is attacked. Attacks that need the mechanism's matrix are left out where it states none.
    masked : MaskedScores | None (default: None)
        For masked-language-model inference.
    score : SequenceScore | None (default: None)
        For contextual Bayes and for the answers.
    complete : Completer | None (default: None)
        For generative reconstruction.
    bank : Sequence[Document] (default: ())
        Public texts to link with, encoded and filled as the private ones; ``truth[i]`` is the index in it of
        ``releases.raw[i]``, -1 where it is not there.
    truth : Sequence[int] (default: ())
        As many as there are documents, if there is a bank.
    prompts : Sequence[Seen] (default: ())
        For answer inference.
    confidence : float (default: CONFIDENCE)
        Two-sided, of every interval.
    blind : int (default: 200)
        Number of words with which a language model's blind success is measured; the fewer they are, the
        higher is the cap, up to 1 with 0 words. Attackers without a model have 20,000.
    released_again : int (default: 2000)
        At most so many of them where the mechanism states no matrix: it then releases a document for each.
    generator : numpy.random.Generator | None (default: None)
        For ties and blind releases; by default seeded by the operating system.

    Returns
    -------
    list[AttackResult]
        In a fixed order; the audit fails if one of them does not pass.
    """
    generator = np.random.default_rng() if generator is None else generator
    longest = max(len(document.ids) for document in releases.raw)
    run = _Run(releases, token_cap(releases.mechanism, longest), confidence, released_again, generator)
    results = run.optimal() + [
        result
        for name, guess, drawn in _word_attacks(releases, masked, score, complete, blind, run.generator)
        for result in run.words(name, guess, drawn)
    ]
    if bank:
        results += run.linkage(bank, truth)
    if prompts:
        results += run.answers(
            "answer named in the rationale", named_in_rationale(run.same_stem, run.generator), prompts
        )
        results += run.answers("answer by language model", likeliest_answer(score), prompts) if score else []
    return results


def _word_attacks(
    releases: Releases,
    masked: MaskedScores | None,
    score: SequenceScore | None,
    complete: Completer | None,
    blind: int,
    generator: np.random.Generator,
) -> list[tuple[str, Guess, int]]:
    """Return (name, attacker, number of blind targets) of all attackers of words."""
    mechanism, vocabulary = releases.mechanism, releases.mechanism.vocabulary
    shadow = [document.ids for document in releases.shadow]
    found: list[tuple[str, Guess, int]] = []
    try:
        likely = candidates(mechanism, word_prior(shadow, len(vocabulary)), min(CANDIDATES, len(vocabulary)))
        known = candidates(mechanism, word_prior([d.ids for d in releases.raw], len(vocabulary), 0.0), 1)
    except NotImplementedError:
        pass
    else:
        found += [
            ("context-free Bayes, public word frequencies", partial(_likeliest, likely[0]), _BLIND),
            ("context-free Bayes, the data's own frequencies", partial(_likeliest, known[0]), _BLIND),
        ]
        if score is not None:
            attack = partial(words_in_context, vocabulary, likely, score)
            found.append((f"contextual Bayes over {likely[0].shape[1]} candidates", attack, blind))
    for k in INVERSION_AT:
        found.append((f"embedding inversion at {k}", partial(nearest_words, vocabulary, k), _BLIND))
    if masked is not None:
        found.append(("masked language model", partial(masked_words, vocabulary, masked), blind))
    if complete is not None:
        shown = shadow[:EXAMPLES]
        pairs = list(zip(mechanism.perturb_documents(shown, generator), shown, strict=True))
        attack = partial(reconstructed_words, vocabulary, complete, pairs)
        found.append(("generative reconstruction", attack, blind))
    return found


def _likeliest(ids: Tensor, targets: Targets) -> Tensor:
    return ids[targets.released, :1]


class _Run:
    """What all attacks of one audit share."""

    def __init__(
        self,
        releases: Releases,
        cap: Cap | None,
        confidence: float,
        released_again: int,
        generator: np.random.Generator,
    ) -> None:
        self.releases, self.cap, self.confidence, self.generator = releases, cap, confidence, generator
        self.released_again = released_again
        vocabulary = releases.mechanism.vocabulary
        self.texts, self.stems = text_classes(vocabulary), stem_classes(vocabulary)
        self.raw, self.released = [d.ids for d in releases.raw], [d.ids for d in releases.released]
        self.by_text = dict(zip(vocabulary.tokens, self.stems.tolist(), strict=True))

    def same_stem(self, one: str, other: str) -> bool:
        """Say whether two texts of words are of one stem; words outside of the vocabulary only if equal."""
        return one == other or self.by_text.get(one, one) == self.by_text.get(other, other)

    def optimal(self) -> list[AttackResult]:
        """Return the exact success of the best context-free attacker on the data's own frequencies."""
        mechanism, name = self.releases.mechanism, "optimal context-free Bayes, exact"
        places = self.releases.places(protected=True)
        if not len(places) or self.cap is None or self.cap.outputs is None:
            return []
        prior = word_prior([words_at(self.raw, places)], len(mechanism.vocabulary), 0.0)
        exact, stem = (Rate.exact(optimal_success(mechanism, prior, c)) for c in (self.texts, self.stems))
        blind, blind_stem = (
            Rate.exact(float(torch.bincount(c, weights=prior).max())) for c in (self.texts, self.stems)
        )
        caps = self.cap.of(blind), self.cap.of(blind_stem)
        return [AttackResult(name, "protected", exact, stem, blind, blind_stem, *caps)]

    def words(self, name: str, guess: Guess, blind: int) -> list[AttackResult]:
        """Return the rates of an attacker on the protected words beside their caps, and on the others, if any."""
        results = []
        for protected in (True, False):
            places = self.releases.places(protected)
            if not len(places):
                continue
            exact, stem = self._rates(guess, Targets.of(self.released, places), places, places[:, 0])
            result = AttackResult(name, "protected" if protected else "unprotected", exact, stem)
            if protected and self.cap is not None:
                size = blind if self.cap.outputs is not None else min(blind, self.released_again)
                drawn = places[torch.from_numpy(self.generator.integers(len(places), size=size))]
                unseen = blind_words(self.releases.mechanism, self.cap, self.raw, self.released, drawn, self.generator)
                base, base_stem = self._rates(guess, unseen, drawn, None)
                caps = self.cap.of(base), self.cap.of(base_stem)
                result = AttackResult(name, "protected", exact, stem, base, base_stem, *caps)
            results.append(result)
        return results

    def _rates(self, guess: Guess, targets: Targets, places: Tensor, groups: Tensor | None) -> tuple[Rate, Rate]:
        guesses, truth = guess(targets), words_at(self.raw, places)
        exact, stem = (matches(guesses, truth, classes) for classes in (self.texts, self.stems))
        return Rate.measured(exact, groups, self.confidence), Rate.measured(stem, groups, self.confidence)

    def _document_cap(self, blind: Rate, words: int) -> float | None:
        return None if self.cap is None or self.releases.protected is not None else self.cap.of(blind, words)

    def linkage(self, bank: Sequence[Document], truth: Sequence[int]) -> list[AttackResult]:
        """Return how often a document is found in a bank, by its words and by its lengths alone."""
        released, mechanism = self.releases.released, self.releases.mechanism
        note = f"chance is {1 / len(bank):.2g}; lengths are not protected"
        by_length = self._linked(link(released, bank, None, self.generator), truth)
        results = [AttackResult("linkage by lengths alone", "document", by_length, note=note)]
        if self.cap is None or self.cap.outputs is None:
            return results
        found = self._linked(link(released, bank, mechanism, self.generator), truth)
        lengths = [len(ids) for ids in self.released]
        unseen = blind_documents(self.cap.outputs, lengths, self.generator)
        dummies = [document.of_ids(ids) for document, ids in zip(released, unseen, strict=True)]
        blind = self._linked(link(dummies, bank, mechanism, self.generator), truth)
        cap = self._document_cap(blind, max(lengths))
        return [*results, AttackResult("linkage, top 1", "document", found, blind=blind, cap=cap, note=note)]

    def _linked(self, found: Sequence[int], truth: Sequence[int]) -> Rate:
        hits = torch.tensor([f == t >= 0 for f, t in zip(found, truth, strict=True)], dtype=torch.bool)
        return Rate.measured(hits, None, self.confidence)

    def answers(self, name: str, guess: AnswerGuess, prompts: Sequence[Seen]) -> list[AttackResult]:
        """Return how often the answer is guessed; blind is who always names the most frequent place."""
        found = Rate.measured(answer_hits(guess, prompts), None, self.confidence)
        blind = Rate.measured(majority_hits(prompts), None, self.confidence)
        tokens = max(prompt.tokens for prompt in prompts)
        cap = self._document_cap(blind, tokens)
        note = "blind is the most frequent place; the cap holds where lengths do not tell the answer"
        return [AttackResult(name, "answer", found, blind=blind, cap=cap, note=note)]
