"""Rewriting: a model reads a whole private document, and writes as many words that leave in its place.

The model comes in as a ``Rewriter``, made from public data only. Its weights promise nothing; what a mechanism of
this kind promises comes from how the next word is drawn, whatever the model says:

- The unit is the document. After any released words, any two documents of as many words lead to any next word with
  probabilities at most e^eps apart. That eps is what one released word adds, ``guarantee.epsilon``; n of them are
  worth n eps between any two documents, or what ``compose`` states.
- There is no smaller figure for one private word: the law of every released word depends on all private ones.
- A document of n words becomes n released ones, so the number tells what the public length of a prompt tells.

Here are the two that write greedily: one that promises nothing, and one whose output goes through the staircase.
``decoding`` has those that draw.
"""

from __future__ import annotations

import math
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pdss_fl.errors import SettingError
from pdss_fl.privacy.accounting import best_composition
from pdss_fl.privacy.mechanism import DocumentGuarantee, PrivacyGuarantee, PrivacyMechanism, register_mechanism
from pdss_fl.privacy.staircase import Staircase
from pdss_fl.privacy.vocabulary import Vocabulary

Rewriter = Callable[[Tensor | None, Tensor], Tensor]
"""``rewriter(documents, prefixes)``: logits of the next word, finite, of shape (B, V).

documents : LongTensor (B, n) of ids, filled to a public length, or ``None``: what is written without a document.
prefixes : LongTensor (B, t) of the ids released so far.

A row's logits depend on that row alone. Logits without a document depend on nothing private.
"""

_BATCH = 256  # documents that are rewritten together
_PUBLIC_DOCUMENTS, _PUBLIC_WORDS = 128, 8  # with which kept words are counted
_LARGEST = 1e100  # a logit, so that no difference of two is infinite


class RewritingMechanism(PrivacyMechanism):
    """A mechanism whose released words depend on the whole document; unit ``document``.

    Parameters
    ----------
    vocabulary : Vocabulary
        V words.
    epsilon : float
        What one released word adds to a document's, in nats, finite, above 0.
    neighbours : int
        k, at least 1; taken as V-1 where it is larger. Its meaning is the subclass's.
    rewriter : Rewriter | None (default: None)
        Made from public data only; required, and ``None`` only so that the error can say where it comes from.
    model : str (default: "")
        Names ``rewriter`` for the ledger: releases under equal names are sent again. Required.

    Raises
    ------
    SettingError
        If a parameter is out of range, or there is no rewriter or no name of it.
    """

    not_settable = PrivacyMechanism.not_settable | {"model"}  # comes with the rewriter

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        epsilon: float,
        neighbours: int,
        rewriter: Rewriter | None = None,
        model: str = "",
    ) -> None:
        super().__init__(vocabulary, epsilon=epsilon, neighbours=neighbours)
        if rewriter is None:
            raise SettingError(
                f"privacy.mechanism = {self.name!r} rewrites with a trained encoder: name one in encoder-decoder.model"
            )
        if not model:
            raise SettingError("model is empty: name the rewriter for the ledger")
        self._rewriter, self._model = rewriter, model
        self._kept: float | None = None

    @abstractmethod
    def _released(self, documents: Tensor, generator: np.random.Generator | None) -> Tensor:
        """Return what is released of documents (B, n) of valid ids, LongTensor (B, n)."""

    @abstractmethod
    def log_prob_documents(self, documents: Tensor, released: Tensor) -> Tensor:
        """Return the exact log-probability of every released document, float64 of shape (B, M).

        Parameters
        ----------
        documents : LongTensor, shape (B, n)
            Private documents.
        released : LongTensor, shape (M, n)
            Released ones.
        """

    @property
    def parameters(self) -> str:
        """As of every mechanism, with the model, and that every epsilon is one of documents."""
        return f"{super().parameters} model={self._model} unit=document"

    @property
    def kept_tokens(self) -> float:
        """The share of words that stay where they are.

        Counted on 128 documents of 8 public words each, drawn at random: real ones, which the model was made for,
        may keep more or fewer.
        """
        if self._kept is None:
            generator = np.random.default_rng(0)  # no private word is rewritten here
            shape = (_PUBLIC_DOCUMENTS, _PUBLIC_WORDS)
            documents = torch.from_numpy(generator.integers(len(self.vocabulary), size=shape))
            released = torch.stack(self.perturb_documents(list(documents), generator))
            self._kept = float((released == documents).double().mean())
        return self._kept

    def perturb(self, ids: Tensor, generator: np.random.Generator | None = None) -> Tensor:
        """Rewrite one document, LongTensor (n,), as n words; see the base class."""
        return self.perturb_documents([ids], generator)[0]

    def perturb_documents(
        self, documents: Sequence[Tensor], generator: np.random.Generator | None = None
    ) -> list[Tensor]:
        """Rewrite several documents, LongTensors (n_i,), each by itself; those of one length in batches.

        Raises
        ------
        ValueError
            If a document is not a LongTensor within 0 .. V-1, or logits are not (B, V) or not finite.
        """
        released = [self.vocabulary.checked(document).clone() for document in documents]
        for places in same_length(documents, _BATCH):
            rows = self._released(torch.stack([documents[i] for i in places]), generator)
            for i, row in zip(places, rows, strict=True):
                released[i] = row
        return released

    def log_prob_rows(self, ids: Tensor) -> Tensor:
        """Raise ``NotImplementedError`` with the reason."""
        raise NotImplementedError(
            f"mechanism {self.name!r} states no matrix of words: what is released depends on the whole document, "
            "whose law log_prob_documents states"
        )

    def compose(self, tokens: int, delta: float) -> DocumentGuarantee:
        """Return what a document of ``tokens`` released words is worth, for laws that depend on earlier words."""
        guarantee = self.guarantee
        if not guarantee.for_any_inputs:
            return super().compose(tokens, delta)
        return best_composition(guarantee.epsilon, tokens, delta, bounded_range=self.bounded_range)

    def _logits(self, documents: Tensor | None, prefixes: Tensor) -> NDArray[np.float64]:
        """Return the rewriter's logits, checked, float64 (B, V)."""
        logits = self._rewriter(documents, prefixes).detach().cpu().double().numpy()
        shape = (len(prefixes), len(self.vocabulary))
        if logits.shape != shape or not (np.abs(logits) <= _LARGEST).all():
            raise ValueError(f"a rewriter must return {shape} finite numbers, not {logits.shape} or not finite")
        return logits

    def _greedy(self, documents: Tensor) -> Tensor:
        """Return the likeliest word at each place, given the likeliest before it, LongTensor (B, n)."""
        written = documents[:, :0]
        for _ in range(documents.shape[1]):
            likeliest = self._logits(documents, written).argmax(axis=1)  # the lowest id on a tie
            written = torch.cat([written, torch.from_numpy(likeliest)[:, None]], dim=1)
        return written


@register_mechanism("encoder-empirical")
class EncoderEmpirical(RewritingMechanism):
    """The encoder's likeliest words as they are, as PDSS (arXiv 2406.12403) has it: kind ``none``.

    ``epsilon`` and ``neighbours`` have no meaning here.
    """

    @property
    def guarantee(self) -> PrivacyGuarantee:
        """None."""
        return PrivacyGuarantee(
            "none",
            math.inf,
            0.0,
            "document",
            "Nothing is promised: the encoder writes its likeliest words, and two documents for which they differ are "
            "told apart for certain.",
        )

    @property
    def parameters(self) -> str:
        """The model and the size of the vocabulary."""
        return f"vocabulary={len(self.vocabulary)} model={self._model} unit=document"

    def log_prob_documents(self, documents: Tensor, released: Tensor) -> Tensor:
        """Return 0 for the one document that can come out, minus infinity for all others; see the base class."""
        same = (self._greedy(documents)[:, None, :] == released[None]).all(dim=2)
        return same.double().log()

    def _released(self, documents: Tensor, generator: np.random.Generator | None) -> Tensor:
        return self._greedy(documents)


@register_mechanism("encoder-composed")
class EncoderComposed(RewritingMechanism):
    """The encoder's likeliest words, each replaced by the nearest-set staircase before it leaves.

    What the encoder writes is a function of the document, and any two documents lead to n words that may differ at
    every place. So a document is worth what n staircase words are, by the same exact composition, and no word of
    the private document is worth less: epsilon times the public length, never epsilon.
    """

    def __init__(self, vocabulary: Vocabulary, **given: Any) -> None:
        super().__init__(vocabulary, **given)
        self.staircase = Staircase(vocabulary, epsilon=self.epsilon, neighbours=self.neighbours)

    @property
    def guarantee(self) -> PrivacyGuarantee:
        """Pure LDP of documents, so much for each released word."""
        return document_guarantee(self.epsilon)

    def compose(self, tokens: int, delta: float) -> DocumentGuarantee:
        """Return what ``tokens`` words of the staircase are worth."""
        return self.staircase.compose(tokens, delta)

    def log_prob_documents(self, documents: Tensor, released: Tensor) -> Tensor:
        """Return the staircase's law of what the encoder writes; see the base class."""
        law = torch.zeros(len(documents), len(released), dtype=torch.float64)
        for written, out in zip(self._greedy(documents).T, released.T, strict=True):
            law += self.staircase.log_prob_rows(written)[:, out]
        return law

    def _released(self, documents: Tensor, generator: np.random.Generator | None) -> Tensor:
        return self.staircase.perturb(self._greedy(documents).flatten(), generator).reshape(documents.shape)


def document_guarantee(epsilon: float) -> PrivacyGuarantee:
    """Return pure LDP of documents with ``epsilon`` nats for each released word."""
    return PrivacyGuarantee(
        "pure-ldp",
        epsilon,
        0.0,
        "document",
        f"After any released words, any two documents lead to any next word with probabilities at most e^{epsilon:g} "
        "apart; the released words add up to the document's epsilon, no single private word has a smaller one, and "
        "their number is not protected.",
    )


def same_length(documents: Sequence[Tensor], most: int = sys.maxsize) -> Iterator[list[int]]:
    """Yield the places of documents (n_i,) of one length, above 0, at most so many at a time, in the order given."""
    lengths = [len(document) for document in documents]
    for length in dict.fromkeys(lengths):
        places = [i for i, n in enumerate(lengths) if n == length > 0]
        for start in range(0, len(places), most):
            yield places[start : start + most]
