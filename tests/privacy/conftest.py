"""Small public vocabularies."""

from __future__ import annotations

import pytest
import torch

from pdss_fl.privacy import Vocabulary


def make_vocabulary(words: int, dimensions: int = 8, seed: int = 0, **options: object) -> Vocabulary:
    generator = torch.Generator().manual_seed(seed)
    tokens = [f"w{i}" for i in range(words)]
    return Vocabulary(tokens, torch.randn(words, dimensions, generator=generator), **options)  # type: ignore[arg-type]


@pytest.fixture
def vocabulary() -> Vocabulary:
    return make_vocabulary(200)
