"""RANTEXT: the Exponential Mechanism over a list of near words, whose radius is random.

InferDPT (Tong et al., arXiv 2310.12214; IEEE TDSC 2025, section V) draws, for every token t, a noise vector Y,
takes the words that are nearer to t than t + Y is as the list C(t), and releases

    Pr[y|t, Y] ∝ exp(eps u(t, y) / 2)  for y in C(t).

``rantext`` is the authors' code, ``rantext-fate`` the variant in FATE-LLM (``InferDPTKit``); they differ in noise,
test and score. With D_j the range of dimension j over the vocabulary:

              noise Y_j               y is in C(t) if                   u(t, y)
    official  Laplace(0, D_j / Z)     ||phi(y) - phi(t)|| < ||Y||       1 - ||phi(y) - phi(t)|| / ||Y||
    FATE-LLM  Laplace(0, 2 D_j / eps) cos(y, t) >= cos(t, t + Y)        cos(y, t)

    Z(eps) = eps below 2, else 0.0165816 ln(19.0647 eps - 38.1294) + 9.31108 (a fitted curve: 9.12 at 2, 9.40 at 14)

Neither is epsilon-LDP: the proof holds for inputs in one given list, but the list is centred at the secret. What is
near t is as good as never far from t', so an output rules out inputs whatever epsilon says.

Here the embeddings are ``Vocabulary.directions``: centred, of unit length (so the FATE-LLM test does not depend on
the length of an embedding any more), with a dimension for the filling words. In the closed vocabulary every token
has an embedding: the official dropping of unknown tokens and random numbers for numbers do not occur, nor does
FATE-LLM's passing on of unknown tokens and numbers in clear. t itself is always in its list, which is thus never
empty, so nothing is dropped for that either.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import numpy as np
import torch
from numpy.typing import NDArray

from pdss_fl.privacy.mechanism import PrivacyGuarantee, register_mechanism
from pdss_fl.privacy.noise import NoiseMechanism, uniform_doubles
from pdss_fl.privacy.sampling import RandomBytes
from pdss_fl.privacy.vocabulary import Vocabulary


class _RandomList(NoiseMechanism):
    """The law above; a subclass gives noise, test and score."""

    no_matrix = "the list of outputs is random, and its probability has no closed form"

    def __init__(self, vocabulary: Vocabulary, *, epsilon: float, neighbours: int = 1) -> None:
        super().__init__(vocabulary, epsilon=epsilon, neighbours=neighbours)
        self._ranges = np.ptp(vocabulary.directions, axis=0).astype(np.float64)

    @property
    def guarantee(self) -> PrivacyGuarantee:
        """None."""
        return PrivacyGuarantee(
            "none",
            math.inf,
            0.0,
            "token",
            "Outputs are drawn from a random list around the private word, so a released word all but rules out every "
            f"word that is far from it: epsilon {self.epsilon:g} is nominal, and no finite one is known to hold.",
        )

    @abstractmethod
    def _listed(
        self, tokens: NDArray[np.int64], noise: NDArray[np.float64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """Return for ids (n,) and Laplace noise of scale D_j (n, d + 1) what is listed, and u, both (n, V)."""

    def _released(self, tokens: NDArray[np.int64], source: RandomBytes) -> NDArray[np.int64]:
        halves = 2 * uniform_doubles((len(tokens), len(self._ranges)), source) - 1
        noise = -np.sign(halves) * np.log1p(-np.abs(halves)) * self._ranges
        listed, scores = self._listed(tokens, noise)
        listed[np.arange(len(tokens)), tokens] = True
        scores = np.where(listed, self.epsilon / 2 * scores, -np.inf)
        ends = np.exp(scores - scores.max(axis=1, keepdims=True)).cumsum(axis=1)
        # u is above 0 and u times the total not above it: what is found has a weight.
        place = uniform_doubles((len(tokens), 1), source) * ends[:, -1:]
        found: NDArray[np.int64] = (ends >= place).argmax(axis=1)
        return found


@register_mechanism("rantext")
class Rantext(_RandomList):
    """RANTEXT as its authors' code has it, without a guarantee; see above for the law and what differs here.

    Parameters
    ----------
    vocabulary : Vocabulary
        V words with their directions.
    epsilon : float
        Nominal, finite, above 0; 6 in the paper's main comparison.
    neighbours : int (default: 1)
        As for every mechanism; not used.

    Raises
    ------
    SettingError
        If a parameter is out of range.
    """

    def _listed(
        self, tokens: NDArray[np.int64], noise: NDArray[np.float64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        radius = np.linalg.norm(noise, axis=1, keepdims=True) / noise_divisor(self.epsilon)
        radius = np.maximum(radius, np.finfo(np.float64).tiny)  # 0 where all embeddings are equal
        distance = self.vocabulary.distances(torch.from_numpy(tokens), slice(0, len(self.vocabulary)))
        return distance < radius, 1 - distance / radius


@register_mechanism("rantext-fate")
class RantextFate(_RandomList):
    """RANTEXT as FATE-LLM has it, without a guarantee; see above for the law and what differs here.

    Parameters and errors are those of ``Rantext``.
    """

    def _listed(
        self, tokens: NDArray[np.int64], noise: NDArray[np.float64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        word = self.vocabulary.directions[tokens].astype(np.float64)
        noisy = word + noise * 2 / self.epsilon
        product = np.einsum("ij,ij->i", word, noisy)
        norms = np.linalg.norm(word, axis=1) * np.linalg.norm(noisy, axis=1)
        reached = np.divide(product, norms, out=np.zeros_like(product), where=norms > 0)  # a zero embedding: 0
        cosine = self.vocabulary.cosines(torch.from_numpy(tokens), slice(0, len(self.vocabulary))).astype(np.float64)
        return cosine >= reached[:, None], cosine


def noise_divisor(epsilon: float) -> float:
    """Return Z, by which the official noise is divided; it jumps from 2 to 9.12 at epsilon 2 and is flat above."""
    if epsilon < 2:
        return epsilon
    return 0.01658160142016071 * math.log(19.064721649556482 * epsilon - 38.1294334077209) + 9.311083811697406
