"""What many releases are worth together: a document, a person, a data set; and the way back to one token."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from pdss_fl.errors import SettingError
from pdss_fl.privacy import composition

if TYPE_CHECKING:
    from pdss_fl.privacy.mechanism import PrivacyMechanism

BASIC = "basic composition"
_WORTH_A_DELTA = 0.99  # of basic composition, which needs none
_CLOSE = 1e-6

_LIBRARY_ERROR = 1e-12
"""More than the Fourier transform's rounding can take away from a tail; handed back from delta."""


@dataclass(frozen=True)
class DocumentGuarantee:
    """The (epsilon, delta) of a document of ``tokens`` tokens, and the theorem that gives it."""

    epsilon: float
    delta: float
    tokens: int
    composition: str


@lru_cache(maxsize=1024)
def best_composition(
    epsilon: float,
    tokens: int,
    delta: float,
    *,
    bounded_range: float | None = None,
    context_free: bool = False,
    renyi: tuple[tuple[float, float], ...] = (),
) -> DocumentGuarantee:
    """Return the smallest epsilon of a document that a theorem gives, and the theorem; see ``composition``.

    Parameters
    ----------
    epsilon : float
        Of every token, pure LDP, in nats, finite, at least 0.
    tokens : int
        At least 0.
    delta : float
        In [0, 1); with 0, only basic composition holds.
    bounded_range : float | None (default: None)
        eta of every token, where it is known to be less than 2 epsilon.
    context_free : bool (default: False)
        Whether no token's law depends on what was released before: only then the non-adaptive optimum holds.
    renyi : tuple[tuple[float, float], ...] (default: ())
        Orders and divergences of the mechanism at hand, from ``audit.renyi_curve``, where they are known.

    Returns
    -------
    DocumentGuarantee
        With delta 0 for basic composition, which is taken where nothing is at least one percent below it.
    """
    simple = DocumentGuarantee(composition.basic(epsilon, tokens), 0.0, tokens, BASIC)
    if delta == 0 or tokens == 0 or epsilon == 0:
        return simple
    eta = 2 * epsilon if bounded_range is None else min(bounded_range, 2 * epsilon)
    rho = min(composition.zcdp_of_pure(epsilon), composition.zcdp_of_bounded_range(eta))
    found = {
        "advanced composition (Dwork, Rothblum, Vadhan)": composition.advanced(epsilon, tokens, delta),
        "optimal pure composition (Kairouz, Oh, Viswanath)": composition.optimal_pure(epsilon, tokens, delta),
        "bounded range (Durfee, Rogers)": composition.bounded_range(eta, tokens, delta),
        "zCDP, tight": composition.zcdp(tokens * rho, delta),
        "Gaussian, by bounded range": composition.gaussian(eta, tokens, delta),
    }
    if context_free:
        found["non-adaptive bounded range (Dong, Durfee, Rogers)"] = composition.non_adaptive(eta, tokens, delta)
    if renyi:
        found["exact Renyi curve"] = composition.renyi(renyi, tokens, delta)
    theorem = min(found, key=found.__getitem__)
    return _worth_it(DocumentGuarantee(found[theorem], delta, tokens, theorem), simple)


@lru_cache(maxsize=1024)
def staircase_document(epsilon: float, near: int, size: int, tokens: int, delta: float) -> DocumentGuarantee:
    """Return what ``tokens`` tokens of a staircase with V >= 2k are worth: the exact epsilon, or basic composition.

    Basic composition, which needs no delta, where the exact epsilon (see ``staircase_document_epsilon``) is not
    at least one percent below it.
    """
    simple = DocumentGuarantee(composition.basic(epsilon, tokens), 0.0, tokens, BASIC)
    if delta == 0 or tokens == 0:
        return simple
    exact = staircase_document_epsilon(epsilon, near, size, tokens, delta)
    return _worth_it(DocumentGuarantee(exact, delta, tokens, "exact dominating pair, n-fold (PLD)"), simple)


def _worth_it(better: DocumentGuarantee, simple: DocumentGuarantee) -> DocumentGuarantee:
    return better if better.epsilon <= _WORTH_A_DELTA * simple.epsilon else simple


def staircase_document_epsilon(epsilon: float, near: int, size: int, tokens: int, delta: float) -> float:
    """Return the epsilon of a document of nearest-set staircase tokens at ``delta``.

    Two inputs with disjoint nearest sets dominate every other pair (the hockey-stick divergence falls as the
    sets overlap). With Z = k e^eps + V - k, the privacy loss of a token between them is +eps with probability
    k e^eps / Z, -eps with probability k / Z, else 0; a document's is its n-fold convolution, for inputs that
    depend on what was released before, too. All losses are whole multiples of eps, so the grid of
    dp-accounting's privacy loss distribution holds them without rounding.

    Parameters
    ----------
    epsilon : float
        Nats per token, above 0.
    near, size : int
        k and V, with V >= 2k.
    tokens : int
        n, at least 1.
    delta : float
        Above 0.

    Returns
    -------
    float
        Never below the exact value; infinity where the library resolves no better (``delta`` below 1e-12,
        results above 700).
    """
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution  # a second to import

    up = 1 / (1 + (size - near) / near * math.exp(-epsilon))
    down = up * math.exp(-epsilon)
    token = PrivacyLossDistribution.create_from_rounded_probability(
        {1: up, 0: down * (size - 2 * near) / near, -1: down}, 0.0, epsilon
    )
    reachable = delta - _LIBRARY_ERROR
    if reachable <= 0:
        return math.inf
    with np.errstate(over="ignore"):  # an epsilon above 700 or so comes out as infinity
        return float(token.self_compose(tokens).get_epsilon_for_delta(reachable))


def token_epsilon_for_document(target: float, delta: float, tokens: int, near: int, size: int) -> float:
    """Return the largest epsilon per token at which a document of staircase tokens is within a target.

    The inverse of ``staircase_document``, by bisection to one part in a million.

    Parameters
    ----------
    target : float
        Of the document, in nats, finite, above 0.
    delta : float
        In [0, 1).
    tokens : int
        At least 1.
    near, size : int
        k and V, with V >= 2k.

    Returns
    -------
    float
        At it the document's epsilon is not above the target.
    """
    return _largest_within(lambda e: staircase_document(e, near, size, tokens, delta).epsilon, target, tokens)


def token_epsilon_for_mechanism(
    factory: Callable[[float], PrivacyMechanism], target: float, delta: float, tokens: int
) -> float:
    """Return the largest epsilon per token at which a mechanism's document is within a target.

    Parameters
    ----------
    factory : Callable[[float], PrivacyMechanism]
        Makes the mechanism for an epsilon per token; called some thirty times.
    target, delta, tokens
        As of ``token_epsilon_for_document``.

    Raises
    ------
    SettingError
        If even target / tokens is too much: the mechanism guarantees nothing for a document.
    """
    return _largest_within(lambda e: factory(e).compose(tokens, delta).epsilon, target, tokens)


def _largest_within(document: Callable[[float], float], target: float, tokens: int) -> float:
    if not (math.isfinite(target) and target > 0 and tokens >= 1):
        raise SettingError(
            f"a document epsilon of {target!r} for {tokens} tokens: expected a finite number above 0, and 1 or more"
        )
    low = target / tokens * (1 - 1e-12)  # within the target by basic composition, rounding included
    if document(low) > target:
        raise SettingError(
            f"a document epsilon of {target:g} is out of reach: the mechanism guarantees less than basic composition; "
            "choose one of kind pure-ldp"
        )
    high = 2 * low
    while document(high) <= target:
        low, high = high, 2 * high
    while high - low > _CLOSE * low:
        middle = (low + high) / 2
        low, high = (middle, high) if document(middle) <= target else (low, middle)
    return low


def per_person(documents: Iterable[tuple[Hashable, float, float]]) -> dict[Hashable, tuple[float, float]]:
    """Return the (epsilon, delta) of every person: those of the person's documents add up.

    Parameters
    ----------
    documents : Iterable[tuple[Hashable, float, float]]
        Person, epsilon in nats and delta of every release; a document of nobody known has a key of its own.
        That a document has two persons is stated by giving it twice.
    """
    spent: dict[Hashable, tuple[float, float]] = {}
    for person, epsilon, delta in documents:
        before = spent.get(person, (0.0, 0.0))
        spent[person] = (before[0] + epsilon, before[1] + delta)
    return spent


def dataset_guarantee(documents: Iterable[tuple[Hashable, float, float]]) -> tuple[float, float]:
    """Return the (epsilon, delta) of a data set for a change of all that is one person's.

    Documents of different persons are released independently of each other (parallel composition), so it is
    the largest of ``per_person``; (0, 0) without documents.
    """
    spent = per_person(documents).values()
    return max((e for e, _ in spent), default=0.0), max((d for _, d in spent), default=0.0)
