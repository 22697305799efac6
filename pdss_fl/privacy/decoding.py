"""Rewriting word by word: each released word is drawn, given the document and what was released before it.

With v the model's logits of the next word, and n released words, each of these promises ``epsilon`` a word between
any two documents (see ``rewriting``); they differ in what they make of it:

- ``EncoderTop``: the k words of highest logit weigh e^eps, all others 1. Whatever the document and the prefix, k
  words are near, so the normaliser is always k e^eps + V - k, and the ratio of two documents' probabilities is 1,
  e^eps or e^-eps: the staircase with near sets by a model. Two documents with disjoint sets dominate all others
  after every prefix, so its exact composition, which holds for adaptive use, stands.
- ``EncoderDecoding``: softmax of clipped logits at a temperature (DP-Prompt, Utpala et al. 2023). Weights are within
  e^(eps/2) of each other, normalisers, too: eps in all. That is also the bounded range.
- ``EncoderDifference``: public logits plus the clipped difference of the private ones (InvisibleInk,
  arXiv 2507.02974, with one document in place of a batch).

At equal epsilon, no set of k words has more mass in ``EncoderDecoding`` than k e^(eps/2) / (k e^(eps/2) + V - k):
the half that pays for the normaliser is missing. ``EncoderTop`` puts k e^eps / (k e^eps + V - k) on the k best.

Samplers are exact: the weights that a softmax would have are rounded to whole numbers first, from a public table
whose extremes are at most e^(eps/2) apart, and whole numbers are drawn in proportion to them. Rounding of floats,
in the model, too, can so change which words are likely, but never by how much two documents can differ.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax
from torch import Tensor

from pdss_fl.errors import SettingError
from pdss_fl.privacy.accounting import staircase_document
from pdss_fl.privacy.mechanism import DocumentGuarantee, PrivacyGuarantee, register_mechanism
from pdss_fl.privacy.rewriting import RewritingMechanism, document_guarantee
from pdss_fl.privacy.sampling import TABLE_BITS, random_bytes, weight_table, weighted
from pdss_fl.privacy.staircase import draw, law, near_threshold
from pdss_fl.privacy.vocabulary import Vocabulary

_ROWS = 2048  # laws of a next word that are held together, or those of one document
_STEPS = 4096  # between the lowest and the highest weight of a table
_PUBLIC_BITS = 60 - TABLE_BITS  # of all public weights together, so that a row's total is a 64-bit number
_RANGE = 1e-6, 1e6  # of a clip or a temperature: what is outside of it only a mistake asks for


class WordByWord(RewritingMechanism):
    """Draws each word given the document and the words released before it; a subclass states one step."""

    @abstractmethod
    def log_prob_given(self, documents: Tensor, prefixes: Tensor) -> Tensor:
        """Return the exact log-probabilities of the next word, those of the sampler as it runs.

        Parameters
        ----------
        documents : LongTensor, shape (B, n)
            Private documents.
        prefixes : LongTensor, shape (B, t)
            What was released of each.

        Returns
        -------
        Tensor, shape (B, V)
            float64.
        """

    @abstractmethod
    def _drawn(self, documents: Tensor, prefixes: Tensor, generator: np.random.Generator | None) -> Tensor:
        """Return the next word of each document, LongTensor (B,)."""

    @property
    def guarantee(self) -> PrivacyGuarantee:
        """Pure LDP of documents, so much for each released word."""
        return document_guarantee(self.epsilon)

    def log_prob_documents(self, documents: Tensor, released: Tensor) -> Tensor:
        """Return the sum over places of ``log_prob_given``; see the base class."""
        total = torch.zeros(len(documents), len(released), dtype=torch.float64)
        for place in range(released.shape[1]):
            prefixes, which = _distinct(released[:, :place])
            step = max(1, _ROWS // len(prefixes))
            for start in range(0, len(documents), step):
                some = documents[start : start + step]
                pairs = some.repeat_interleave(len(prefixes), dim=0), prefixes.repeat(len(some), 1)
                rows = self.log_prob_given(*pairs).reshape(len(some), len(prefixes), -1)
                total[start : start + step] += rows[:, which, released[:, place]]
        return total

    def _released(self, documents: Tensor, generator: np.random.Generator | None) -> Tensor:
        released = documents[:, :0]
        for _ in range(documents.shape[1]):
            word = self._drawn(documents, released, generator)
            released = torch.cat([released, word[:, None]], dim=1)
        return released


@register_mechanism("encoder-top")
class EncoderTop(WordByWord):
    """The k words of highest logit weigh e^eps, all others 1; k is ``neighbours``, the lower id first on a tie.

    Filling words, which all read the same, count as one, unless one of them is the best word: then all compete.
    The mass of the k is a multiple of 2^-128, rounded down, and decided by comparing whole numbers, as the
    staircase's is. Parameters and errors as of ``RewritingMechanism``; also if epsilon is so small that 128 bits
    cannot tell it from 0.
    """

    def __init__(self, vocabulary: Vocabulary, **given: Any) -> None:
        super().__init__(vocabulary, **given)
        self._threshold = near_threshold(self.epsilon, self.neighbours, len(vocabulary))

    def compose(self, tokens: int, delta: float) -> DocumentGuarantee:
        """Return what ``tokens`` released words are worth: the staircase's exact epsilon where V >= 2k."""
        if len(self.vocabulary) < 2 * self.neighbours:
            return super().compose(tokens, delta)
        return staircase_document(self.epsilon, self.neighbours, len(self.vocabulary), tokens, delta)

    def log_prob_given(self, documents: Tensor, prefixes: Tensor) -> Tensor:
        """Return two values a row, that of the k best words and that of all others; see the base class."""
        return law(self._threshold, torch.from_numpy(self._best(documents, prefixes)), len(self.vocabulary))

    def _drawn(self, documents: Tensor, prefixes: Tensor, generator: np.random.Generator | None) -> Tensor:
        best = self._best(documents, prefixes)
        return draw(self._threshold, best, len(self.vocabulary), random_bytes(generator))

    def _best(self, documents: Tensor, prefixes: Tensor) -> NDArray[np.int64]:
        """Return the ids of the k highest logits, exactly k different ones a row, shape (B, k)."""
        below, words = -self._logits(documents, prefixes), self.vocabulary.words
        fills = below.argmin(axis=1) >= words
        below[~fills, words + 1 :] = np.inf  # copies of a filling word would crowd out the words after it
        return below.argsort(axis=1, kind="stable")[:, : self.neighbours]


class WeightedWords(WordByWord):
    """Draws in proportion to whole numbers; a subclass says how they come from the logits.

    eps is also the bounded range of a word: ln of Pr[y|D] / Pr[y|D'] is ln of two weights' ratio, which is within
    eps / 2 of 0, plus a number that is the same for all y.
    """

    def __init__(self, vocabulary: Vocabulary, **given: Any) -> None:
        super().__init__(vocabulary, **given)
        if self.epsilon < 2.0**-TABLE_BITS:
            raise SettingError(
                f"privacy.epsilon = {self.epsilon!r}: weights of {TABLE_BITS} bits cannot tell it from 0"
            )
        self._table = weight_table(self.epsilon / 2, _STEPS)

    @abstractmethod
    def _weights(self, documents: Tensor, prefixes: Tensor) -> NDArray[np.int64]:
        """Return the weight of every word, at least 1, shape (B, V): an entry of the table times a public number."""

    @property
    def bounded_range(self) -> float:
        """The eta of a released word, which is its epsilon."""
        return self.epsilon

    def log_prob_given(self, documents: Tensor, prefixes: Tensor) -> Tensor:
        """Return the logarithm of each weight over their sum; see the base class."""
        weights = self._weights(documents, prefixes)
        return torch.from_numpy(np.log(weights) - np.log(weights.sum(axis=1, keepdims=True)))

    def _drawn(self, documents: Tensor, prefixes: Tensor, generator: np.random.Generator | None) -> Tensor:
        return torch.from_numpy(weighted(self._weights(documents, prefixes), random_bytes(generator)))


@register_mechanism("encoder-dp-decoding")
class EncoderDecoding(WeightedWords):
    """Softmax of v / tau, where v is each logit less the highest one of its row, clipped to [-clip, 0].

    epsilon = 2 clip / tau, so tau follows from the two (method of DP-Prompt, with b2 - b1 = clip).

    Parameters
    ----------
    clip : float (default: 10.0)
        In nats, 1e-6 to 1e6: what is further below the best word counts as so far below it.

    Other parameters as of ``RewritingMechanism``; ``neighbours`` is not used.

    Raises
    ------
    SettingError
        If a parameter is out of range.
    """

    def __init__(self, vocabulary: Vocabulary, *, clip: float = 10.0, **given: Any) -> None:
        super().__init__(vocabulary, **given)
        self.clip = _checked("clip", clip)

    @property
    def parameters(self) -> str:
        """As of every mechanism that rewrites, with the clip."""
        return f"{super().parameters} clip={self.clip!r}"

    @property
    def temperature(self) -> float:
        """The tau that epsilon and clip amount to."""
        return 2 * self.clip / self.epsilon

    def _weights(self, documents: Tensor, prefixes: Tensor) -> NDArray[np.int64]:
        logits = self._logits(documents, prefixes)
        below = logits - logits.max(axis=1, keepdims=True)
        return self._table[_places(below / self.clip + 1)]


@register_mechanism("encoder-difference-clipping")
class EncoderDifference(WeightedWords):
    """Softmax of (p + clip(q - p, -C, C)) / tau, log-probabilities p without a document and q with it.

    Each word's difference is clipped by itself. p depends on released words only, so two documents' weights of a
    word are at most e^(2C/tau) apart, and normalisers, too: epsilon = 4 C / tau between any two documents, about half
    of it between one and none. As epsilon falls, so does C, and what remains is the text that the model writes
    without a document, at temperature tau.

    Parameters
    ----------
    temperature : float (default: 1.0)
        tau, 1e-6 to 1e6; C = epsilon tau / 4 follows.

    Other parameters as of ``RewritingMechanism``; ``neighbours`` is not used.

    Raises
    ------
    SettingError
        If a parameter is out of range.
    """

    def __init__(self, vocabulary: Vocabulary, *, temperature: float = 1.0, **given: Any) -> None:
        super().__init__(vocabulary, **given)
        self.temperature = _checked("temperature", temperature)

    @property
    def parameters(self) -> str:
        """As of every mechanism that rewrites, with the temperature."""
        return f"{super().parameters} temperature={self.temperature!r}"

    @property
    def clip(self) -> float:
        """C, in nats."""
        return self.epsilon * self.temperature / 4

    def _weights(self, documents: Tensor, prefixes: Tensor) -> NDArray[np.int64]:
        public = log_softmax(self._logits(None, prefixes), axis=1)
        moved = (log_softmax(self._logits(documents, prefixes), axis=1) - public) / self.clip
        base = np.floor(softmax(public / self.temperature, axis=1) * 2.0**_PUBLIC_BITS).astype(np.int64) + 1
        weights: NDArray[np.int64] = base * self._table[_places((moved + 1) / 2)]
        return weights


def _places(share: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return places in the table for shares of its length, those outside of [0, 1] at its ends."""
    places: NDArray[np.int64] = np.rint(share.clip(0, 1) * _STEPS).astype(np.int64)
    return places


def _checked(name: str, value: float) -> float:
    low, high = _RANGE
    if not low <= value <= high:
        raise SettingError(f"privacy.parameters: {name} = {value!r}: expected {low:g} to {high:g}")
    return float(value)


def _distinct(prefixes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the different rows of (M, t), at least one column or none, and for each row which one it is."""
    if prefixes.shape[1] == 0:  # torch.unique refuses it
        return prefixes[:1], torch.zeros(len(prefixes), dtype=torch.long)
    rows, which = torch.unique(prefixes, dim=0, return_inverse=True)
    return rows, which
