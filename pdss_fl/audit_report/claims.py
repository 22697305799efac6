"""What a mechanism's epsilon really is: exactly where it states its law, from below where it does not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from pdss_fl.audit_report.document_claims import measure_documents
from pdss_fl.privacy import PrivacyMechanism
from pdss_fl.privacy.audit import Audit, audit, exact_epsilon
from pdss_fl.privacy.audit_rows import ROUNDING
from pdss_fl.privacy.contextual import Contextual
from pdss_fl.privacy.rewriting import RewritingMechanism
from pdss_fl.privacy.statistical_audit import LowerBound, pairs_to_try, statistical_audit
from pdss_fl.report import epsilon_text

_CONFIDENCE = 0.99
_PAIRED_WORDS = 1  # each with its farthest and its nearest other
_SAMPLES = 2_000, 20_000  # of each input, at least and at most
_PREFIXES = 8
_NOMINAL = "epsilon {:g} is nominal and does not hold"


@dataclass(frozen=True)
class Claim:
    """What was measured of a mechanism's epsilon.

    Parameters
    ----------
    holds : bool | None
        ``None`` where nothing is claimed or it cannot be told.
    measured : str
        The measured figure, as text.
    tightness : float | None
        Measured over claimed, where both are figures of one kind.
    reason : str
        In a sentence or two; names the words that show it.
    """

    holds: bool | None
    measured: str
    tightness: float | None
    reason: str


def measure_claim(mechanism: PrivacyMechanism, nominal: float, released: Sequence[Tensor], seed: int) -> Claim:
    """Measure what a mechanism claims.

    Parameters
    ----------
    mechanism : PrivacyMechanism
        Any.
    nominal : float
        The epsilon that was asked for; what a mechanism without a claim is held against.
    released : Sequence[Tensor]
        Documents that it released, LongTensors (n_i,): a mechanism that looks at them is measured after those.
    seed : int
        Of the samples, where it takes any.
    """
    if isinstance(mechanism, Contextual):
        return _after_prefixes(mechanism, released)
    if isinstance(mechanism, RewritingMechanism):
        return _of_documents(mechanism, nominal, released)
    try:
        return _exact(audit(mechanism), nominal)
    except NotImplementedError:
        return _sampled(mechanism, nominal, seed)


def _exact(found: Audit, nominal: float) -> Claim:
    first, second, output = map(repr, found.worst_tokens)
    if found.support_mismatch:
        where = f"{output} can come out for {first} and never for {second}, so these two are told apart for certain"
    else:
        where = f"worst pair: {first} and {second} where {output} comes out"
    if found.guarantee.kind == "none" and found.epsilon > nominal:
        where = f"{_NOMINAL.format(nominal)}; {where}"
    if found.measured is None:
        return Claim(found.holds, epsilon_text(found.epsilon), None, f"{found.verdict}; {where}")
    return Claim(found.holds, epsilon_text(found.measured), found.tightness, f"{found.verdict}; {where}")


def _after_prefixes(mechanism: Contextual, released: Sequence[Tensor]) -> Claim:
    """Measure the exact law after several beginnings of released documents."""
    prefixes = {
        (),
        *(tuple(ids[: 1 + i % len(ids)].tolist()) for i, ids in enumerate(released[:_PREFIXES]) if len(ids)),
    }
    found = max(exact_epsilon(mechanism.log_prob_given(prefix)) for prefix in prefixes)
    claimed = mechanism.guarantee.epsilon
    reason = f"claims epsilon {claimed:.10g}; the worst case after {len(prefixes)} released prefixes is {found:.10g}"
    return Claim(found <= claimed + ROUNDING, epsilon_text(found), found / claimed, reason)


def _of_documents(mechanism: RewritingMechanism, nominal: float, released: Sequence[Tensor]) -> Claim:
    found, guarantee = measure_documents(mechanism, released), mechanism.guarantee
    measured = ("" if found.exact or math.isinf(found.epsilon) else "at least ") + epsilon_text(found.epsilon)
    if guarantee.kind == "none":
        return Claim(None, measured, None, f"{_NOMINAL.format(nominal)}; compared: {found.how}")
    reason = (
        f"claims epsilon {guarantee.epsilon:.10g} for each released word, between any two documents; the worst case is "
        f"{measured}; compared: {found.how}"
    )
    tightness = found.epsilon / guarantee.epsilon if found.exact else None
    return Claim(found.holds(guarantee.epsilon), measured, tightness, reason)


def _sampled(mechanism: PrivacyMechanism, nominal: float, seed: int) -> Claim:
    generator = np.random.default_rng(seed)
    samples = int(np.clip(20 * math.exp(min(nominal, 20.0)), *_SAMPLES))
    pairs = pairs_to_try(mechanism.vocabulary, _PAIRED_WORDS, generator)
    bound = statistical_audit(mechanism, pairs, samples, _CONFIDENCE, generator)
    guarantee = mechanism.guarantee
    claimed = guarantee.epsilon if guarantee.for_any_inputs else None
    reason = _counted(mechanism, bound)
    if claimed is None and guarantee.kind == "none" and bound.epsilon > nominal:
        reason = f"{_NOMINAL.format(nominal)}; {reason}"
    refuted = claimed is not None and bound.epsilon > claimed  # a lower bound cannot confirm a claim
    return Claim(False if refuted else None, f"at least {bound.epsilon:.3g}", None, reason)


def _counted(mechanism: PrivacyMechanism, bound: LowerBound) -> str:
    first, second = ("/".join(mechanism.vocabulary.tokens[i] for i in ids) for ids in (bound.first, bound.second))
    return (
        f"no matrix is stated; of {bound.trials} releases of {first!r} and of {second!r} the same event happened for "
        f"{bound.first_count} and {bound.second_count}, so epsilon is at least {bound.epsilon:.4g} "
        f"({bound.confidence:.0%} confidence)"
    )
