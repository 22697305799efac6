"""What the mechanisms that add noise to embeddings share: they can be drawn from, but state no matrix.

Their noise is drawn as doubles, which stand for real numbers: unlike ``sampling``, nothing here is exact. That is
enough for mechanisms that guarantee nothing; where one does, its guarantee is that of the real-valued noise.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pdss_fl.privacy.mechanism import PrivacyMechanism
from pdss_fl.privacy.sampling import RandomBytes, random_bytes
from pdss_fl.privacy.vocabulary import Vocabulary

_WORK_BYTES = 2**26  # of the rows that are computed at a time
_PUBLIC_DRAWS = 4096


class NoiseMechanism(PrivacyMechanism):
    """A context-free mechanism that is known by its sampler only.

    A subclass implements ``_released`` and ``guarantee``, and says in ``no_matrix`` why there is no matrix.

    Parameters
    ----------
    vocabulary : Vocabulary
        V words with their directions.
    epsilon : float
        Finite, above 0; its meaning is the subclass's.
    neighbours : int (default: 1)
        As for every mechanism; not used.

    Raises
    ------
    SettingError
        If a parameter is out of range.
    """

    no_matrix: ClassVar[str]

    def __init__(self, vocabulary: Vocabulary, *, epsilon: float, neighbours: int = 1) -> None:
        super().__init__(vocabulary, epsilon=epsilon, neighbours=neighbours)
        self._kept: float | None = None

    @abstractmethod
    def _released(self, tokens: NDArray[np.int64], source: RandomBytes) -> NDArray[np.int64]:
        """Return what is released for valid ids (n,), every one independently of the others."""

    def perturb(self, ids: Tensor, generator: np.random.Generator | None = None) -> Tensor:
        """Replace every token independently of the others; see the base class.

        Raises
        ------
        ValueError
            If ``ids`` is not a LongTensor (n,) within 0 .. V-1.
        """
        tokens, source = self.vocabulary.checked(ids).numpy(), random_bytes(generator)
        step = max(1, _WORK_BYTES // (8 * sum(self.vocabulary.directions.shape)))
        released = np.empty_like(tokens)
        for start in range(0, len(tokens), step):
            released[start : start + step] = self._released(tokens[start : start + step], source)
        return torch.from_numpy(released)

    def log_prob_rows(self, ids: Tensor) -> Tensor:
        """Raise ``NotImplementedError`` with the reason."""
        raise NotImplementedError(f"mechanism {self.name!r} states no matrix of probabilities: {self.no_matrix}")

    @property
    def kept_tokens(self) -> float:
        """The share of tokens that are expected to come out unchanged, every word equally likely.

        Counted among 4,096 public words, so wrong by up to 0.02.
        """
        if self._kept is None:
            generator = np.random.default_rng(0)  # no private word is perturbed here
            ids = torch.from_numpy(generator.integers(len(self.vocabulary), size=_PUBLIC_DRAWS))
            self._kept = float((self.perturb(ids, generator) == ids).double().mean())
        return self._kept

    @property
    def parameters(self) -> str:
        """Epsilon and size of the vocabulary."""
        return f"epsilon={self.epsilon!r} vocabulary={len(self.vocabulary)}"


def uniform_doubles(shape: tuple[int, ...], source: RandomBytes) -> NDArray[np.float64]:
    """Return independent numbers in the open interval (0, 1), uniform in steps of 2^-52."""
    count = int(np.prod(shape))
    bits = np.frombuffer(source(8 * count), dtype="<u8") >> np.uint64(12)
    numbers: NDArray[np.float64] = (bits.astype(np.float64) + 0.5) * 2.0**-52
    return numbers.reshape(shape)
