"""The attacker who knows the mechanism and a bank of documents: the exact posterior of each, given a release.

Of a mechanism whose released words depend on the whole document there is no table of words. But an attacker has the
public model, too, and so the exact probability of a release for any document it can think of. With a prior over a
bank that is the private documents' own distribution no attacker does better; with a public bank of the same kind it
is the strongest that can be run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pdss_fl.privacy.attacks.bayes import log_prob_between
from pdss_fl.privacy.mechanism import PrivacyMechanism
from pdss_fl.privacy.rewriting import RewritingMechanism, same_length


def posterior_attack(
    mechanism: PrivacyMechanism,
    private: Sequence[Tensor],
    released: Sequence[Tensor],
    bank: Sequence[Tensor],
    prior: Tensor | None = None,
) -> float:
    """Return how often the likeliest word at each place of a document is the private one; filling words not counted.

    The likeliest word of a place is the one whose documents of the bank have the largest posterior probability
    together. Only documents as long as the release are looked at; without one, its words count as not found.

    Of one-word documents, with all words in the bank, the expected value is ``optimal_success`` at that prior.

    Parameters
    ----------
    mechanism : PrivacyMechanism
        One that rewrites documents, or one with a matrix of words, whose places are then independent.
    private, released : Sequence[Tensor]
        LongTensors (n_i,), document by document; the private ones are read to count hits only.
    bank : Sequence[Tensor]
        Documents that the attacker thinks possible, LongTensors (n_i,); one whose choices may have been sent in
        several orders once for each.
    prior : Tensor | None, shape (bank,) (default: None)
        Their probabilities, float64; by default all are equally likely.

    Raises
    ------
    ValueError
        If there is no private word to find.
    """
    weights = torch.full((len(bank),), 1 / max(1, len(bank)), dtype=torch.float64) if prior is None else prior.double()
    hits = total = 0
    for places in same_length(private):
        truth = torch.stack([private[i] for i in places])
        counted = truth < mechanism.vocabulary.words
        total += int(counted.sum())
        chosen = [i for i, document in enumerate(bank) if len(document) == truth.shape[1]]
        if chosen:
            candidates = torch.stack([bank[i] for i in chosen])
            seen, which = torch.unique(torch.stack([released[i] for i in places]), dim=0, return_inverse=True)
            joint = document_log_prob(mechanism, candidates, seen) + weights[chosen].log()[:, None]
            guesses = _likeliest_words(joint, candidates, mechanism.vocabulary.words)
            hits += int(((guesses[which] == truth) & counted).sum())
    if total == 0:
        raise ValueError("the private documents hold no word to find")
    return hits / total


def document_log_prob(mechanism: PrivacyMechanism, documents: Tensor, released: Tensor) -> Tensor:
    """Return ln P(released|document) for documents (B, n) and releases (M, n), float64 (B, M).

    Raises
    ------
    NotImplementedError
        If the mechanism states neither the law of documents nor a matrix.
    """
    if isinstance(mechanism, RewritingMechanism):
        return mechanism.log_prob_documents(documents, released)
    total = torch.zeros(len(documents), len(released), dtype=torch.float64)
    for words, out in zip(documents.T, released.T, strict=True):
        own, which = torch.unique(words, return_inverse=True)
        total += log_prob_between(mechanism, own, out)[which]
    return total


def _likeliest_words(joint: Tensor, candidates: Tensor, words: int) -> Tensor:
    """Return for each release (column of ``joint``) the likeliest word at each place, LongTensor (M, n).

    Filling words are not among the guesses, as places that hold one are not counted.
    """
    posterior = joint.softmax(dim=0).nan_to_num(nan=1 / len(joint))  # no document of the bank leads there
    guesses = torch.empty(joint.shape[1], candidates.shape[1], dtype=torch.long)
    for place, column in enumerate(candidates.T):
        own, which = torch.unique(column, return_inverse=True)
        mass = torch.zeros(len(own), joint.shape[1], dtype=torch.float64).index_add_(0, which, posterior)
        mass[own >= words] = -1.0
        guesses[:, place] = own[mass.argmax(dim=0)]
    return guesses
