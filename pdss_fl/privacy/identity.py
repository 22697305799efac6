"""No perturbation: the non-private bound that a comparison needs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pdss_fl.privacy.mechanism import PrivacyGuarantee, PrivacyMechanism, register_mechanism
from pdss_fl.privacy.vocabulary import Vocabulary


@register_mechanism("identity")
class Identity(PrivacyMechanism):
    """Releases every token as it is; takes the parameters of all mechanisms and ignores them."""

    def __init__(self, vocabulary: Vocabulary, **_ignored: Any) -> None:
        self.vocabulary = vocabulary

    @property
    def guarantee(self) -> PrivacyGuarantee:
        """None."""
        return PrivacyGuarantee("none", math.inf, 0.0, "token", "Nothing is protected: words are released as they are.")

    @property
    def parameters(self) -> str:
        """The size of the vocabulary."""
        return f"vocabulary={len(self.vocabulary)}"

    @property
    def kept_tokens(self) -> float:
        """All of them."""
        return 1.0

    def perturb(self, ids: Tensor, generator: np.random.Generator | None = None) -> Tensor:
        """Return a copy of the ids."""
        return self.vocabulary.checked(ids).clone()

    def log_prob_rows(self, ids: Tensor) -> Tensor:
        """Return zeros on the diagonal and minus infinity elsewhere."""
        return torch.eye(len(self.vocabulary), dtype=torch.float64).log()[self.vocabulary.checked(ids)]
