"""SanText and SanText+: the nearer a word, the likelier, by distance and over the whole vocabulary.

With the distance d(x, y) = ||phi(x) - phi(y)|| of public embeddings, SanText releases

    Pr[y|x] = exp(-(eps/2) d(x, y)) / Z(x),    Z(x) = sum over y of exp(-(eps/2) d(x, y))

and SanText+ the same over a set V_S of sensitive words only; another word becomes one of them with
probability p, and stays as it is otherwise (Yue et al., "Differential Privacy for Text Analytics via Natural
Text Sanitization", Findings of ACL 2021, sections 4.1 and 4.2).

The embeddings are those of ``Vocabulary.distances``: centred and of unit length, so no two words are further
apart than 2.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pdss_fl.errors import SettingError
from pdss_fl.privacy.matrix import MatrixMechanism
from pdss_fl.privacy.mechanism import PrivacyGuarantee, register_mechanism
from pdss_fl.privacy.vocabulary import Vocabulary


@register_mechanism("santext")
class SanText(MatrixMechanism):
    """Metric LDP per token: Pr[y|x] <= e^(eps d(x, x')) Pr[y|x'], half of it from the weight, half from Z.

    As d is at most 2, any two words are at most e^(2 eps) apart: what pure LDP it has is 2 eps, not eps. The
    sampler is exact, see ``MatrixMechanism``.

    Parameters
    ----------
    vocabulary : Vocabulary
        V words with their distances.
    epsilon : float
        In nats per unit of distance, above 0, at most 700. 15 in the authors' code, over other distances.
    neighbours : int (default: 1)
        As for every mechanism; not used.

    Raises
    ------
    SettingError
        If a parameter is out of range.
    """

    def __init__(self, vocabulary: Vocabulary, *, epsilon: float, neighbours: int = 1) -> None:
        super().__init__(vocabulary, epsilon=epsilon, neighbours=neighbours)

    @property
    def guarantee(self) -> PrivacyGuarantee:
        """Metric LDP of every token, epsilon in nats per unit of distance."""
        return PrivacyGuarantee(
            "metric-ldp",
            self.epsilon,
            0.0,
            "token",
            f"Two words at distance d lead to any released word with probabilities at most e^({self.epsilon:g} d) "
            f"apart: near words are hardly told apart, and any two, at d = 2, by at most e^{2 * self.epsilon:g}; the "
            "number of words is not protected.",
        )

    @property
    def parameters(self) -> str:
        """Epsilon and size of the vocabulary."""
        return f"epsilon={self.epsilon!r} vocabulary={len(self.vocabulary)}"

    def _log_weights(self, ids: Tensor, outputs: slice) -> Tensor:
        return torch.from_numpy(-self.epsilon / 2 * self.vocabulary.distances(ids, outputs))


LEAST_REPLACED = 1e-100
"""Below it, the odds of staying and the weights of a far word might not fit into one row of float64 numbers."""


@register_mechanism("santext-plus")
class SanTextPlus(SanText):
    """No guarantee for every word: what is not sensitive is sent as it is with probability 1 - p, and known then.

    With S(y|x) for SanText over V_S, it releases S(y|x) for x in V_S; for any other x, it releases x itself with
    probability 1 - p and y in V_S with probability p S(y|x). So, for the released words y in V_S,

    - Pr[y|x] <= e^(eps d(x, x')) Pr[y|x'] if both or neither of x and x' are in V_S;
    - Pr[y|x] <= e^(eps d(x, x')) / p Pr[y|x'] if only x is, and p e^(eps d(x, x')) if only x' is;

    and a released word outside of V_S discloses the input (the authors' "utility-optimised" metric LDP).

    Sensitive are the least important words, which are the last ones of the vocabulary, and all filling words,
    so that the length of a text is as hidden as a rare word. In the closed vocabulary nothing is unknown: the
    authors' uniform replacement of unknown words does not occur.

    Parameters
    ----------
    vocabulary : Vocabulary
        V words with their distances, the most important first.
    epsilon : float
        In nats per unit of distance, above 0.
    neighbours : int (default: 1)
        As for every mechanism; not used.
    sensitive : float (default: 0.5)
        w, the share of the words that are sensitive, above 0, at most 1; rounded up to whole words.
    replaced : float (default: 0.2)
        p, the probability that a word that is not sensitive is replaced, from ``LEAST_REPLACED`` to 1.

    Raises
    ------
    SettingError
        If a parameter is out of range, or makes some word less likely than a float64 can hold.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        epsilon: float,
        neighbours: int = 1,
        sensitive: float = 0.5,
        replaced: float = 0.2,
    ) -> None:
        if not 0 < sensitive <= 1:
            raise SettingError(f"privacy.parameters: sensitive = {sensitive!r}: expected a share above 0, at most 1")
        if not LEAST_REPLACED <= replaced <= 1:
            raise SettingError(
                f"privacy.parameters: replaced = {replaced!r}: expected a share from {LEAST_REPLACED:g} to 1"
            )
        super().__init__(vocabulary, epsilon=epsilon, neighbours=neighbours)
        self.sensitive, self.replaced = sensitive, replaced
        self._first = vocabulary.words - math.ceil(sensitive * vocabulary.words)  # V_S is every id from here
        self._log_kept = np.full(len(vocabulary), np.nan)  # log-weights of words that stay, where known

    @property
    def guarantee(self) -> PrivacyGuarantee:
        """None that holds for every word."""
        return PrivacyGuarantee(
            "none",
            math.inf,
            0.0,
            "token",
            f"The {self._first} most important words are sent as they are with probability {1 - self.replaced:g} and "
            "are then known for certain, so nothing is guaranteed for every word; two of the other words at distance d "
            f"lead to any released word with probabilities at most e^({self.epsilon:g} d) apart.",
        )

    @property
    def parameters(self) -> str:
        """Those of SanText and the two shares."""
        return f"{super().parameters} sensitive={self.sensitive!r} replaced={self.replaced!r}"

    def _log_weights(self, ids: Tensor, outputs: slice) -> Tensor:
        weights = super()._log_weights(ids, outputs)
        weights[:, : max(self._first - outputs.start, 0)] = -torch.inf
        stays = ((ids < self._first) & (ids >= outputs.start) & (ids < outputs.stop)).nonzero()[:, 0]
        weights[stays, ids[stays] - outputs.start] = torch.from_numpy(self._log_weight_kept(ids[stays].numpy()))
        return weights

    def _log_weight_kept(self, ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the logarithms of (1 - p) / p Z_S(x): beside them, the weights of V_S have a share of p."""
        for x in np.unique(ids[np.isnan(self._log_kept[ids])]):  # one by one: the same bits whoever asks
            over = super()._log_weights(torch.tensor([x]), slice(self._first, len(self.vocabulary)))
            odds = math.log((1 - self.replaced) / self.replaced) if self.replaced < 1 else -math.inf
            self._log_kept[x] = odds + float(over.logsumexp(dim=1))
        return self._log_kept[ids]
