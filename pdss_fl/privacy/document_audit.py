"""What a rewriting mechanism really guarantees of documents, exactly, where all released ones can be listed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pdss_fl.privacy.audit_rows import ROUNDING
from pdss_fl.privacy.mechanism import DocumentGuarantee
from pdss_fl.privacy.rewriting import RewritingMechanism

MOST = 2**22
"""Probabilities that an audit looks at: of each document, that of each released one."""

_PAIRS = 2**21  # of a document with a document, times the released ones, whose delta is measured
_DELTAS = (1e-5, 0.05)


@dataclass(frozen=True)
class DocumentAudit:
    """What was measured of documents of ``words`` words.

    Parameters
    ----------
    words : int
        Of every document, private or released.
    documents : int
        Private documents that were compared, each with each.
    claimed : float
        Epsilon of such a document, in nats: what ``compose`` states, or ``words`` times the guarantee's, if that
        is less; infinite where nothing is claimed.
    epsilon : float
        The worst case that was found, in nats; infinite if something can be released of one document only. It is
        the exact one if all documents were compared.
    worst : tuple[Tensor, Tensor, Tensor]
        Two private documents and a released one with ln of the ratio of probabilities = ``epsilon``.
    excess : float
        By how much the largest delta at a composed epsilon is above the stated one, over several deltas and some
        documents (all, if they are few); at most 0 if all hold.
    row_error : float
        The most that the probabilities of all released documents differ from one in their sum.
    """

    words: int
    documents: int
    claimed: float
    epsilon: float
    worst: tuple[Tensor, Tensor, Tensor]
    excess: float
    row_error: float

    @property
    def holds(self) -> bool:
        """Whether the law is one, and nothing that is claimed was refuted."""
        return self.row_error <= ROUNDING and self.epsilon <= self.claimed + ROUNDING and self.excess <= ROUNDING

    @property
    def verdict(self) -> str:
        """Why, in a sentence."""
        claim = f"documents of {self.words} words claim epsilon {self.claimed:.10g}"
        found = f"the worst case over {self.documents} of them is {self.epsilon:.10g}"
        if self.row_error > ROUNDING:
            return f"no probabilities: those of all released documents sum to one but for {self.row_error:.3g}"
        if self.excess > ROUNDING:
            return f"{claim}; a composed delta is exceeded by {self.excess:.3g}"
        return f"{claim}, {'and' if self.holds else 'but'} {found}"


def every_document(vocabulary: int, words: int) -> Tensor:
    """Return all documents of some words over a vocabulary of some size, LongTensor (V^n, n)."""
    if vocabulary**words > MOST:
        raise ValueError(f"{vocabulary}^{words} documents are too many to list; at most {MOST}")
    return torch.cartesian_prod(*[torch.arange(vocabulary)] * words).reshape(-1, words)


def audit_documents(mechanism: RewritingMechanism, words: int, documents: Tensor | None = None) -> DocumentAudit:
    """Compare the laws of documents over all V^n released ones.

    Parameters
    ----------
    mechanism : RewritingMechanism
        Its law is taken as ``log_prob_documents`` states it.
    words : int
        n, at least 1.
    documents : LongTensor | None, shape (B, n) (default: None)
        Private documents to compare; by default all V^n, for which the result is exact.

    Raises
    ------
    ValueError
        If there are more than ``MOST`` probabilities to look at; ``statistical_audit`` can still bound epsilon
        from below.
    """
    released = every_document(len(mechanism.vocabulary), words)
    documents = released if documents is None else documents
    if len(documents) * len(released) > MOST:
        raise ValueError(f"{len(documents)} documents with {len(released)} released ones are too many to compare")
    law = mechanism.log_prob_documents(documents, released)
    (high, first), (low, second) = law.max(dim=0), law.min(dim=0)
    loss = torch.where(high > -torch.inf, high - low, -torch.inf)
    out = int(loss.argmax())
    pair = int(first[out]), int(second[out])
    claimed = math.inf
    if mechanism.guarantee.for_any_inputs:
        claimed = min(mechanism.compose(words, 0.0).epsilon, words * mechanism.guarantee.epsilon)
    return DocumentAudit(
        words,
        len(documents),
        claimed,
        float(loss[out]),
        (documents[pair[0]], documents[pair[1]], released[out]),
        max(_excess(law, mechanism.compose(words, delta), pair) for delta in _DELTAS),
        float((law.logsumexp(dim=1).exp() - 1).abs().max()),
    )


def _excess(law: Tensor, stated: DocumentGuarantee, pair: tuple[int, int]) -> float:
    """Return the largest sum of (P - e^eps Q)+ less the stated delta, over all pairs or those of some documents.

    With delta 0 that epsilon is the pure one, which is compared anyway.
    """
    if math.isinf(stated.epsilon) or stated.delta == 0:
        return -1.0
    most = max(2, math.isqrt(_PAIRS // law.shape[1]))
    if len(law) > most:
        law = law[[*pair, *range(0, len(law), math.ceil(len(law) / most))]]
    allowed = (law + stated.epsilon).exp()
    return max(float((row - allowed).clamp_min(0).sum(dim=1).max()) for row in law.exp()) - stated.delta
