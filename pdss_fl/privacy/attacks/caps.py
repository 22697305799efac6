r"""What a guarantee allows an attacker who sees a released word, measured by the attacker who does not.

Let Q be any distribution with P(y|x) <= C Q(y) for all x and y. Whatever an attacker does with y, with the
words around it, and with what others know, its expected success is at most C times its own success when y
is drawn from Q, independently of x: sum over x, y of pi(x) P(y|x) g(y, x) <= C sum of pi(x) Q(y) g(y, x)
for every gain g >= 0, a match of stems included. The smallest such C is sum over y of max over x of P(y|x),
the multiplicative Bayes capacity (Braun, Chatzikokolakis and Palamidessi 2009; Alvim et al. 2012), with Q
proportional to the maxima. For the staircase it is V e^eps / Z.

Of pure eps-LDP over V inputs it is at most V e^eps / (e^eps + V - 1): if m is the maximum at y, every other
input has at least m e^-eps, so sum over x of P(y|x) >= m (1 + (V - 1) e^-eps), and V is the sum over y.
By the same step Q may be the output for a word picked uniformly, so that no matrix is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pdss_fl.privacy.attacks.bayes import BLOCK_ROWS
from pdss_fl.privacy.attacks.results import Rate
from pdss_fl.privacy.mechanism import PrivacyMechanism


@dataclass(frozen=True)
class Targets:
    """The n words to guess.

    Parameters
    ----------
    documents : Sequence[Tensor]
        What was released, LongTensors (n_i,).
    places : LongTensor, shape (n, 2)
        The document and the position of each word.
    released : LongTensor, shape (n,)
        What the attacker sees there, in place of what the document holds.
    """

    documents: Sequence[Tensor]
    places: Tensor
    released: Tensor

    @classmethod
    def of(cls, documents: Sequence[Tensor], places: Tensor) -> Targets:
        """Return what really was released at the places."""
        return cls(documents, places, words_at(documents, places))

    def contexts(self) -> list[tuple[list[int], int]]:
        """Return each target's document as ids, as the attacker sees it, and the position of the target."""
        found = []
        for (document, position), word in zip(self.places.tolist(), self.released.tolist(), strict=True):
            ids = self.documents[document].tolist()
            ids[position] = word
            found.append((ids, position))
        return found


def words_at(documents: Sequence[Tensor], places: Tensor) -> Tensor:
    """Return the ids at the places (document, position), LongTensor (n,)."""
    starts = torch.tensor([0, *map(len, documents)]).cumsum(0)
    return torch.cat(list(documents))[starts[places[:, 0]] + places[:, 1]]


@dataclass(frozen=True)
class Cap:
    """success <= e^``log_gain`` x success of the blind attacker + ``delta``.

    Parameters
    ----------
    log_gain : float
        ln C of a word, in nats.
    delta : float
        Of a word.
    outputs : Tensor | None (default: None)
        Q over the V released words, float64, if the mechanism states a matrix.
    unit : str (default: "token")
        ``document`` where the gain holds for all words of a document together.
    """

    log_gain: float
    delta: float
    outputs: Tensor | None = None
    unit: str = "token"

    def of(self, blind: Rate, words: int = 1) -> float:
        """Return the cap on the success against ``words`` released words together, at most 1.

        The blind rate is measured as well; the upper end of its interval is taken.
        """
        words = 1 if self.unit == "document" else words
        if blind.high == 0:
            return self._delta(words)
        log_cap = words * self.log_gain + math.log(blind.high)
        return min(1.0, math.exp(min(log_cap, 0.0)) + self._delta(words))

    def _delta(self, words: int) -> float:
        if self.delta == 0 or words == 0:
            return 0.0
        growth = (words - 1) * self.log_gain  # (e, d) for each word: at most n e^((n-1) e) d for n of them
        return min(1.0, math.exp(min(math.log(words * self.delta) + growth, 0.0)))


def token_cap(mechanism: PrivacyMechanism, tokens: int = 1) -> Cap | None:
    """Return what the mechanism's matrix and its claim allow of a word, the smaller one; ``None`` if neither does.

    The claim counts as it is made: a mechanism that claims less than it has is measured above its cap. One of unit
    ``document`` caps all words of a document together, by what the longest, of ``tokens`` words, is worth.
    """
    guarantee, size = mechanism.guarantee, len(mechanism.vocabulary)
    pure, whole = guarantee.kind == "pure-ldp", guarantee.unit == "document"
    claimed = guarantee.epsilon if guarantee.for_any_inputs else math.inf
    if whole:
        claimed = mechanism.compose(tokens, 0.0).epsilon
    if pure and not whole:
        claimed = math.log(size) - math.log1p((size - 1) * math.exp(-guarantee.epsilon))
    highest = _column_maxima(mechanism)
    if highest is not None:
        capacity = float(highest.logsumexp(dim=0))
        return Cap(min(claimed, capacity) if pure else capacity, 0.0, highest.softmax(dim=0))
    if math.isinf(claimed):
        return None
    return Cap(claimed, guarantee.delta, unit=guarantee.unit)


def blind_words(
    mechanism: PrivacyMechanism,
    cap: Cap,
    raw: Sequence[Tensor],
    released: Sequence[Tensor],
    places: Tensor,
    generator: np.random.Generator,
) -> Targets:
    """Return the places (n, 2) with a word at each that does not depend on the private one.

    Without a matrix the document is released once more with any word in place of the private one, since
    what is released after it may depend on it.
    """
    if cap.outputs is not None:
        drawn = generator.choice(len(cap.outputs), len(places), p=cap.outputs.numpy())
        return Targets(released, places, torch.from_numpy(drawn))
    words = torch.from_numpy(generator.integers(len(mechanism.vocabulary), size=len(places)))
    changed = [torch.tensor(ids) for ids, _ in Targets(raw, places, words).contexts()]
    again = mechanism.perturb_documents(changed, generator)
    return Targets.of(again, torch.stack([torch.arange(len(places)), places[:, 1]], dim=1))


def blind_documents(outputs: Tensor, lengths: Sequence[int], generator: np.random.Generator) -> list[Tensor]:
    """Return documents of these lengths, LongTensors (n_i,), whose words are drawn from ``Cap.outputs``."""
    return [torch.from_numpy(generator.choice(len(outputs), n, p=outputs.numpy())) for n in lengths]


def _column_maxima(mechanism: PrivacyMechanism) -> Tensor | None:
    """Return max over x of ln P(y|x), float64 (V,), or ``None`` if no matrix is stated."""
    ids = torch.arange(len(mechanism.vocabulary))
    highest = torch.full((len(ids),), -torch.inf, dtype=torch.float64)
    try:
        for block in torch.split(ids, BLOCK_ROWS):
            highest = torch.maximum(highest, mechanism.log_prob_rows(block).amax(dim=0))
    except NotImplementedError:
        return None
    return highest
