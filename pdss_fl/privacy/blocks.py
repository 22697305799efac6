"""Randomised response over blocks of like words, each released as one public word that stands for it.

The V words are divided into M = V/k public blocks, k words each on average; every block has a head, one of
its words. With C(x) the block of x, what is released of x is

    the head of C(x) with probability e^eps / Z,    any other head with 1 / Z,    Z = e^eps + M - 1.

What is exact about it: an output's probabilities for two inputs are equal or e^eps apart, so it is pure
epsilon-LDP and tight; like the staircase it is an extremal mechanism in the sense of Kairouz, Oh and
Viswanath (2014), whose outputs are a part of the vocabulary. With all words equally likely the best attack on one
release succeeds with M/V e^eps / Z, like the one on the staircase with k neighbours. Two words of a block have
the same row: however often a word is released, it tells its block and no more. (Other words around it may.) The
staircase's overlapping sets do not have that: a word that is released twice is in the few sets that both
releases point to.

The mass on like words is as large, though blocks cannot give every word its k nearest: a head is chosen to be
near to all of its block, which a random one of the k nearest is not. ``tests/benchmarks/bench_extremal.py``
measures both, beside the optimum of the linear program over all epsilon-LDP mechanisms.
"""

from __future__ import annotations

import heapq
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pdss_fl.privacy.accounting import staircase_document
from pdss_fl.privacy.mechanism import DocumentGuarantee, PrivacyGuarantee, PrivacyMechanism, register_mechanism
from pdss_fl.privacy.sampling import BITS, bernoulli, random_bytes, uniform
from pdss_fl.privacy.staircase import near_threshold
from pdss_fl.privacy.vocabulary import Vocabulary

_LIKE_WORDS = 8  # times k: how many nearest words a head can be chosen for
_BLOCK_ROWS = 256


@register_mechanism("blocks")
class Blocks(PrivacyMechanism):
    """Pure epsilon-LDP per token, and so is the sampler as it runs; see ``near_threshold``.

    Parameters
    ----------
    vocabulary : Vocabulary
        V words with their cosines.
    epsilon : float
        In nats per token, finite, above 0.
    neighbours : int
        k, at least 1: the mean size of a block. No block is smaller than k/2, and there are at least two.

    Raises
    ------
    SettingError
        If a parameter is out of range, or epsilon is so small that 128 bits cannot tell it from 0.
    """

    def __init__(self, vocabulary: Vocabulary, *, epsilon: float, neighbours: int) -> None:
        super().__init__(vocabulary, epsilon=epsilon, neighbours=neighbours)
        self.heads, self.block = partition(vocabulary, self.neighbours)
        self._threshold = near_threshold(self.epsilon, 1, len(self.heads))

    @property
    def guarantee(self) -> PrivacyGuarantee:
        """Pure LDP of every token."""
        return PrivacyGuarantee(
            "pure-ldp",
            self.epsilon,
            0.0,
            "token",
            f"Any two words lead to any released word with probabilities at most e^{self.epsilon:g} apart, and two of "
            "a block with equal ones, whatever an attacker knows; the words of a text add up, and their number is "
            "not protected.",
        )

    @property
    def kept_tokens(self) -> float:
        """The share of tokens that come out unchanged: only heads do."""
        return float(self._threshold / 2**BITS) * len(self.heads) / len(self.vocabulary)

    def perturb(self, ids: Tensor, generator: np.random.Generator | None = None) -> Tensor:
        """Replace every token independently of the others; see the base class.

        Raises
        ------
        ValueError
            If ``ids`` is not a LongTensor (n,) within 0 .. V-1.
        """
        own, n, source = self.block[self.vocabulary.checked(ids).numpy()], len(ids), random_bytes(generator)
        stays = bernoulli(self._threshold, n, source)
        other = uniform(len(self.heads) - 1, n, source)
        other += other >= own
        return torch.from_numpy(self.heads[np.where(stays, own, other)])

    def log_prob_rows(self, ids: Tensor) -> Tensor:
        """Return the log-probabilities that the sampler really has, float64 of shape (n, V), row = input."""
        whole, own = 2**BITS, self.heads[self.block[self.vocabulary.checked(ids).numpy()]]
        rows = torch.full((len(ids), len(self.vocabulary)), -torch.inf, dtype=torch.float64)
        rows[:, self.heads] = math.log((whole - self._threshold) / (whole * (len(self.heads) - 1)))
        rows[torch.arange(len(ids)), own] = math.log(self._threshold / whole)
        return rows

    def compose(self, tokens: int, delta: float) -> DocumentGuarantee:
        """Return the epsilon of ``tokens`` tokens at ``delta``: the exact one, or basic composition.

        Two inputs of different blocks dominate every other pair; they are a staircase's with one near word of M.
        """
        return staircase_document(self.epsilon, 1, len(self.heads), tokens, delta)


def partition(vocabulary: Vocabulary, k: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the heads' ids, shape (M,), ascending, and the block 0 .. M-1 of every id, shape (V,).

    M = V // k, at least 2. Heads are chosen one by one so that the sum over all words of the cosine with the
    nearest head rises by as much as possible (greedy facility location). Every word then joins its nearest
    head, and blocks below k/2 words take the words of larger ones that lose least by it.

    Parameters
    ----------
    vocabulary : Vocabulary
        V words; blanks are in it like any other.
    k : int
        1 .. V-1.
    """
    heads = np.sort(_choose_heads(vocabulary, max(2, len(vocabulary) // k), _LIKE_WORDS * k))
    block, cosine = _nearest_heads(vocabulary, heads)
    _fill_up(vocabulary, heads, block, cosine, (k + 1) // 2)
    return heads, block


def _choose_heads(vocabulary: Vocabulary, count: int, like: int) -> NDArray[np.int64]:
    """Return ``count`` ids; only a word's ``like`` nearest can stand for it here, which keeps it fast."""
    size, near = len(vocabulary), vocabulary.neighbours(like).numpy()
    cosine = _cosines(vocabulary, near)
    order = np.argsort(near, axis=None, kind="stable")  # by candidate: the words that it is near to
    words, values = order // near.shape[1], cosine.ravel()[order]
    ends = np.searchsorted(near.ravel()[order], np.arange(size + 1))
    covered, chosen = np.zeros(size), np.empty(count, dtype=np.int64)
    # A gain only falls as heads are added: an old one that is still the largest after an update is the best.
    heap = [(-float(values[ends[j] : ends[j + 1]].sum()), j) for j in range(size)]
    heapq.heapify(heap)
    for i in range(count):
        while True:
            _, j = heap[0]
            mine = slice(ends[j], ends[j + 1])
            gain = float(np.maximum(values[mine] - covered[words[mine]], 0.0).sum())
            heapq.heapreplace(heap, (-gain, j))
            if heap[0][1] == j:
                break
        chosen[i] = heapq.heappop(heap)[1]
        covered[words[mine]] = np.maximum(covered[words[mine]], values[mine])
    return chosen


def _cosines(vocabulary: Vocabulary, near: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return each word's cosines with its ``near`` ones, shape (V, n), 0 where negative.

    With itself, which is the first, it has no more than with the best other: so no word becomes a head for its
    own sake, and hardly a block is left with one word.
    """
    rows = []
    for start in range(0, len(near), _BLOCK_ROWS):
        ids = torch.arange(start, min(start + _BLOCK_ROWS, len(near)))
        row = vocabulary.cosines(ids, slice(0, len(near))).astype(np.float64)
        rows.append(np.take_along_axis(row, near[ids.numpy()], axis=1).clip(min=0.0))
    cosine = np.concatenate(rows)
    cosine[:, 0] = cosine[:, 1:].max(axis=1, initial=0.0)
    return cosine


def _nearest_heads(vocabulary: Vocabulary, heads: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return each word's nearest head as an index into ``heads``, and its cosine; a head's is itself."""
    size = len(vocabulary)
    block, cosine = np.empty(size, dtype=np.int64), np.empty(size, dtype=np.float32)
    for start in range(0, size, _BLOCK_ROWS):
        ids = torch.arange(start, min(start + _BLOCK_ROWS, size))
        rows = vocabulary.cosines(ids, slice(0, size))[:, heads]
        block[ids], cosine[ids] = rows.argmax(axis=1), rows.max(axis=1)
    block[heads] = np.arange(len(heads))
    return block, cosine


def _fill_up(
    vocabulary: Vocabulary,
    heads: NDArray[np.int64],
    block: NDArray[np.int64],
    cosine: NDArray[np.float32],
    smallest: int,
) -> None:
    """Move words into blocks below ``smallest``, in place; blocks that give keep as many themselves."""
    sizes = np.bincount(block, minlength=len(heads))
    for b in np.flatnonzero(sizes < smallest):
        loss = cosine - vocabulary.cosines(torch.from_numpy(heads[b : b + 1]), slice(0, len(block)))[0]
        loss[heads] = np.inf
        for word in np.argsort(loss, kind="stable"):
            if sizes[b] >= smallest:
                break
            if sizes[block[word]] > smallest:
                sizes[block[word]] -= 1
                sizes[b] += 1
                block[word] = b
