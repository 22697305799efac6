"""k-ary randomised response: a word is kept or becomes any other, and nothing depends on its neighbours.

With V words it releases

    Pr[y|x] = e^eps / (e^eps + V - 1)  if y = x,    1 / (e^eps + V - 1)  otherwise

(Kairouz, Oh and Viswanath, "Extremal mechanisms for local differential privacy", 2014, section 4.2): the
staircase with sets of one word. It keeps most words at an epsilon, and makes the worst of those it does not keep.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pdss_fl.privacy.mechanism import register_mechanism
from pdss_fl.privacy.staircase import Staircase
from pdss_fl.privacy.vocabulary import Vocabulary


@register_mechanism("randomized-response")
class RandomizedResponse(Staircase):
    """Pure epsilon-LDP per token, tight, without embeddings; sampler and composition are the staircase's.

    Parameters
    ----------
    vocabulary : Vocabulary
        V words.
    epsilon : float
        In nats per token, finite, above 0.
    neighbours : int (default: 1)
        As for every mechanism; a word's set is itself, whatever stands here.

    Raises
    ------
    SettingError
        If a parameter is out of range, or epsilon is so small that 128 bits cannot tell it from 0.
    """

    def __init__(self, vocabulary: Vocabulary, *, epsilon: float, neighbours: int = 1) -> None:
        super().__init__(vocabulary, epsilon=epsilon, neighbours=min(neighbours, 1))

    def _nearest_sets(self) -> Tensor:
        return torch.arange(len(self.vocabulary))[:, None]
