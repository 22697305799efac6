"""A closed public vocabulary: every text becomes ids 0 .. V-1, so that a mechanism sees nothing else."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from pdss_fl.errors import SettingError

BLANK = "_"
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_SUFFIXES = (
    ("'s", ""),
    ("ies", "y"),
    ("es", ""),
    ("s", ""),
    ("ed", ""),
    ("ed", "e"),
    ("ing", ""),
    ("ing", "e"),
)
_BLOCK = 1024


class Vocabulary:
    """Words with embeddings; both public and fixed before any private text is read.

    Parameters
    ----------
    tokens : Sequence[str]
        Lower-case words, each once.
    embeddings : Tensor, shape (words, d)
        One finite row a word; equal rows and zero rows are allowed.
    aliases : Mapping[str, str] | None (default: None)
        Other words with the vocabulary word that stands for each.
    fallback : str | None (default: None)
        What every unknown string becomes; the first token by default.
    blanks : int (default: 8)
        Number of filling words, the last ids. They all read ``_`` and are nearest to each other; a text is
        filled up to a public length with them, and they are perturbed like any other word.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        embeddings: Tensor,
        *,
        aliases: Mapping[str, str] | None = None,
        fallback: str | None = None,
        blanks: int = 8,
    ) -> None:
        _check(tokens, embeddings)
        self.words = len(tokens)
        self.tokens = (*tokens, *[BLANK] * blanks)
        self.directions = _directions(embeddings.double(), blanks)
        self._ids = {token: i for i, token in enumerate(tokens)}
        self._fallback = self._known(fallback if fallback is not None else tokens[0], "fallback")
        self._aliases = {word: self._known(token, "aliases") for word, token in (aliases or {}).items()}
        self._neighbours: dict[int, Tensor] = {}
        public = json.dumps([self.tokens, self._fallback, sorted(self._aliases.items())])
        rows = self.directions.float().numpy().tobytes()
        self.sha256 = hashlib.sha256(public.encode() + rows).hexdigest()

    def __len__(self) -> int:
        return len(self.tokens)

    def split(self, text: str) -> list[str]:
        """Return the lower-case words of any string: runs of letters and digits, apostrophes inside."""
        return _WORD.findall(text.lower().replace("’", "'"))

    def word_ids(self, words: Iterable[str]) -> Tensor:
        """Return one id a word: its own, its alias's, its stem's, or the fallback's; shape (n,)."""
        return torch.tensor([self._id(word) for word in words], dtype=torch.long)

    def encode(self, text: str) -> Tensor:
        """Return the ids of any string's words, shape (n,)."""
        return self.word_ids(self.split(text))

    def decode(self, ids: Tensor) -> list[str]:
        """Return the words behind ids; every filling word reads ``_``."""
        return [self.tokens[i] for i in ids.tolist()]

    def blank_ids(self, count: int) -> Tensor:
        """Return ``count`` ids of a filling word, shape (count,)."""
        if count and self.words == len(self):
            raise ValueError("a vocabulary without filling words cannot fill a text")
        return torch.full((count,), self.words, dtype=torch.long)

    def neighbours(self, k: int) -> Tensor:
        """Return the k nearest ids of every id by cosine, itself first, shape (V, k); ties go to the lower id.

        ``k`` is 1 .. V-1. Rows have exactly k different members, whatever embeddings are equal or zero.
        """
        if not 1 <= k < len(self):
            raise ValueError(f"k = {k} is outside 1 to {len(self) - 1}")
        if k not in self._neighbours:
            blocks = [self._nearest(start, k) for start in range(0, len(self), _BLOCK)]
            self._neighbours[k] = torch.cat(blocks)
        return self._neighbours[k]

    def _nearest(self, start: int, k: int) -> Tensor:
        ids = torch.arange(start, min(start + _BLOCK, len(self)))
        # Rounded, so that equal embeddings tie and the order of summation does not decide; then the lower id wins.
        similarity = torch.round(self.directions[ids] @ self.directions.T, decimals=8)
        similarity -= 1e-13 * torch.arange(len(self), dtype=similarity.dtype)
        similarity[torch.arange(len(ids)), ids] = 2.0
        return torch.topk(similarity, k, dim=1).indices

    def _id(self, word: str) -> int:
        found = self._lookup(word)
        if found is not None:
            return found
        for suffix, ending in _SUFFIXES:
            if word.endswith(suffix) and len(word) > len(suffix) + 2:
                found = self._lookup(word.removesuffix(suffix) + ending)
                if found is not None:
                    return found
        return self._fallback

    def _lookup(self, word: str) -> int | None:
        return self._ids.get(word, self._aliases.get(word))

    def _known(self, token: str, what: str) -> int:
        if token not in self._ids:
            raise SettingError(f"the vocabulary's {what} name {token!r}, which is not one of its words")
        return self._ids[token]


def _check(tokens: Sequence[str], embeddings: Tensor) -> None:
    if not tokens or len(set(tokens)) != len(tokens) or not all(t and t == t.lower() for t in tokens):
        raise SettingError("the vocabulary's words must be lower-case, not empty, and each there once")
    if BLANK in tokens:
        raise SettingError(f"the vocabulary holds {BLANK!r}, which is the filling word's text")
    if embeddings.ndim != 2 or len(embeddings) != len(tokens):
        raise SettingError(
            f"the vocabulary's {len(tokens)} words need as many embedding rows; found shape {tuple(embeddings.shape)}"
        )
    if not bool(torch.isfinite(embeddings).all()):
        raise SettingError("the vocabulary's embeddings hold NaN or infinity")


def _directions(embeddings: Tensor, blanks: int) -> Tensor:
    """Centre and normalise the words; give the blanks a dimension of their own, at a right angle to all."""
    centred = embeddings - embeddings.mean(dim=0)
    unit = centred / centred.norm(dim=1, keepdim=True).clamp_min(1e-12)
    words = torch.cat([unit, torch.zeros(len(unit), 1, dtype=unit.dtype)], dim=1)
    filling = torch.zeros(blanks, words.shape[1], dtype=unit.dtype)
    filling[:, -1] = 1.0
    return torch.cat([words, filling])
