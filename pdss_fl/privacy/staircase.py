"""The nearest-set staircase: the Exponential Mechanism with an indicator score, tight and cheap to sample.

With N_k(x) the k words nearest to x, itself included, V words, and Z = k e^eps + V - k, release

    Pr[y | x] = e^eps / Z  if y is in N_k(x),    1 / Z  otherwise.

The score u(x, y) = 1[y in N_k(x)] has the same normaliser Z for every x, so the Exponential Mechanism's
usual factor 2 is not needed: Pr[y | x] / Pr[y | x'] is 1, e^eps or e^-eps. It is a member of the
extremal mechanisms of Kairouz, Oh and Viswanath (2014); k = 1 is k-ary randomised response.
"""

from __future__ import annotations

import math
import os
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import torch
from dp_accounting.pld import privacy_loss_distribution as pld
from numpy.typing import NDArray
from torch import Tensor

from pdss_fl.errors import SettingError
from pdss_fl.privacy.mechanism import (
    DocumentGuarantee,
    PrivacyGuarantee,
    PrivacyMechanism,
    check_epsilon,
    register_mechanism,
)
from pdss_fl.privacy.vocabulary import Vocabulary

_BITS = 64
_RANGE: int = 2**64


@register_mechanism("staircase")
class Staircase(PrivacyMechanism):
    """Pure epsilon-LDP per token, by construction and for the sampler as it is.

    The mass of the nearest set is rounded down to a multiple of 2^-64 in exact arithmetic and decided by
    comparing integers, so that no floating-point rounding can raise a probability ratio above e^eps.

    Parameters
    ----------
    vocabulary : Vocabulary
        V words, at least 2.
    epsilon : float
        Nats per token, finite, above 0.
    neighbours : int
        k, at least 1; clamped to V - 1.

    Raises
    ------
    SettingError
        If a parameter is out of range, or epsilon is too small for 64 bits to resolve.
    """

    def __init__(self, vocabulary: Vocabulary, *, epsilon: float, neighbours: int) -> None:
        super().__init__(vocabulary, epsilon=epsilon, neighbours=neighbours)
        if neighbours < 1:
            raise SettingError(f"privacy.neighbours = {neighbours}: expected at least 1")
        if len(vocabulary) < 2:
            raise SettingError("the staircase needs a vocabulary of at least 2 words")
        self.epsilon = check_epsilon(epsilon)
        self.size = len(vocabulary)
        self.neighbours = min(neighbours, self.size - 1)
        self._near = vocabulary.neighbours(self.neighbours)
        self._near_sorted = self._near.sort(dim=1).values
        self._threshold = _near_threshold(self.epsilon, self.neighbours, self.size)

    @property
    def guarantee(self) -> PrivacyGuarantee:
        """Pure epsilon-LDP of every single word, whatever the attacker knows."""
        return PrivacyGuarantee(
            "pure-ldp", self.epsilon, 0.0, "token",
            f"Any two words lead to any released word with probabilities at most a factor e^{self.epsilon:g} apart; "
            "a text of n words composes, and its number of words is released up to the chosen length rule.",
        )  # fmt: skip

    @property
    def parameters(self) -> str:
        """Epsilon, neighbours and vocabulary size."""
        return f"epsilon={self.epsilon:g} neighbours={self.neighbours} vocabulary={self.size}"

    @property
    def near_tokens(self) -> float:
        """The mass of the nearest set, k e^eps / Z."""
        return float(self._threshold / _RANGE)

    @property
    def kept_tokens(self) -> float:
        """The probability that a word stays itself, e^eps / Z, the same for every word."""
        return self.near_tokens / self.neighbours

    def perturb(self, ids: Tensor, generator: np.random.Generator | None = None) -> Tensor:
        """Replace every token independently; two or three uniform draws a token, see the base class."""
        near, near_sorted = self._near[ids].numpy(), self._near_sorted[ids].numpy()
        count = len(ids)
        stays = _draw(count, generator) < np.uint64(self._threshold)
        picked = near[np.arange(count), _uniform(self.neighbours, count, generator)]
        # The r-th word outside the set: step over every member that is not above it.
        other = _uniform(self.size - self.neighbours, count, generator)
        for place in range(self.neighbours):
            other += other >= near_sorted[:, place]
        return torch.from_numpy(np.where(stays, picked, other))

    def log_prob(self) -> Tensor:
        """Return the log-probabilities that the sampler really has, float64 of shape (V, V)."""
        near = math.log(self._threshold) - math.log(_RANGE * self.neighbours)
        far = math.log(_RANGE - self._threshold) - math.log(_RANGE * (self.size - self.neighbours))
        matrix = torch.full((self.size, self.size), far, dtype=torch.float64)
        return matrix.scatter_(1, self._near, near)

    def compose(self, tokens: int, delta: float) -> DocumentGuarantee:
        """Return the exact epsilon of ``tokens`` tokens at ``delta``, adaptive use included.

        For V >= 2k, two words with disjoint sets dominate every other pair: the privacy loss of one token is
        +eps with probability k e^eps / Z, -eps with k / Z, else 0, and a document's is the n-fold
        convolution. Otherwise, and where it is not smaller, basic composition.
        """
        basic = super().compose(tokens, delta)
        if delta <= 0 or tokens < 1 or self.size < 2 * self.neighbours:
            return basic
        epsilon = _compose_pair(self.epsilon, self.neighbours, self.size, tokens, delta)
        if epsilon >= basic.epsilon:
            return basic
        return DocumentGuarantee(epsilon, delta, tokens, "exact dominating pair, n-fold convolution")


def _near_threshold(epsilon: float, k: int, size: int) -> int:
    """Return floor(2^64 k e^eps / Z), at most 2^64 - 1, and prove that the claim holds with it.

    Every word keeps a chance of at least 2^-64 / V, so that epsilon is never infinite.
    """
    with localcontext() as context:
        context.prec = 120
        grown = Decimal(epsilon).exp()
        threshold = min(_RANGE - 1, int(_RANGE * (k * grown / (k * grown + size - k))))
    near = Fraction(threshold, k)
    far = Fraction(_RANGE - threshold, size - k)
    bound = Fraction(grown) * (1 + Fraction(1, 10**100))
    if near == 0 or max(near / far, far / near) > bound:
        raise SettingError(
            f"privacy.epsilon = {epsilon!r} is too small for {_BITS} bits to resolve over {size} words: raise it"
        )
    return threshold


def _compose_pair(epsilon: float, k: int, size: int, tokens: int, delta: float) -> float:
    """Return an upper bound of the pair's n-fold epsilon, at most n eps / 1000 above the exact one.

    The grid is a hair above eps / 1000, so that the loss +eps is rounded up to itself and only the rare -eps
    by a thousandth.
    """
    log_z = np.logaddexp(math.log(k) + epsilon, math.log(size - k))
    near_own, near_other = math.log(k) + epsilon - log_z, math.log(k) - log_z
    upper = {0: near_own, 1: near_other}
    lower = {0: near_other, 1: near_own}
    if size > 2 * k:
        upper[2] = lower[2] = math.log(size - 2 * k) - log_z
    pair = pld.from_two_probability_mass_functions(
        lower, upper, pessimistic_estimate=True, value_discretization_interval=epsilon / 1000 * (1 + 1e-12)
    )
    return float(pair.self_compose(tokens).get_epsilon_for_delta(delta))


def _draw(count: int, generator: np.random.Generator | None) -> NDArray[np.uint64]:
    if generator is not None:
        return generator.integers(0, _RANGE, size=count, dtype=np.uint64)
    return np.frombuffer(os.urandom(8 * count), dtype=np.uint64).copy()


def _uniform(bound: int, count: int, generator: np.random.Generator | None) -> NDArray[np.int64]:
    """Return numbers 0 .. bound-1, each exactly equally likely: draws beyond the last multiple are repeated."""
    draws = _draw(count, generator)
    limit = np.uint64(_RANGE - 1 - _RANGE % bound)
    while (beyond := draws > limit).any():
        draws[beyond] = _draw(int(beyond.sum()), generator)
    return (draws % np.uint64(bound)).astype(np.int64)
