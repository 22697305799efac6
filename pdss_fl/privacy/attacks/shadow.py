"""The attacker who runs the mechanism on documents of its own and counts what comes out of which words.

Nothing is known of the mechanism but pairs of documents and releases, so that it works for any. Each private word is
guessed from the whole release: by naive Bayes from the word released at its place, from those at all other places,
or from both, whichever names most words of shadow documents that were held out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pdss_fl.privacy.rewriting import same_length
from pdss_fl.privacy.vocabulary import Vocabulary

_NEAR = 8
"""Words that count as near to a word, itself included."""

_PSEUDO = 8.0
"""How many counts what is known of near words in general is worth for each word."""

_FORMS = ((0.0, 0.0), (1.0, 0.0), (1.0, 0.3), (1.0, 1.0), (0.0, 1.0))
"""Weights of the word released at a place, and of those at all others."""

_HELD_OUT = 4  # every fourth shadow document
_BATCH = 128  # documents whose words are guessed together


def empirical_success(
    private: Sequence[Tensor],
    released: Sequence[Tensor],
    shadow_private: Sequence[Tensor],
    shadow_released: Sequence[Tensor],
    vocabulary: Vocabulary,
) -> float:
    """Return how often the attacker names the private word at a place; filling words are not counted.

    With enough shadow documents it comes, on a context-free mechanism, to ``optimal_success`` at the shadow's
    frequencies of words. Takes V^2 numbers three times.

    Parameters
    ----------
    private, released : Sequence[Tensor]
        What is attacked, LongTensors (n_i,), document by document and place by place. The private ones are read
        to count hits only.
    shadow_private, shadow_released : Sequence[Tensor]
        The same of public or made-up documents, at least 4: the more, the stronger the attack.
    vocabulary : Vocabulary
        Its neighbours smooth the counts.

    Raises
    ------
    ValueError
        If there are fewer than 4 shadow documents, releases of another length, or no word to find.
    """
    _check(private, released)
    _check(shadow_private, shadow_released)
    if len(shadow_private) < _HELD_OUT:
        raise ValueError(f"{len(shadow_private)} shadow documents: give at least {_HELD_OUT}")
    held = [i % _HELD_OUT == 0 for i in range(len(shadow_private))]
    fitted, tested = (
        [([d for d, out in zip(of, held, strict=True) if out == kept]) for of in (shadow_private, shadow_released)]
        for kept in (False, True)
    )
    trial = _Counts.of(fitted[0], fitted[1], vocabulary)
    best = max(_FORMS, key=lambda form: trial.hits(tested[0], tested[1], form))
    places = sum(int((document < vocabulary.words).sum()) for document in private)
    if places == 0:
        raise ValueError("the private documents hold no word to find")
    return _Counts.of(shadow_private, shadow_released, vocabulary).hits(private, released, best) / places


def token_overlap(private: Sequence[Tensor], released: Sequence[Tensor], words: int | None = None) -> float:
    """Return the share of private words that are released somewhere in the same document, each as often as it is.

    Parameters
    ----------
    private, released : Sequence[Tensor]
        LongTensors of ids, document by document.
    words : int | None (default: None)
        Ids from it on are filling words, which are not counted: ``Vocabulary.words``.

    Raises
    ------
    ValueError
        If there is no private word.
    """
    shared = total = 0
    for document, out in zip(private, released, strict=True):
        size = 1 + int(torch.cat([document, out]).max()) if len(document) + len(out) else 0
        counts = (torch.bincount(ids, minlength=size)[:words] for ids in (document, out))
        own, other = counts
        shared, total = shared + int(torch.minimum(own, other).sum()), total + int(own.sum())
    if total == 0:
        raise ValueError("the private documents hold no word to compare")
    return shared / total


@dataclass(frozen=True)
class _Counts:
    """Log-probabilities of a private word (V,), and of released words given one, (V, V) with row = private."""

    words: int
    prior: Tensor
    at_place: Tensor
    elsewhere: Tensor

    @classmethod
    def of(cls, private: Sequence[Tensor], released: Sequence[Tensor], vocabulary: Vocabulary) -> _Counts:
        size = len(vocabulary)
        x, y = torch.cat(list(private)), torch.cat(list(released))
        prior = (torch.bincount(x, minlength=size)[: vocabulary.words].double() + 1).log()
        at_place = _pairs(x, y, size)
        together = at_place.new_zeros(size, size)
        for places in same_length(private):
            own, out = (torch.stack([of[i] for i in places]) for of in (private, released))
            for shift in range(1, own.shape[1]):  # every place with every other one
                together += _pairs(own.flatten(), out.roll(shift, dims=1).flatten(), size)
        near = vocabulary.neighbours(min(_NEAR, size - 1))
        return cls(vocabulary.words, prior, _smoothed(at_place, near), _smoothed(together, near))

    def hits(self, private: Sequence[Tensor], released: Sequence[Tensor], form: tuple[float, float]) -> int:
        """Return how many words a form of the attack names."""
        here, others = form
        found = 0
        for places in same_length(private, _BATCH):
            words, out = (torch.stack([of[i] for i in places]) for of in (private, released))
            scores = self.prior[:, None, None] + here * self.at_place[: self.words, out]
            if others:
                elsewhere = self.elsewhere[: self.words, out]
                scores = scores + others * (elsewhere.sum(dim=2, keepdim=True) - elsewhere)
            found += int(((scores.argmax(dim=0) == words) & (words < self.words)).sum())
        return found


def _pairs(x: Tensor, y: Tensor, size: int) -> Tensor:
    return torch.bincount(x * size + y, minlength=size * size).reshape(size, size).double()


def _smoothed(counts: Tensor, near: Tensor) -> Tensor:
    """Return ln of the share of each output, with pseudo-counts by how often outputs are the word itself, near or far.

    To these three shares, which are those of all words together, each with one added, far outputs add their own
    frequency: what a document without that word would release.
    """
    size = len(counts)
    ring = torch.full((size, size), 2, dtype=torch.int8).scatter_(1, near, 1).fill_diagonal_(0)
    frequency = counts.sum(dim=0) + 1
    expected = frequency / frequency.sum() * torch.ones(size, 1, dtype=torch.float64)
    total = counts.sum()
    for which in range(3):
        inside = ring == which
        share = (counts[inside].sum() + 1) / (total + 3)
        within = (expected * inside).sum(dim=1, keepdim=True)
        scale = torch.where(within > 0, share / within, torch.zeros_like(within))
        expected = torch.where(inside, expected * scale, expected)
    expected /= expected.sum(dim=1, keepdim=True)
    return ((counts + _PSEUDO * expected) / (counts.sum(dim=1, keepdim=True) + _PSEUDO)).log()


def _check(private: Sequence[Tensor], released: Sequence[Tensor]) -> None:
    if [len(document) for document in private] != [len(document) for document in released]:
        raise ValueError("each document needs one release of as many words")
