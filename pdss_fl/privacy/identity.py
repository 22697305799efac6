"""No perturbation at all: the non-private bound that a comparison needs."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from pdss_fl.privacy.mechanism import PrivacyGuarantee, PrivacyMechanism, register_mechanism


@register_mechanism("identity")
class Identity(PrivacyMechanism):
    """Releases every word as it is; a node allows it by name or it is refused."""

    @property
    def guarantee(self) -> PrivacyGuarantee:
        """Nothing."""
        return PrivacyGuarantee("none", math.inf, 0.0, "token", "Words are released as they are; nothing is protected.")

    @property
    def parameters(self) -> str:
        """The vocabulary's size; there is nothing else."""
        return f"vocabulary={len(self.vocabulary)}"

    @property
    def kept_tokens(self) -> float:
        """All of them."""
        return 1.0

    def perturb(self, ids: Tensor, generator: np.random.Generator | None = None) -> Tensor:
        """Return the ids; see the base class."""
        return ids.clone()
