"""The graded Exponential Mechanism: the nearer a word, the likelier, over the whole vocabulary.

With the cosine c of centred public embeddings and a scale s, it releases

    Pr[y|x] = exp(s c(x, y)) / Z(x),    Z(x) = sum over y of exp(s c(x, y))

(McSherry and Talwar 2007; the released token of PDSS, arXiv 2406.12403, without its input-dependent list of
candidates). With Delta, the most that two inputs' cosines with one output differ by, the textbook's s is
epsilon / (2 Delta). That pays for a Z that hardly varies between inputs. Here s is searched until the exact
worst case over all pairs of inputs, blanks among them, is just within epsilon: about twice the textbook's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pdss_fl.errors import SettingError
from pdss_fl.privacy.matrix import SPAN, MatrixMechanism
from pdss_fl.privacy.mechanism import PrivacyGuarantee, register_mechanism
from pdss_fl.privacy.vocabulary import Vocabulary

_BLOCK_ROWS = 128
_KEPT_BYTES = 2**28  # of scores, if all are no more: 8,192 words
_PASSES = 6  # exact evaluations that the search for a scale may cost
_CLOSE = 0.998  # of epsilon: near enough to stop the search
_ROUNDING = 2e-12  # more than float64 can be wrong about a worst case of up to e^700
_SMALLEST = 1e-9

_found: dict[tuple[str, float, float | None], float] = {}
"""Scales that this process has searched for: by vocabulary, epsilon and truncation."""


@register_mechanism("exponential")
class Exponential(MatrixMechanism):
    """Pure epsilon-LDP per token, graded by cosine; what it really has is just below the epsilon asked for.

    The scale is searched when it is first needed: at most six exact evaluations of the worst case, whose
    cost grows with the square of the vocabulary. The sampler is exact, see ``MatrixMechanism``.

    Parameters
    ----------
    vocabulary : Vocabulary
        V words with their cosines, which are used as ``Vocabulary.cosines`` rounds them.
    epsilon : float | None (default: None)
        The target in nats per token, 1e-9 to 1400; at most about 700 can be reached. Either this or ``scale``.
    neighbours : int (default: 1)
        As for every mechanism; not used.
    scale : float | None (default: None)
        s, above 0: nothing is searched, and an upper bound of epsilon is stated. Leaves ``epsilon`` unused.
    truncate : float | None (default: None)
        In [-1, 1): lower cosines count as this one, so that no far word is told from another (Carvalho et al.
        2021, arXiv 2107.07928, with cosines in place of distances).

    Raises
    ------
    SettingError
        If a parameter is out of range; when the scale is first needed, if weights would be further apart than
        a float64 can hold.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        epsilon: float | None = None,
        neighbours: int = 1,
        scale: float | None = None,
        truncate: float | None = None,
    ) -> None:
        if truncate is not None and not -1 <= truncate < 1:
            raise SettingError(
                f"privacy.parameters: truncate = {truncate!r}: expected a cosine of at least -1 and below 1"
            )
        if scale is None:
            nominal = _checked_target(epsilon)
        elif 0 < scale <= SPAN:
            nominal = 4.1 * scale  # the textbook's bound, until the guarantee is asked for
        else:
            raise SettingError(f"privacy.parameters: scale = {scale!r}: expected a number above 0, at most {SPAN:g}")
        super().__init__(vocabulary, epsilon=nominal, neighbours=neighbours)
        self.truncate = truncate
        self._scale = self._given = scale
        self._bound: float | None = None

    @property
    def scale(self) -> float:
        """s, in nats per unit of cosine; searched when it is first asked for."""
        if self._scale is None:
            key = (self.vocabulary.sha256, self.epsilon, self.truncate)
            if key not in _found:
                _found[key] = calibrated_scale(Scores(self.vocabulary, self.truncate), self.epsilon)
            self._scale = _found[key]
        return self._scale

    @property
    def guarantee(self) -> PrivacyGuarantee:
        """Pure LDP of every token, at the target; at an upper bound of one pass where the scale is given."""
        epsilon = self.epsilon
        if self._given is not None:
            if self._bound is None:
                self._bound = epsilon_bound(Scores(self.vocabulary, self.truncate), self._given)
            epsilon = self._bound
        return PrivacyGuarantee(
            "pure-ldp",
            epsilon,
            0.0,
            "token",
            f"Any two words lead to any released word with probabilities at most e^{epsilon:g} apart, "
            "whatever an attacker knows; the words of a text add up, and their number is not protected.",
        )

    @property
    def parameters(self) -> str:
        """Target or scale, truncation and size of the vocabulary."""
        dial = f"epsilon={self.epsilon!r}" if self._given is None else f"scale={self._given!r}"
        return f"{dial} truncate={self.truncate!r} vocabulary={len(self.vocabulary)}"

    def _log_weights(self, ids: Tensor, outputs: slice) -> Tensor:
        scores = Scores(self.vocabulary, self.truncate).of(ids, outputs)
        return torch.from_numpy(np.multiply(scores, self.scale, dtype=np.float64))


class Scores:
    """The scores c(x, y) of an exponential mechanism, symmetric to the last bit."""

    def __init__(self, vocabulary: Vocabulary, truncate: float | None) -> None:
        self.vocabulary = vocabulary
        self._kept: dict[int, NDArray[np.float32]] = {}
        # As cosines a multiple of 2^-22, so that differences are exact.
        self._floor = None if truncate is None else np.float32(round(truncate * 2**22) / 2**22)

    def of(self, ids: Tensor, outputs: slice) -> NDArray[np.float32]:
        """Return the scores of ids (n,) with a range of ids, shape (n, stop - start)."""
        cosines = self.vocabulary.cosines(ids, outputs)
        if self._floor is not None:  # what counts is a cosine's part above it, small numbers if it is high
            np.maximum(cosines, self._floor, out=cosines)
            cosines -= self._floor
        return cosines

    def rows(self) -> Iterator[NDArray[np.float64]]:
        """Yield all rows in blocks (b, V), which the caller may write to; of a small vocabulary they are kept."""
        size = len(self.vocabulary)
        for start in range(0, size, _BLOCK_ROWS):
            block = self._kept.get(start)
            if block is None:
                block = self.of(torch.arange(start, min(start + _BLOCK_ROWS, size)), slice(0, size))
                if 4 * size**2 <= _KEPT_BYTES:
                    self._kept[start] = block
            yield block.astype(np.float64)


def _checked_target(epsilon: float | None) -> float:
    """Return a target that a search can start from; what is no finite number above 0 is left to the base class."""
    if epsilon is None:
        raise SettingError("privacy.epsilon is missing: give a target, or else a scale")
    if 0 < epsilon < math.inf and not _SMALLEST <= epsilon <= 2 * SPAN:
        raise SettingError(f"privacy.epsilon = {epsilon!r}: expected {_SMALLEST:g} to {2 * SPAN:g}")
    return epsilon


def log_normalisers(scores: Scores, scale: float) -> tuple[NDArray[np.float64], float]:
    """Return ln Z(x) for every x, shape (V,), and Delta, in one pass over all rows.

    As scores are symmetric, the extremes of a row are those of the column.
    """
    found, delta = [], 0.0
    for rows in scores.rows():
        highest = rows.max(axis=1)
        delta = max(delta, float((highest - rows.min(axis=1)).max()))
        rows -= highest[:, None]
        rows *= scale
        found.append(scale * highest + np.log(np.exp(rows, out=rows).sum(axis=1)))
    return np.concatenate(found), delta


def epsilon_bound(scores: Scores, scale: float) -> float:
    """Return an upper bound of the mechanism's epsilon, in nats, from one pass over all rows."""
    normalisers, delta = log_normalisers(scores, scale)
    return scale * delta + float(np.ptp(normalisers)) + _ROUNDING


def audited_epsilon(scores: Scores, scale: float) -> float:
    """Return the mechanism's exact epsilon over all pairs of inputs, in nats, from two passes over all rows.

    The same as ``exact_epsilon`` of its matrix, but blockwise: as scores are symmetric, the rows of the second
    pass are the columns of the matrix.
    """
    normalisers, _ = log_normalisers(scores, scale)
    worst = 0.0
    for columns in scores.rows():
        columns *= scale
        columns -= normalisers
        worst = max(worst, float(np.ptp(columns, axis=1).max()))
    return worst + _ROUNDING


def calibrated_scale(scores: Scores, epsilon: float) -> float:
    """Return the scale, as a rule within 0.2 percent of the best, at which the exact epsilon is within the target.

    Returns the highest scale that an exact evaluation has found valid, or epsilon / (2 Delta), the textbook's.

    Raises
    ------
    SettingError
        Naming ``privacy.epsilon``, if it cannot be reached with weights that a float64 holds.
    """
    delta = max(float((rows.max(axis=1) - rows.min(axis=1)).max()) for rows in scores.rows())
    if delta == 0:  # nothing is nearer than anything else: every scale gives the uniform distribution
        return 1.0
    limit = SPAN / delta * (1 - 1e-9)
    low, high = (0.0, 0.0), (math.inf, math.inf)  # scales and their epsilons
    scale = epsilon / delta
    for _ in range(_PASSES):
        scale = min(scale, limit)
        found = audited_epsilon(scores, scale)
        if found > epsilon:
            high = (scale, found)
        else:
            low = (scale, found)
            if found >= _CLOSE * epsilon:
                break
            if scale == limit:
                raise SettingError(
                    f"privacy.epsilon = {epsilon!r}: weights that float64 holds reach {found:.5g} over this "
                    "vocabulary; ask for no more than that"
                )
        scale = _between(low, high, epsilon * (1 + _CLOSE) / 2)
    return max(low[0], (epsilon - _ROUNDING) / (2 * delta))


def _between(low: tuple[float, float], high: tuple[float, float], aim: float) -> float:
    """Return where the line through two points of scale and epsilon, or the origin and the low one, is at ``aim``."""
    if math.isinf(high[0]):
        return low[0] * aim / low[1]
    return low[0] + (high[0] - low[0]) * (aim - low[1]) / (high[1] - low[1])
