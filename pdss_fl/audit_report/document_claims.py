"""What the epsilon of a mechanism that rewrites whole documents really is, as far as a few documents can show it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pdss_fl.privacy.audit import audit, exact_epsilon
from pdss_fl.privacy.audit_rows import ROUNDING
from pdss_fl.privacy.decoding import WordByWord
from pdss_fl.privacy.rewriting import EncoderComposed, RewritingMechanism

_DOCUMENTS = 32
_PREFIXES = 4


@dataclass(frozen=True)
class Found:
    """The epsilon of one released word over some documents, whether it is the exact one, and how it was found."""

    epsilon: float
    exact: bool
    how: str

    def holds(self, claimed: float) -> bool | None:
        """Say whether a claim holds; ``None`` where what was found is only a lower bound that does not refute it."""
        if self.epsilon > claimed + ROUNDING:
            return False
        return True if self.exact else None


def measure_documents(mechanism: RewritingMechanism, released: Sequence[Tensor]) -> Found:
    """Compare the laws of several documents, for which released ones stand in.

    Parameters
    ----------
    mechanism : RewritingMechanism
        Any.
    released : Sequence[Tensor]
        Documents that it released, LongTensors (n_i,), at least one with a word.
    """
    if isinstance(mechanism, EncoderComposed):
        how = "all pairs of words that the encoder can write, at one place; a document's words add up"
        return Found(audit(mechanism.staircase).epsilon, True, how)
    documents = _alike(released)
    if not isinstance(mechanism, WordByWord):
        law = mechanism.log_prob_documents(documents, torch.stack(mechanism.perturb_documents(list(documents))))
        return Found(
            exact_epsilon(law), False, f"{len(documents)} documents and what each leads to, all words together"
        )
    worst, steps = 0.0, sorted({round(i * (documents.shape[1] - 1) / _PREFIXES) for i in range(_PREFIXES + 1)})
    for t in steps:
        prefixes = documents[-1:, :t].expand(len(documents), -1)
        worst = max(worst, exact_epsilon(mechanism.log_prob_given(documents, prefixes)))
    return Found(worst, False, f"the exact laws of {len(documents)} documents after {len(steps)} released prefixes")


def _alike(released: Sequence[Tensor]) -> Tensor:
    """Return up to 32 different documents of the most frequent length, LongTensor (B, n)."""
    length = Counter(len(ids) for ids in released if len(ids)).most_common(1)[0][0]
    different = {tuple(ids.tolist()) for ids in released if len(ids) == length}
    return torch.tensor(sorted(different)[:_DOCUMENTS])
