"""A lower bound on epsilon from samples alone: for mechanisms without a matrix, and for black boxes.

If a mechanism is (eps, delta)-LDP, then for any two inputs and any event S of outputs

    Pr[S|x] <= e^eps Pr[S|x'] + delta,    so    eps >= ln((Pr[S|x] - delta) / Pr[S|x']).

Half of the samples choose S, the other half bound its two probabilities by Clopper and Pearson's exact intervals
(Jagielski, Ullman and Oprea 2020, arXiv 2006.07709, section 4): with the confidence stated, the true epsilon is
not below the bound, whatever the mechanism is, as long as its documents do not share their noise (which
``pdss_fl.testing`` checks). A claim below the bound is refuted; one above it is not confirmed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pdss_fl.privacy.mechanism import PrivacyMechanism
from pdss_fl.privacy.vocabulary import Vocabulary

BlackBox = Callable[[Tensor, np.random.Generator | None], Tensor]
"""Releases one document: takes its ids (n,) and a generator, returns ids of any length."""

_NOTHING = -1
_SHOWN = 8


@dataclass(frozen=True)
class LowerBound:
    """With ``confidence``, the true epsilon is at least ``epsilon``.

    Parameters
    ----------
    epsilon : float
        In nats, at least 0; 0 tells nothing.
    delta : float
        What the mechanism may spend beside it.
    confidence : float
        Of the statement, over all pairs that were tried.
    first, second : tuple[int, ...]
        The two inputs: the event is likelier for the first.
    event : str
        What was counted.
    first_count, second_count : int
        How often it happened for each,
    trials : int
        of so many.
    """

    epsilon: float
    delta: float
    confidence: float
    first: tuple[int, ...]
    second: tuple[int, ...]
    event: str
    first_count: int
    second_count: int
    trials: int


def statistical_lower_bound(
    mechanism: PrivacyMechanism | BlackBox,
    first: Tensor,
    second: Tensor,
    samples: int,
    confidence: float = 0.99,
    generator: np.random.Generator | None = None,
    delta: float = 0.0,
) -> LowerBound:
    """Return a lower bound on the epsilon between two inputs, at a stated confidence.

    The event is that the sum over positions of an estimated ln(Pr[y_i|first] / Pr[y_i|second]) reaches a
    threshold; for inputs of one token that is the likelihood-ratio test. Estimates, threshold and the direction
    are those that do best on the first half of the samples.

    Parameters
    ----------
    mechanism : PrivacyMechanism | BlackBox
        Perturbs each sample as a document of its own.
    first, second : LongTensor, shape (n,)
        Two documents, of one token or more; of the same length for mechanisms that do not hide it.
    samples : int
        Of each input, at least 4. What can be seen is limited to about ln(samples / 10).
    confidence : float (default: 0.99)
        In (0, 1).
    generator : numpy.random.Generator | None (default: None)
        For reproducible audits.
    delta : float (default: 0.0)
        In [0, 1).
    """
    if samples < 4 or not 0 < confidence < 1 or not 0 <= delta < 1:
        raise ValueError(
            f"samples {samples}, confidence {confidence} or delta {delta}: expected at least 4, (0, 1) and [0, 1)"
        )
    inputs = (first, second)
    released = pad_sequence(
        [*_sampled(mechanism, first, samples, generator), *_sampled(mechanism, second, samples, generator)],
        batch_first=True,
        padding_value=_NOTHING,
    ).numpy()
    released, half = released.reshape(2, samples, released.shape[1]), samples // 2
    chosen_from, counted = released[:, :half], released[:, half:]
    ratios = [_log_ratios(*chosen_from[:, :, i]) for i in range(released.shape[2])]
    error = 1 - confidence
    found = [
        (*_threshold(sign * _scores(ratios, chosen_from[a]), sign * _scores(ratios, chosen_from[b]), error, delta), a)
        for a, b, sign in ((0, 1, 1), (1, 0, -1))
    ]
    _, least, a = max(found)
    sign = 1 - 2 * a
    counts = [int((sign * _scores(ratios, counted[i]) >= least).sum()) for i in (a, 1 - a)]
    trials = samples - half
    return LowerBound(
        float(_bound(np.array(counts[0]), np.array(counts[1]), trials, error, delta)),
        delta,
        confidence,
        tuple(inputs[a].tolist()),
        tuple(inputs[1 - a].tolist()),
        _described(ratios, sign, least),
        counts[0],
        counts[1],
        trials,
    )


def statistical_audit(
    mechanism: PrivacyMechanism | BlackBox,
    pairs: Sequence[tuple[Tensor, Tensor]],
    samples: int,
    confidence: float = 0.99,
    generator: np.random.Generator | None = None,
    delta: float = 0.0,
) -> LowerBound:
    """Return the best lower bound of several pairs of inputs, each at (1 - confidence) / pairs (Bonferroni)."""
    if not pairs:
        raise ValueError("no pairs of inputs to audit")
    each = 1 - (1 - confidence) / len(pairs)
    bounds = [
        statistical_lower_bound(mechanism, first, second, samples, each, generator, delta) for first, second in pairs
    ]
    best = max(bounds, key=lambda bound: bound.epsilon)
    return LowerBound(**{**vars(best), "confidence": confidence})


def pairs_to_try(
    vocabulary: Vocabulary, count: int, generator: np.random.Generator | None = None
) -> list[tuple[Tensor, Tensor]]:
    """Return pairs of one-token documents: words drawn at random, each with its farthest and its nearest other.

    Parameters
    ----------
    vocabulary : Vocabulary
        Its distances decide; they are public.
    count : int
        How many words are drawn, at most V: twice as many pairs.
    generator : numpy.random.Generator | None (default: None)
        For reproducible audits.
    """
    generator = np.random.default_rng() if generator is None else generator
    drawn = torch.from_numpy(generator.choice(len(vocabulary), size=min(count, len(vocabulary)), replace=False))
    pairs = []
    for x in torch.split(drawn, 1):
        distance = vocabulary.distances(x, slice(0, len(vocabulary)))[0]
        farthest = int(distance.argmax())
        distance[int(x)] = np.inf
        pairs += [(x, torch.tensor([other])) for other in (farthest, int(distance.argmin())) if other != int(x)]
    return pairs


def _sampled(
    mechanism: PrivacyMechanism | BlackBox, document: Tensor, samples: int, generator: np.random.Generator | None
) -> list[Tensor]:
    if isinstance(mechanism, PrivacyMechanism):
        return mechanism.perturb_documents([document] * samples, generator)
    return [mechanism(document, generator) for _ in range(samples)]


def _log_ratios(first: NDArray[np.int64], second: NDArray[np.int64]) -> dict[int, float]:
    """Return for each output the logarithm of how much oftener it came from the first, one added to every count."""
    outputs = np.union1d(first, second)
    counts = [np.bincount(np.searchsorted(outputs, drawn), minlength=len(outputs)) + 1 for drawn in (first, second)]
    return dict(zip(outputs.tolist(), np.log(counts[0] / counts[1]).tolist(), strict=True))


def _scores(ratios: list[dict[int, float]], released: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the sum of the ratios over the positions of each sample (n, positions); 0 for what is new."""
    total = np.zeros(len(released))
    for ratio, column in zip(ratios, released.T, strict=True):
        seen, known = np.array(list(ratio)), np.array(list(ratio.values()))
        place = np.searchsorted(seen, column).clip(max=len(seen) - 1)
        total += np.where(seen[place] == column, known[place], 0.0)
    return total.round(9)  # equal sums in another order are equal


def _threshold(
    first: NDArray[np.float64], second: NDArray[np.float64], error: float, delta: float
) -> tuple[float, float]:
    """Return the best bound on the samples that choose, and the score from which on the event is."""
    levels = np.unique(np.concatenate([first, second]))
    counts = [len(scores) - np.searchsorted(np.sort(scores), levels) for scores in (first, second)]
    bounds = _bound(counts[0], counts[1], len(first), error, delta)
    best = int(bounds.argmax())
    return float(bounds[best]), float(levels[best])


def _bound(
    first: NDArray[np.int64], second: NDArray[np.int64], trials: int, error: float, delta: float
) -> NDArray[np.float64]:
    """Return ln((p - delta) / q), p and q the exact one-sided limits of two proportions at error / 2 each; or 0."""
    low = np.where(first > 0, stats.beta.ppf(error / 2, np.maximum(first, 1), trials - first + 1), 0.0)
    high = np.where(second < trials, stats.beta.ppf(1 - error / 2, second + 1, np.maximum(trials - second, 1)), 1.0)
    ratio = np.maximum(low - delta, 0.0) / high
    bound: NDArray[np.float64] = np.log(np.maximum(ratio, 1.0))
    return bound


def _described(ratios: list[dict[int, float]], sign: int, least: float) -> str:
    if len(ratios) != 1:
        return f"the estimated log-likelihood ratio of the released tokens is at least {least:.4g} nats"
    outputs = [y for y, ratio in ratios[0].items() if round(sign * ratio, 9) >= least]
    unseen = ", and any not seen before" if least <= 0 else ""
    shown = ", ".join(map(str, outputs[:_SHOWN])) + (", ..." if len(outputs) > _SHOWN else "")
    return f"one of {len(outputs)} ids is released: {shown}{unseen}"
