"""Embedding inversion: the words nearest to the released one, by the public embeddings."""

from __future__ import annotations

from torch import Tensor

from pdss_fl.privacy.attacks.caps import Targets
from pdss_fl.privacy.vocabulary import Vocabulary


def nearest_words(vocabulary: Vocabulary, k: int, targets: Targets) -> Tensor:
    """Return the ``k`` nearest words to each released one, itself first, as LongTensor (n, k).

    Success is a private word among them: what Yue et al. (2021) and RANTEXT call the attack at k. The attacker
    knows neither the mechanism's probabilities nor how frequent words are.
    """
    return vocabulary.neighbours(k)[targets.released]
