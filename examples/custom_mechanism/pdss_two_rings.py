"""A staircase with a landing: k near words at e^eps, the next 2k at e^(eps/2), all others at 1.

Every input has rings of the same sizes, so the sum of the weights is the same for all, and two inputs' ratio
is at most e^eps / 1: pure epsilon-LDP, tight. The sampler of ``MatrixMechanism`` is exact for these weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pdss_fl.privacy import PrivacyGuarantee, Vocabulary
from pdss_fl.privacy.matrix import MatrixMechanism

_ROUNDED_DOWN = 1 - 1e-12  # so that the exponential's own rounding cannot pass e^eps


class TwoRings(MatrixMechanism):
    """Pure epsilon-LDP per token; takes ``epsilon`` and ``neighbours`` (k) like every mechanism."""

    def __init__(self, vocabulary: Vocabulary, *, epsilon: float, neighbours: int) -> None:
        super().__init__(vocabulary, epsilon=epsilon, neighbours=neighbours)
        self._rings = vocabulary.neighbours(3 * self.neighbours)  # nearest first, the word itself before all
        self._weights = torch.full(self._rings.shape[1:], self.epsilon / 2 * _ROUNDED_DOWN, dtype=torch.float64)
        self._weights[: self.neighbours] *= 2

    @property
    def guarantee(self) -> PrivacyGuarantee:
        """Pure LDP of every token."""
        promise = f"Any two words lead to any released word with probabilities at most e^{self.epsilon:g} apart."
        return PrivacyGuarantee("pure-ldp", self.epsilon, 0.0, "token", promise)

    def _log_weights(self, ids: Tensor, outputs: slice) -> Tensor:
        weights = torch.zeros(len(ids), len(self.vocabulary), dtype=torch.float64)
        return weights.scatter_(1, self._rings[ids], self._weights.expand(len(ids), -1))[:, outputs]
