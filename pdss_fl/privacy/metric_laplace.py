"""Multivariate Laplace noise on the embedding, then the nearest word: metric LDP in closed form.

The released word is the nearest to phi(x) + z, with z = r S v: r ~ Gamma(m, 1/eps) for m dimensions and v uniform
on their sphere. The density of z is in proportion to exp(-eps ||z||_S), ||z||_S = ||S^-1 z||, so by the triangle
inequality any two words lead to any noisy vector with densities at most e^(eps ||phi(x) - phi(x')||_S) apart, and
the nearest word is post-processing.

- ``metric-laplace``: S = 1 (Feyisetan et al., "Privacy- and Utility-Preserving Textual Analysis via Calibrated
  Multivariate Perturbations", WSDM 2020, algorithm 1).
- ``metric-mahalanobis``: S^2 = lambda C + (1 - lambda) 1, with C the covariance of the embeddings, scaled to a mean
  variance of 1 (Xu et al., "A Differentially Private Text Perturbation Method Using Regularized Mahalanobis
  Metric", PrivateNLP 2020, algorithm 1). S v is not scaled back to unit length, as some public code does: then the
  guarantee would not hold.

The embeddings are ``Vocabulary.directions``: centred, of unit length, with a dimension for the filling words, so
m = d + 1. In many dimensions a word comes out as it is or as an unrelated one, hardly ever as a near one.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

from pdss_fl.errors import SettingError
from pdss_fl.privacy.mechanism import PrivacyGuarantee, register_mechanism
from pdss_fl.privacy.noise import NoiseMechanism, uniform_doubles
from pdss_fl.privacy.sampling import RandomBytes
from pdss_fl.privacy.vocabulary import Vocabulary


@register_mechanism("metric-laplace")
class MetricLaplace(NoiseMechanism):
    """Metric LDP per token: Pr[y|x] <= e^(eps d(x, x')) Pr[y|x'], d Euclidean between centred unit embeddings.

    As d is about 2 at most, any two words are about e^(2 eps) apart at most. The noise is drawn as doubles; the
    guarantee is that of the real-valued noise they stand for, and cannot be audited: there is no matrix.

    Parameters
    ----------
    vocabulary : Vocabulary
        V words with their directions.
    epsilon : float
        In nats per unit of distance, finite, above 0. r is m / eps on average, so tens are needed to keep words.
    neighbours : int (default: 1)
        As for every mechanism; not used.

    Raises
    ------
    SettingError
        If a parameter is out of range.
    """

    no_matrix = "a probability is an integral of the noise over the region of vectors nearest to a word"
    _metric = "Euclidean distance"

    @property
    def guarantee(self) -> PrivacyGuarantee:
        """Metric LDP of every token, epsilon in nats per unit of distance."""
        return PrivacyGuarantee(
            "metric-ldp",
            self.epsilon,
            0.0,
            "token",
            f"Two words at {self._metric} d (of public unit embeddings) lead to any released word with probabilities "
            f"at most e^({self.epsilon:g} d) apart, for noise of real numbers, which doubles stand for: near words are "
            "hardly told apart, far ones may be; the number of words is not protected.",
        )

    def distances(self, ids: Tensor) -> Tensor:
        """Return d from ids (n,) to all words, float64 of shape (n, V)."""
        words = torch.from_numpy(self._measured(self._columns.T))
        return torch.cdist(words[self.vocabulary.checked(ids)], words, compute_mode="donot_use_mm_for_euclid_dist")

    def _released(self, tokens: NDArray[np.int64], source: RandomBytes) -> NDArray[np.int64]:
        directions = self.vocabulary.directions
        shape = (len(tokens), directions.shape[1])
        radius = -np.log(uniform_doubles(shape, source)).sum(axis=1, keepdims=True) / self.epsilon
        normal = ndtri(uniform_doubles(shape, source))
        noise = self._shaped(radius * normal / np.linalg.norm(normal, axis=1, keepdims=True))
        noisy = directions[tokens] + noise
        # ||noisy - word||^2 but for ||noisy||^2, which is the same for all words
        nearest: NDArray[np.int64] = (self._squares - 2 * noisy @ self._columns).argmin(axis=1)
        return nearest

    def _shaped(self, noise: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return S times each of the vectors (n, m)."""
        return noise

    def _measured(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return S^-1 times each of the vectors (n, m)."""
        return rows

    @cached_property
    def _columns(self) -> NDArray[np.float64]:
        return self.vocabulary.directions.T.astype(np.float64)

    @cached_property
    def _squares(self) -> NDArray[np.float64]:
        squares: NDArray[np.float64] = (self._columns**2).sum(axis=0)
        return squares


@register_mechanism("metric-mahalanobis")
class MetricMahalanobis(MetricLaplace):
    """Metric LDP per token by the Mahalanobis distance d(x, x') = ||S^-1 (phi(x) - phi(x'))||, S as above.

    The noise is larger where the public embeddings vary more. d is at most 1 / sqrt(1 - lambda) times the Euclidean
    distance. As for ``MetricLaplace``, the guarantee is that of the real-valued noise.

    Parameters
    ----------
    vocabulary : Vocabulary
        V words with their directions; the covariance is theirs, every id counted once.
    epsilon : float
        In nats per unit of distance, finite, above 0.
    neighbours : int (default: 1)
        As for every mechanism; not used.
    covariance : float (default: 0.2)
        lambda, the weight of the covariance, in [0, 1); 0 is ``metric-laplace``. The paper fixes none; the default
        is that of the benchmark code MLDP (Meisenbacher et al., LREC-COLING 2024).

    Raises
    ------
    SettingError
        If a parameter is out of range.
    """

    _metric = "regularised Mahalanobis distance"

    def __init__(self, vocabulary: Vocabulary, *, epsilon: float, neighbours: int = 1, covariance: float = 0.2) -> None:
        if not 0 <= covariance < 1:
            raise SettingError(
                f"privacy.parameters: covariance = {covariance!r}: expected a weight of at least 0 and below 1"
            )
        super().__init__(vocabulary, epsilon=epsilon, neighbours=neighbours)
        self.covariance = covariance

    @property
    def parameters(self) -> str:
        """Those of metric-laplace and the weight of the covariance."""
        return f"{super().parameters} covariance={self.covariance!r}"

    def _shaped(self, noise: NDArray[np.float64]) -> NDArray[np.float64]:
        return noise @ self._root

    def _measured(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.linalg.solve(self._root, rows.T).T.astype(np.float64)

    @cached_property
    def _root(self) -> NDArray[np.float64]:
        """S, the symmetric square root, shape (m, m)."""
        size = len(self._columns)
        found = np.cov(self._columns, bias=True).reshape(size, size)
        found /= max(np.trace(found) / size, np.finfo(np.float64).tiny)  # 0 where all embeddings are equal
        values, vectors = np.linalg.eigh(self.covariance * found + (1 - self.covariance) * np.eye(size))
        root: NDArray[np.float64] = vectors * np.sqrt(values) @ vectors.T
        return root
