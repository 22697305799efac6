"""Linkage: which question of a public bank a released document was made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pdss_fl.privacy.attacks.bayes import log_prob_between
from pdss_fl.privacy.mechanism import PrivacyMechanism

_IMPOSSIBLE = -1e12  # stands for the log of 0, which no assignment solver takes


@dataclass(frozen=True)
class Document:
    """The perturbed words of a prompt in the order sent: a question, LongTensor (n,), and choices, each (m_i,)."""

    question: Tensor
    choices: tuple[Tensor, ...] = ()

    @property
    def ids(self) -> Tensor:
        """All words in a row, LongTensor (tokens,)."""
        return torch.cat([self.question, *self.choices])

    def of_ids(self, ids: Tensor) -> Document:
        """Return a document of the same lengths with other words."""
        question, *choices = torch.split(ids, [len(self.question), *map(len, self.choices)])
        return Document(question, tuple(choices))


def link(
    documents: Sequence[Document],
    bank: Sequence[Document],
    mechanism: PrivacyMechanism | None,
    generator: np.random.Generator,
) -> list[int]:
    """Return the index of the likeliest bank entry for each released document, -1 where none is possible.

    The likelihood is the product of P(y|x) over the question's positions, times that of the best assignment
    of the released choices to different choices of the entry, since they are sent in a random order. Entries
    of other lengths are impossible; equally likely ones are decided by lot.

    Parameters
    ----------
    documents : Sequence[Document]
        What was released.
    bank : Sequence[Document]
        Public texts, encoded and filled to their public lengths as the private ones are.
    mechanism : PrivacyMechanism | None
        One with a matrix of probabilities; ``None`` links by the lengths alone.
    generator : numpy.random.Generator
        Decides ties.
    """
    table = _Likelihood(documents, bank, mechanism)
    found = []
    for document in documents:
        scores = table.scores(document)
        best = scores.max(initial=_IMPOSSIBLE)
        possible = np.flatnonzero(scores >= best - _TIE)
        found.append(int(generator.choice(possible)) if best > _IMPOSSIBLE / 2 else -1)
    return found


_TIE = 1e-9  # nats that the order of summation can make


class _Likelihood:
    """ln P(y|x) between all words of the bank and all released ones, and scores made of it."""

    def __init__(
        self, documents: Sequence[Document], bank: Sequence[Document], mechanism: PrivacyMechanism | None
    ) -> None:
        inputs, self.outputs = _words(bank), _words(documents)
        if mechanism is None:
            self.table = np.zeros((len(inputs), len(self.outputs)))
        else:
            log_prob = log_prob_between(mechanism, torch.from_numpy(inputs), torch.from_numpy(self.outputs))
            self.table = log_prob.clamp_min(_IMPOSSIBLE).numpy()
        width = max(len(entry.choices) for entry in bank)
        self.questions = _Texts([entry.question for entry in bank], inputs)
        self.choices = [
            _Texts([entry.choices[j] if j < len(entry.choices) else None for entry in bank], inputs)
            for j in range(width)
        ]

    def scores(self, document: Document) -> NDArray[np.float64]:
        """Return the log-likelihood of each of M entries, float64 (M,); of those that cannot be best, impossible.

        Every released choice taking the entry's best one is a bound. Assignments are solved from the highest
        bound downwards, until the next bound is below the best likelihood.
        """
        asked = self._of(self.questions, document.question)
        if not document.choices:
            return asked
        fits = np.full((len(asked), len(document.choices), len(self.choices)), _IMPOSSIBLE)
        for i, released in enumerate(document.choices):
            for j, own in enumerate(self.choices):
                fits[:, i, j] = self._of(own, released)
        bounds = asked + fits.max(axis=2, initial=_IMPOSSIBLE).sum(axis=1)
        scores, best = np.full(len(bounds), _IMPOSSIBLE), _IMPOSSIBLE / 2
        for entry in np.argsort(-bounds, kind="stable"):
            if bounds[entry] < best - _TIE:
                break
            scores[entry] = asked[entry] + _assigned(fits[entry])
            best = max(best, scores[entry])
        return scores

    def _of(self, texts: _Texts, released: Tensor) -> NDArray[np.float64]:
        columns, found = np.searchsorted(self.outputs, released.numpy()), np.full(len(texts.lengths), _IMPOSSIBLE)
        same = texts.lengths == len(columns)
        if same.any():
            found[same] = self.table[texts.rows[same, : len(columns)], columns].sum(axis=1)
        return found


class _Texts:
    """One text an entry, as rows of the table (M, longest), and its length (M,): -1 where there is none."""

    def __init__(self, texts: Sequence[Tensor | None], inputs: NDArray[np.int64]) -> None:
        self.lengths = np.array([-1 if text is None else len(text) for text in texts])
        self.rows = np.zeros((len(texts), max(0, self.lengths.max())), dtype=np.int64)
        for row, text in zip(self.rows, texts, strict=True):
            if text is not None:
                row[: len(text)] = np.searchsorted(inputs, text.numpy())


def _assigned(fit: NDArray[np.float64]) -> float:
    """Return the highest log-likelihood of giving every released choice one of the entry's own."""
    if fit.shape[0] > fit.shape[1]:
        return _IMPOSSIBLE
    return float(fit[linear_sum_assignment(fit, maximize=True)].sum())


def _words(documents: Sequence[Document]) -> NDArray[np.int64]:
    return np.unique(torch.cat([document.ids for document in documents]).numpy())
