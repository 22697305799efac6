"""Which mechanism keeps most meaning at equal audited epsilon and equal attack success, and the optimum.

Run: ``python tests/benchmarks/bench_extremal.py`` (a minute). Two tables, each made in one run:

1. 36 things of twelve kinds: each mechanism beside the optimum of the linear program over *all* epsilon-LDP
   mechanisms whose best attack is no better than its own. The program maximises the chance that a word of the same
   kind comes out, subject to q(y) <= P(y|x) <= e^eps q(y).
2. The everyday vocabulary: the same for every mechanism, and the best attack on two releases of one word.

Columns: exact epsilon of the matrix; mass on words of the same kind; success of the best attack with all words
equally likely, at Zipf's frequencies in a random order of the words, and (second table) on two releases.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import linprog
from torch import Tensor

from pdss_fl.data.everyday_facts import KINDS
from pdss_fl.privacy import PrivacyMechanism, Staircase, Vocabulary
from pdss_fl.privacy.adaptive import AdaptiveStaircase
from pdss_fl.privacy.attacks import optimal_success
from pdss_fl.privacy.audit import exact_epsilon
from pdss_fl.privacy.blocks import Blocks
from pdss_fl.vocabularies import load_vocabulary

KIND_OF = {thing: i for i, kind in enumerate(KINDS) for thing in f"{kind.things} {kind.mass}".split()}
SMALL_KINDS, THINGS = 12, 3


def same_kind(vocabulary: Vocabulary) -> Tensor:
    """Return whether two ids are things of one kind, float64 (V, V); words that are no things never are."""
    kinds = torch.tensor([KIND_OF.get(token, -1) for token in vocabulary.tokens])
    return ((kinds[:, None] == kinds) & (kinds[:, None] >= 0)).double()


def zipf(size: int) -> Tensor:
    """Return Zipf's probabilities in a random order, float64 (V,)."""
    frequency = 1 / torch.arange(1, size + 1, dtype=torch.float64)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(0))
    return (frequency / frequency.sum())[order]


def kept_kind(probability: Tensor, same: Tensor) -> float:
    """Return the mass on words of the input's kind, over all things."""
    things = same.diagonal() > 0
    return float((probability * same).sum(dim=1)[things].mean())


def twice(probability: Tensor) -> float:
    """Return the success of the best attack on two independent releases of a word, all words equally likely."""
    return sum(float((probability * column[:, None]).amax(dim=0).sum()) for column in probability.T) / len(probability)


def best_kind(epsilon: float, same: NDArray[np.float64], attack: float) -> float:
    """Return the most mass on the same kind of any epsilon-LDP mechanism with at most that attack success.

    Variables: P (V*V), the floor q (V) of every output, and t (V), each output's largest P, with sum t / V <= attack.
    """
    size = len(same)
    entries = size * size
    identity = sparse.identity(entries, format="csr")
    by_output = sparse.kron(np.ones((size, 1)), sparse.identity(size), format="csr")
    nothing = sparse.csr_matrix((entries, size))
    bounds = sparse.vstack(
        [
            sparse.hstack([-identity, by_output, nothing]),
            sparse.hstack([identity, -math.exp(epsilon) * by_output, nothing]),
            sparse.hstack([identity, nothing, -by_output]),
            sparse.hstack([sparse.csr_matrix((1, entries + size)), np.ones((1, size)) / size]),
        ]
    )
    limits = np.r_[np.zeros(3 * entries), attack]
    rows = sparse.hstack([sparse.kron(sparse.identity(size), np.ones((1, size))), sparse.csr_matrix((size, 2 * size))])
    gain = np.r_[-same.ravel() / size, np.zeros(2 * size)]
    found = linprog(gain, A_ub=bounds, b_ub=limits, A_eq=rows, b_eq=np.ones(size), method="highs-ipm")
    if found.status != 0:
        raise RuntimeError(found.message)
    return float(-found.fun)


def mechanisms(vocabulary: Vocabulary, epsilon: float, k: int) -> list[PrivacyMechanism]:
    """Return those to compare."""
    kinds = (Staircase, AdaptiveStaircase, Blocks)
    return [kind(vocabulary, epsilon=epsilon, neighbours=k) for kind in kinds]


def small_vocabulary(full: Vocabulary) -> Vocabulary:
    """Return three things each of twelve kinds, with the embeddings they have in ``full``."""
    ids = [i for i, token in enumerate(full.tokens) if KIND_OF.get(token, SMALL_KINDS) < SMALL_KINDS]
    chosen = [i for kind in range(SMALL_KINDS) for i in [j for j in ids if KIND_OF[full.tokens[j]] == kind][:THINGS]]
    rows = torch.from_numpy(full.cosines(torch.tensor(chosen), slice(0, len(full))))  # their place among all words
    return Vocabulary([full.tokens[i] for i in chosen], rows, blanks=0)


def row(mechanism: PrivacyMechanism, k: int, epsilon: float, same: Tensor) -> str:
    """Return the columns that both tables share."""
    matrix = mechanism.log_prob()
    size = len(same)
    uniform = torch.full((size,), 1 / size, dtype=torch.float64)
    attacks = (optimal_success(mechanism, prior) for prior in (uniform, zipf(size)))
    shares = "".join(f"{share:>10.3f}" for share in (kept_kind(matrix.exp(), same), *attacks))
    return f"{mechanism.name:<20}{k:>3}{epsilon:>6.1f}{exact_epsilon(matrix):>9.4f}{shares}"


def main() -> None:
    """Print both tables."""
    head = f"{'mechanism':<20}{'k':>3}{'eps':>6}{'exact':>9}{'kind':>10}{'uniform':>10}{'Zipf':>10}"
    full = load_vocabulary("everyday", 830, "smollm2-135m-instruct")
    small = small_vocabulary(full)
    same = same_kind(small)
    print(f"36 things of 12 kinds\n{head}{'optimum':>10}")
    for epsilon, k in ((2.0, 3), (2.0, 5), (4.0, 3), (4.0, 5)):
        for mechanism in mechanisms(small, epsilon, k):
            attack = optimal_success(mechanism, torch.full((len(small),), 1 / len(small), dtype=torch.float64))
            optimum = best_kind(epsilon, same.numpy(), attack + 1e-9)
            print(f"{row(mechanism, k, epsilon, same)}{optimum:>10.3f}", flush=True)
    same = same_kind(full)
    print(f"\neveryday vocabulary, {len(full)} ids\n{head}{'twice':>10}")
    for epsilon, k in ((6.0, 3), (6.0, 5), (8.0, 3), (8.0, 5), (8.0, 8)):
        for mechanism in mechanisms(full, epsilon, k):
            print(f"{row(mechanism, k, epsilon, same)}{twice(mechanism.log_prob().exp()):>10.3f}", flush=True)


if __name__ == "__main__":
    main()
