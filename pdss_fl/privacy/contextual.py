"""The staircase with a nearest set that fits what was released of the same document before.

Of the 4k words nearest to x, the near set N(x; prefix) holds x itself and the k-1 others with the largest

    cosine(x, y) + weight * score(y | prefix),

where prefix is what was released of the document so far and the score comes from a public model, such as a
language model's log-probability of the next word. Raw words around x are never looked at; Cape
(arXiv 2505.05922) and DP-MLM do, and so lose the guarantee of a single word.

Given any prefix, every input has exactly k near words: the law is the staircase's, and any two inputs' ratio is
at most e^eps. A raw word changes its own law only, as later ones look at what was released: the epsilon of a token
stands. The staircase's exact pair dominates the law after every prefix, so its document epsilon, which holds for
adaptive use, stands as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pdss_fl.errors import SettingError
from pdss_fl.privacy.mechanism import PrivacyGuarantee, register_mechanism
from pdss_fl.privacy.sampling import bernoulli, random_bytes, uniform
from pdss_fl.privacy.staircase import Staircase, outside
from pdss_fl.privacy.vocabulary import Vocabulary

NextWord = Callable[[Sequence[int]], Tensor]
"""Takes the ids released so far, and returns a score for every id, shape (V,): the higher, the likelier next."""

_CANDIDATES = 4  # times k


@register_mechanism("contextual")
class Contextual(Staircase):
    """Pure epsilon-LDP per token, whatever was released before; without ``next_word`` the plain staircase.

    Parameters
    ----------
    vocabulary : Vocabulary
        V words with their neighbours.
    epsilon : float
        In nats per token, finite, above 0.
    neighbours : int
        k, at least 1; taken as V-1 where it is larger.
    next_word : NextWord | None (default: None)
        Made from public data only. ``None`` scores every word the same.
    model : str (default: "")
        Names ``next_word`` for the ledger: releases under equal names are sent again. Required with it.
    weight : float (default: 0.05)
        What one unit of the score is worth in units of cosine, at least 0 and finite.

    Raises
    ------
    SettingError
        If a parameter is out of range or ``next_word`` has no name.
    """

    not_settable = Staircase.not_settable | {"model"}  # comes with next_word

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        epsilon: float,
        neighbours: int,
        next_word: NextWord | None = None,
        model: str = "",
        weight: float = 0.05,
    ) -> None:
        super().__init__(vocabulary, epsilon=epsilon, neighbours=neighbours)
        if next_word is not None and not model:
            raise SettingError("model is empty: name the model that scores the next word")
        if not (math.isfinite(weight) and weight >= 0):
            raise SettingError(f"privacy.parameters: weight = {weight!r}: expected a finite number of at least 0")
        self._next_word, self._model, self._weight = next_word, model, weight
        self._candidates = vocabulary.neighbours(_CANDIDATES * self.neighbours)

    @property
    def parameters(self) -> str:
        """As of every mechanism, with the model and its weight where there is one."""
        if self._next_word is None:
            return super().parameters
        return f"{super().parameters} context={self._model} weight={self._weight!r}"

    @property
    def guarantee(self) -> PrivacyGuarantee:
        """Pure LDP of every token given all that was released before it."""
        return PrivacyGuarantee(
            "pure-ldp",
            self.epsilon,
            0.0,
            "token",
            f"After any released words, any two words lead to any released word with probabilities at most "
            f"e^{self.epsilon:g} apart, whatever an attacker knows; the words of a text add up, and their number is "
            "not protected.",
        )

    def perturb(self, ids: Tensor, generator: np.random.Generator | None = None) -> Tensor:
        """Replace the tokens of one document, first to last; see the base class.

        Raises
        ------
        ValueError
            If ``ids`` is not a LongTensor (n,) within 0 .. V-1, or scores are not (V,) or hold NaN.
        """
        if self._next_word is None:
            return super().perturb(ids, generator)
        n, source = len(self.vocabulary.checked(ids)), random_bytes(generator)
        stays_near = bernoulli(self._threshold, n, source)
        near_rank = uniform(self.neighbours, n, source)
        far_rank = uniform(len(self.vocabulary) - self.neighbours, n, source)
        released: list[int] = []
        for i in range(n):
            near = self._near_after(released, ids[i : i + 1])
            one = near[0, near_rank[i]] if stays_near[i] else outside(near, far_rank[i : i + 1])[0]
            released.append(int(one))
        return torch.tensor(released, dtype=torch.long)

    def perturb_documents(
        self, documents: Sequence[Tensor], generator: np.random.Generator | None = None
    ) -> list[Tensor]:
        """Replace the tokens of several documents, LongTensors (n_i,), each in its own context."""
        return [self.perturb(document, generator) for document in documents]

    def log_prob_rows(self, ids: Tensor) -> Tensor:
        """Return the staircase's rows where nothing depends on context; see the base class.

        Raises
        ------
        NotImplementedError
            With a model: the rows depend on what was released before; see ``log_prob_given``.
        """
        if self._next_word is not None:
            raise NotImplementedError(
                "a word's probabilities depend on what was released before it; log_prob_given states them"
            )
        return super().log_prob_rows(ids)

    def log_prob_given(self, prefix: Sequence[int]) -> Tensor:
        """Return the exact log-probabilities of the next token, float64 of shape (V, V), row = input.

        Parameters
        ----------
        prefix : Sequence[int]
            Ids that were released before it in the same document.
        """
        every = torch.arange(len(self.vocabulary))
        if self._next_word is None:
            return super().log_prob_rows(every)
        plain = super().log_prob_rows(every[:1])  # two values, which are the same after any prefix
        rows = torch.full((len(every), len(every)), float(plain.min()), dtype=torch.float64)
        return rows.scatter_(1, torch.from_numpy(self._near_after(prefix, every)), float(plain.max()))

    def _near_after(self, prefix: Sequence[int], ids: Tensor) -> NDArray[np.int64]:
        """Return the near sets of ``ids`` (n,) after what was released, shape (n, k), themselves first."""
        if self._next_word is None:
            return self._near[ids].numpy()
        scores = self._next_word(prefix).double().numpy()
        if scores.shape != (len(self.vocabulary),) or np.isnan(scores).any():
            raise ValueError(f"next_word must return (V,) numbers, not {scores.shape} or NaN")
        candidates = self._candidates[ids].numpy()
        cosines = self.vocabulary.cosines(ids, slice(0, len(self.vocabulary)))
        fit = np.take_along_axis(cosines, candidates, axis=1) + self._weight * scores[candidates]
        fit[:, 0] = np.inf  # the word itself
        best = np.argsort(-fit, axis=1, kind="stable")[:, : self.neighbours]  # on a tie the nearer one
        return np.take_along_axis(candidates, best, axis=1)
