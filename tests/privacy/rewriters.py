"""Small deterministic rewriters for tests: tables and copies."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from pdss_fl.privacy import Vocabulary, create_mechanism
from pdss_fl.privacy.rewriting import Rewriter, RewritingMechanism

NAMES = ("encoder-empirical", "encoder-top", "encoder-dp-decoding", "encoder-difference-clipping", "encoder-composed")
CLAIMING = NAMES[1:]
_ROWS = 997


@lru_cache
def words(size: int, blanks: int = 0) -> Vocabulary:
    rows = torch.randn(size - blanks, 3, generator=torch.Generator().manual_seed(0))
    return Vocabulary([f"w{i}" for i in range(size - blanks)], rows, blanks=blanks)


def table(size: int, scale: float = 20.0, seed: int = 0) -> Rewriter:
    """Logits at random, which depend on every word of the document and of the prefix, and on their places."""
    rows = scale * torch.randn(_ROWS, size, generator=torch.Generator().manual_seed(seed))

    def rewriter(documents: Tensor | None, prefixes: Tensor) -> Tensor:
        key = prefixes.shape[1] + ((prefixes + 1) * (11 * torch.arange(prefixes.shape[1]) + 5)).sum(dim=1)
        if documents is not None:
            key = key + 31 * ((documents + 1) * (7 * torch.arange(documents.shape[1]) + 3)).sum(dim=1)
        return rows[key % _ROWS]

    return rewriter


def copier(size: int, height: float = 50.0) -> Rewriter:
    """Writes the document word by word; without one, all words are equally likely."""

    def rewriter(documents: Tensor | None, prefixes: Tensor) -> Tensor:
        logits = torch.zeros(len(prefixes), size)
        if documents is None:
            return logits
        return logits.scatter_(1, documents[:, prefixes.shape[1]][:, None], height)

    return rewriter


def extreme(size: int) -> Rewriter:
    """The worst case of differences: document 0 is all word 0, publicly rare, any other all word 1, publicly likely."""

    def rewriter(documents: Tensor | None, prefixes: Tensor) -> Tensor:
        public = torch.zeros(len(prefixes), size, dtype=torch.float64)
        public[:, 0], public[:, 1] = -30.0, 1.0
        if documents is None:
            return public
        favoured = torch.where((documents == 0).all(dim=1), 0, 1)
        return public.scatter_add(1, favoured[:, None], torch.full((len(prefixes), 1), 60.0, dtype=torch.float64))

    return rewriter


def make(
    name: str, vocabulary: Vocabulary, rewriter: Rewriter, epsilon: float = 2.0, **given: Any
) -> RewritingMechanism:
    given = {"neighbours": 2, "model": "test", **given}
    mechanism = create_mechanism(name, vocabulary, epsilon=epsilon, rewriter=rewriter, **given)
    assert isinstance(mechanism, RewritingMechanism)
    return mechanism
