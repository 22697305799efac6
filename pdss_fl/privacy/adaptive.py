"""The staircase with a budget for every public type of word: salient words hide among more, at the same claim.

Every word has a public salience s in [0, 1], fixed before any private text is read, and with it

    eps_x = eps_min + (eps_max - eps_min) (1 - s_x).

FedCoT's (arXiv 2406.12403v2) adaptive mechanism is not public; this definition is ours. What is hard about it is
two words of different types: if each were a staircase of its own, their far words would differ, too. So all
words share one far probability f, the one of the plain staircase with k near words at eps_max, and a type gets
as many near words k_x as take it to eps_x:

    Pr[y|x] = n_x = (1 - (V - k_x) f) / k_x  if y is in N_{k_x}(x),    f otherwise,
    f = 1 / (k e^eps_max + V - k),    n_x / f = e^eps_x   for   k_x = k (e^eps_max - 1) / (e^eps_x - 1).

- n_x falls in k_x, k_x >= k, and no n_x is below f. So over all pairs, of whatever types, the largest ratio is
  that of a word with s = 0, n_x / f = e^eps_max: pure eps_max-LDP, tight where there is such a word. Two words of
  salience s are at most e^eps_x apart.
- The mass of the near set is 1 - (V - k_x) f: not below the plain staircase's. It is spread over more words.
  If nearly all words are salient, a plain staircase with more neighbours keeps more of the meaning at the same
  attack (``tests/benchmarks/bench_extremal.py``): it pays where some words need more cover than the claim gives.
- Documents: at every level a >= 0 the hockey-stick divergence of two words is at most that of two plain ones
  with disjoint sets, sum of (Pr[y|x] - e^a f)+ = 1 - V f - k_x f (e^a - 1), the largest for k_x = k; a < 0
  follows by exchanging the two. So what the plain staircase's document is worth, this one's is, too: its exact
  composition stands, and no document passes the sum of its tokens' eps_max.

Types do not depend on any text, so that they are public tells nothing.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pdss_fl.errors import SettingError
from pdss_fl.privacy.grammar import FUNCTION_WORDS
from pdss_fl.privacy.mechanism import PrivacyGuarantee, register_mechanism
from pdss_fl.privacy.sampling import BITS, bernoulli, random_bytes, uniform
from pdss_fl.privacy.staircase import Staircase, outside
from pdss_fl.privacy.vocabulary import BLANK, Vocabulary

_MOST = 4  # times k: near words of the most salient, unless epsilon_min says otherwise
_WHOLE = 2**BITS


@register_mechanism("adaptive-staircase")
class AdaptiveStaircase(Staircase):
    """Pure epsilon-LDP per token over all pairs of types, and so is the sampler as it runs.

    Near masses are multiples of 2^-128, rounded so that no far probability is below the least salient type's.

    Parameters
    ----------
    vocabulary : Vocabulary
        V words with their neighbours.
    epsilon : float
        eps_max in nats per token, finite, above 0: the claim.
    neighbours : int
        k, at least 1: near words of the least salient; taken as V-1 where it is larger.
    salience : Sequence[float] | None (default: None)
        One number in [0, 1] for each of the V ids, from public data. By default 0 for words of English grammar
        and filling words, which tell little, and 1 for all others.
    epsilon_min : float | None (default: None)
        For salience 1, above 0, at most ``epsilon``; by default what 4k near words amount to. No type has more
        than V-1 near words, whatever this asks for.

    Raises
    ------
    SettingError
        If a parameter is out of range, or epsilon is so small that 128 bits cannot tell it from 0.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        epsilon: float,
        neighbours: int,
        salience: Sequence[float] | None = None,
        epsilon_min: float | None = None,
    ) -> None:
        super().__init__(vocabulary, epsilon=epsilon, neighbours=neighbours)
        lowest = _times_as_many(self.epsilon, _MOST) if epsilon_min is None else epsilon_min
        if not 0 < lowest <= self.epsilon:
            raise SettingError(
                f"privacy.parameters: epsilon-min = {epsilon_min!r}: expected above 0, at most {self.epsilon:g}"
            )
        table = np.asarray(_by_grammar(vocabulary) if salience is None else salience, dtype=np.float64)
        if table.shape != (len(vocabulary),) or not ((table >= 0) & (table <= 1)).all():
            raise SettingError(
                "adaptive-staircase: salience has to hold one number in [0, 1] for each id of the vocabulary"
            )
        self._public = f"epsilon-min={lowest!r} salience={hashlib.sha256(table.tobytes()).hexdigest()[:16]}"
        wanted = lowest + (self.epsilon - lowest) * (1 - table)
        self.sizes = _set_sizes(wanted, self.epsilon, self.neighbours, len(vocabulary))
        self._near = vocabulary.neighbours(int(self.sizes.max()))
        self._thresholds = _thresholds(
            sorted({*self.sizes.tolist()}), self._threshold, self.neighbours, len(vocabulary)
        )

    @property
    def parameters(self) -> str:
        """As of every mechanism, with the least epsilon and a hash of the saliences."""
        return f"{super().parameters} {self._public}"

    @property
    def guarantee(self) -> PrivacyGuarantee:
        """Pure LDP of every token."""
        return PrivacyGuarantee(
            "pure-ldp",
            self.epsilon,
            0.0,
            "token",
            f"Any two words, whatever their types, lead to any released word with probabilities at most "
            f"e^{self.epsilon:g} apart, two salient ones by less; the words of a text add up, and their number is not "
            "protected.",
        )

    @property
    def near_tokens(self) -> float:
        """The share of tokens that come out as one of their near words, every word equally likely."""
        return float(np.mean([self._thresholds[k] / _WHOLE for k in self.sizes.tolist()]))

    @property
    def kept_tokens(self) -> float:
        """The share of tokens that come out unchanged, every word equally likely."""
        return float(np.mean([self._thresholds[k] / (_WHOLE * k) for k in self.sizes.tolist()]))

    def word_epsilons(self) -> Tensor:
        """Return what each word really has, ln of its near over its far probability, float64 (V,), in nats."""
        size = len(self.vocabulary)
        found = {k: math.log(Fraction(t * (size - k), (_WHOLE - t) * k)) for k, t in self._thresholds.items()}
        return torch.tensor([found[k] for k in self.sizes.tolist()], dtype=torch.float64)

    def perturb(self, ids: Tensor, generator: np.random.Generator | None = None) -> Tensor:
        """Replace every token independently of the others; see the base class.

        Raises
        ------
        ValueError
            If ``ids`` is not a LongTensor (n,) within 0 .. V-1.
        """
        tokens, source = self.vocabulary.checked(ids).numpy(), random_bytes(generator)
        released, kinds = np.empty_like(tokens), self.sizes[tokens]
        for k in np.unique(kinds).tolist():
            of_kind = np.flatnonzero(kinds == k)
            near, n = self._near[tokens[of_kind], :k].numpy(), len(of_kind)
            stays_near = bernoulli(self._thresholds[k], n, source)
            one_near = near[np.arange(n), uniform(k, n, source)]
            one_far = outside(near, uniform(len(self.vocabulary) - k, n, source))
            released[of_kind] = np.where(stays_near, one_near, one_far)
        return torch.from_numpy(released)

    def log_prob_rows(self, ids: Tensor) -> Tensor:
        """Return the log-probabilities that the sampler really has, float64 of shape (n, V), row = input."""
        size = len(self.vocabulary)
        rows = torch.empty(len(ids), size, dtype=torch.float64)
        kinds = self.sizes[self.vocabulary.checked(ids).numpy()]
        for k in np.unique(kinds).tolist():
            of_kind = torch.from_numpy(np.flatnonzero(kinds == k))
            near = math.log(self._thresholds[k] / (_WHOLE * k))
            far = math.log((_WHOLE - self._thresholds[k]) / (_WHOLE * (size - k)))
            part = torch.full((len(of_kind), size), far, dtype=torch.float64)
            rows[of_kind] = part.scatter_(1, self._near[ids[of_kind], :k], near)
        return rows


def _by_grammar(vocabulary: Vocabulary) -> list[float]:
    return [float(token not in FUNCTION_WORDS and token != BLANK) for token in vocabulary.tokens]


def _times_as_many(epsilon: float, times: int) -> float:
    """Return the epsilon of a type with so many times as many near words, ln(1 + (e^eps - 1) / times)."""
    return float(np.logaddexp(0.0, epsilon + math.log(-math.expm1(-epsilon)) - math.log(times)))


def _set_sizes(wanted: NDArray[np.float64], epsilon: float, k: int, size: int) -> NDArray[np.int64]:
    """Return how many near words take each word to its wanted epsilon (V,), or just below it; V-1 at most."""
    log_times = epsilon - wanted + np.log(np.expm1(-epsilon) / np.expm1(-wanted))
    near = np.exp(np.minimum(math.log(k) + log_times, math.log(size)))
    sizes: NDArray[np.int64] = np.minimum(np.ceil(near - 1e-6), size - 1).astype(np.int64)
    return sizes


def _thresholds(sizes: Sequence[int], plain: int, k: int, size: int) -> dict[int, int]:
    """Return for each size of a near set the integer T with near mass T / 2^128 that keeps the plain claim.

    Parameters
    ----------
    sizes : Sequence[int]
        k .. V-1.
    plain : int
        T of the plain staircase with ``k`` near words of ``size``, see ``near_threshold``.

    Raises
    ------
    SettingError
        If no such integers exist, which only an epsilon next to 0 can cause.
    """
    far = Fraction(_WHOLE - plain, size - k)  # no other may be below it
    found = {n: _WHOLE - math.ceil((size - n) * far) for n in sizes}
    levels = [Fraction(t, n) for n, t in found.items()] + [Fraction(_WHOLE - t, size - n) for n, t in found.items()]
    if max(levels) / min(levels) > Fraction(plain, k) / far:
        raise SettingError("privacy.epsilon is too small for 128 bits to tell types of words apart: raise it")
    return found
