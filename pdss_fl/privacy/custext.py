"""CusText: every word has a short list of outputs, and the nearer of them are the likelier.

With a list C(x) of words, d_min and d_max the distances from x to the nearest and the farthest of them, it
releases

    Pr[y|x] ∝ exp(eps u(x, y) / 2)  for y in C(x),    u(x, y) = -(d(x, y) - d_min) / (d_max - d_min) in [-1, 0]

and never anything else (Chen et al., "A Customized Text Sanitization Mechanism with Differential Privacy",
Findings of ACL 2023, sections 4.1 and 4.2; K = 20 in their experiments). The distance is that of
``Vocabulary.distances``. What is guaranteed depends on which words share a list.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pdss_fl.errors import SettingError
from pdss_fl.privacy.audit import exact_epsilon
from pdss_fl.privacy.matrix import MatrixMechanism
from pdss_fl.privacy.mechanism import PrivacyGuarantee, register_mechanism
from pdss_fl.privacy.vocabulary import Vocabulary

_BLOCK_ROWS = 256
_ROUNDING = 1e-12  # more than float64 can be wrong about the worst case of a cluster


class _ListMechanism(MatrixMechanism):
    """The law above over the lists of a subclass."""

    def __init__(self, vocabulary: Vocabulary, *, epsilon: float, neighbours: int) -> None:
        super().__init__(vocabulary, epsilon=epsilon, neighbours=neighbours)
        if self.neighbours < 2:
            raise SettingError(f"privacy.neighbours = {neighbours!r}: {self.name} needs lists of at least 2 words of 3")
        self._lists = self._candidates()
        blocks = torch.split(torch.arange(len(vocabulary)), _BLOCK_ROWS)
        self._scores = torch.cat([self._scored(ids) for ids in blocks])

    @abstractmethod
    def _candidates(self) -> Tensor:
        """Return the list of every word, LongTensor (V, at least 2), the word itself among them, repeats allowed."""

    def _scored(self, ids: Tensor) -> Tensor:
        """Return u of the words' lists, float64 of the shape of the lists; 0 where all are equally near."""
        rows = torch.from_numpy(self.vocabulary.distances(ids, slice(0, len(self.vocabulary))))
        distance = rows.gather(1, self._lists[ids])
        low, high = distance.amin(dim=1, keepdim=True), distance.amax(dim=1, keepdim=True)
        return (low - distance) / torch.where(high > low, high - low, 1.0)

    def _log_weights(self, ids: Tensor, outputs: slice) -> Tensor:
        weights = torch.full((len(ids), outputs.stop - outputs.start), -torch.inf, dtype=torch.float64)
        lists = self._lists[ids]
        row, place = ((lists >= outputs.start) & (lists < outputs.stop)).nonzero(as_tuple=True)
        weights[row, lists[row, place] - outputs.start] = self.epsilon / 2 * self._scores[ids[row], place]
        return weights


@register_mechanism("custext")
class CusText(_ListMechanism):
    """Pure LDP between words of one cluster, and none between clusters: a released word discloses the cluster.

    Clusters are disjoint (the paper's conservative mapping): the most important word that is left and the K - 1
    words nearest to it make the next one; the last takes what is left, up to 2K - 1 words, so none stands alone.
    Every word of a cluster has the cluster as its list, so with scores in [-1, 0] the Exponential Mechanism is
    eps-LDP within it; stated is the exact worst case of all clusters, which is at most that.

    Parameters
    ----------
    vocabulary : Vocabulary
        V words with their distances, at least 3, the most important first.
    epsilon : float
        In nats per token, above 0, at most 1400.
    neighbours : int
        K, at least 2; taken as V-1 where it is larger.

    Raises
    ------
    SettingError
        If a parameter is out of range.
    """

    def _candidates(self) -> Tensor:
        self._clusters = disjoint_clusters(self.vocabulary, self.neighbours)
        longest = max(map(len, self._clusters))
        lists = torch.empty((len(self.vocabulary), longest), dtype=torch.long)
        for cluster in self._clusters:
            lists[cluster] = torch.cat([cluster, cluster[:1].expand(longest - len(cluster))])
        return lists

    @property
    def classes(self) -> Sequence[Tensor]:
        """The clusters, LongTensors (w,) of ids."""
        return self._clusters

    @cached_property
    def _worst_cluster(self) -> float:
        """The exact epsilon of the worst cluster, in nats."""
        matrices = [(self.epsilon / 2 * self._scores[c, : len(c)]).log_softmax(dim=1) for c in self._clusters]
        return max(map(exact_epsilon, matrices)) + _ROUNDING

    @property
    def guarantee(self) -> PrivacyGuarantee:
        """LDP within clusters, at the exact epsilon."""
        epsilon = self._worst_cluster
        return PrivacyGuarantee(
            "partition-ldp",
            epsilon,
            0.0,
            "token",
            f"Two words of one public cluster, of {self.neighbours} near words or more, lead to any released word with "
            f"probabilities at most e^{epsilon:g} apart; the cluster of every word is disclosed with certainty, "
            "and so is the number of words.",
        )


@register_mechanism("custext-overlapping")
class CusTextOverlapping(_ListMechanism):
    """No guarantee: every word has a list of its own, so most released words are impossible for most inputs.

    A list is the word's K nearest, itself included (the paper's aggressive mapping, the one of its experiments
    with "CusText+" and of attacks on it).

    Parameters
    ----------
    vocabulary : Vocabulary
        V words with their neighbours, at least 3.
    epsilon : float
        Nominal, above 0, at most 1400.
    neighbours : int
        K, at least 2; taken as V-1 where it is larger.

    Raises
    ------
    SettingError
        If a parameter is out of range.
    """

    def _candidates(self) -> Tensor:
        return self.vocabulary.neighbours(self.neighbours)

    @property
    def guarantee(self) -> PrivacyGuarantee:
        """None."""
        return PrivacyGuarantee(
            "none",
            math.inf,
            0.0,
            "token",
            f"Every word has its own list of {self.neighbours} outputs, so a released word rules out for certain all "
            f"words that do not list it: epsilon {self.epsilon:g} is nominal, the true one infinite.",
        )


def disjoint_clusters(vocabulary: Vocabulary, size: int) -> list[Tensor]:
    """Return disjoint clusters of near ids that hold all ids: LongTensors (size,), the last of size to 2 size - 1.

    Greedy: the lowest id that is left with those left that are nearest to it, the lower id first on a tie. Takes
    V / size products of all directions with one.
    """
    directions = vocabulary.directions
    squares = np.einsum("ij,ij->i", directions, directions, dtype=np.float64)
    left: NDArray[np.int64] = np.arange(len(vocabulary))
    clusters = []
    while len(left) >= 2 * size:
        # Exact, like Vocabulary.distances, and in the same order: what is missing is the same for all.
        squared = (squares - 2.0 * (directions @ directions[left[0]]))[left]
        nearest = np.argsort(squared, kind="stable")[:size]
        clusters.append(torch.from_numpy(left[nearest]))
        left = np.delete(left, nearest)
    return [*clusters, torch.from_numpy(left)]
