"""A closed public vocabulary: every text becomes ids 0 .. V-1, so a mechanism never sees anything else."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pdss_fl.errors import SettingError

BLANK = "_"
"""What a filling word reads; ``split`` never yields it, so no private word can be one."""

_SUFFIXES = (
    ("'s", ""),
    ("ies", "y"),
    ("es", ""),
    ("s", ""),
    ("ied", "y"),
    ("ed", ""),
    ("d", ""),
    ("ing", ""),
    ("ing", "e"),
)
_SHORTEST_STEM = 3
_BLOCK_ROWS = 256
_COARSE = np.float32(2**11)


class Vocabulary:
    """Public words with public embeddings, fixed before any private text is read.

    Parameters
    ----------
    tokens : Sequence[str]
        Lower-case whole words, each once, at least one.
    embeddings : Tensor, shape (words, d)
        One finite row a word; equal rows and zero rows are allowed.
    aliases : Mapping[str, str] | None (default: None)
        Other words, each with the vocabulary word that stands for it.
    fallback : str | None (default: None)
        The word that every unknown string counts as; by default the first token.
    blanks : int (default: 8)
        Number of filling words. They are the last ids, all read ``BLANK``, fill a text up to a public length,
        and are perturbed like any other word. At least 2 ids are needed in all.

    Attributes
    ----------
    tokens : tuple[str, ...]
        The text of every id, length V: the words, then the blanks.
    words : int
        Number of ids that are not blanks.
    sha256 : str
        Names all of the above, in hexadecimal.

    Raises
    ------
    SettingError
        If a word or an embedding is not as described.
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
        _check(tokens, embeddings, blanks)
        aliases, fallback = aliases or {}, tokens[0] if fallback is None else fallback
        own = {token: i for i, token in enumerate(tokens)}
        unknown = next((word for word in (fallback, *aliases.values()) if word not in own), None)
        if unknown is not None:
            raise SettingError(f"privacy.vocabulary: fallback or alias {unknown!r} is not one of its words")
        self.tokens = (*tokens, *[BLANK] * blanks)
        self._ids = {alias: own[word] for alias, word in aliases.items()} | own
        self._fallback, self.words = own[fallback], len(tokens)
        self._directions = _directions(embeddings, blanks)
        self._neighbours: dict[int, Tensor] = {}
        self._coarse: NDArray[np.float32] | None = None
        public = json.dumps([self.tokens, sorted(aliases.items()), fallback]).encode()
        self.sha256 = hashlib.sha256(public + self._directions.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.tokens)

    @staticmethod
    def split(text: str) -> list[str]:
        """Return the lower-case words of any string: letters, digits, and apostrophes inside a word."""
        return _split(text)

    def word_ids(self, words: Sequence[str]) -> Tensor:
        """Return one id a word, shape (n,): its own, its alias's, its stem's, or the fallback's."""
        return _long([self._word_id(word) for word in words])

    def encode(self, text: str) -> Tensor:
        """Return the ids of any string's words, shape (n,)."""
        return self.word_ids(self.split(text))

    def decode(self, ids: Tensor) -> list[str]:
        """Return the text of each id; raises ``ValueError`` for what is no id."""
        return [self.tokens[i] for i in self.checked(ids).tolist()]

    def blank_ids(self, n: int) -> Tensor:
        """Return ``n`` ids of a filling word, shape (n,); raises ``ValueError`` if there is none."""
        if n and self.words == len(self):
            raise ValueError("a vocabulary without filling words cannot fill a text")
        return _long([self.words] * n)

    def checked(self, ids: Tensor) -> Tensor:
        """Return ``ids`` if it is a LongTensor (n,) within 0 .. V-1; raises ``ValueError`` otherwise."""
        if ids.dtype != torch.long or ids.ndim != 1:
            raise ValueError(f"ids must be int64 of shape (n,), not {ids.dtype} of shape {tuple(ids.shape)}")
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < len(self):
            raise ValueError(f"ids must be within 0 .. {len(self) - 1}")
        return ids

    def neighbours(self, k: int) -> Tensor:
        """Return the k ids nearest to every id by cosine, itself first, the lower id first on a tie.

        Parameters
        ----------
        k : int
            At least 1; taken as V-1 where it is larger.

        Returns
        -------
        LongTensor, shape (V, k)
            k different ids a row, whatever embeddings are equal or zero. Kept for each k; do not write to it.
        """
        k = min(k, len(self) - 1)
        if k < 1:
            raise SettingError(f"privacy.neighbours = {k}: expected at least 1")
        if k not in self._neighbours:
            self._neighbours[k] = self._nearest(k)
        return self._neighbours[k]

    def cosines(self, ids: Tensor, outputs: slice) -> NDArray[np.float32]:
        """Return the cosines of some ids with a range of ids, by directions rounded to multiples of 2^-11.

        Products of rounded directions are multiples of 2^-22 below 4 that float32 holds without rounding, in
        whatever order they are added up: an entry depends on its two ids only, to the last bit, not on the
        shape of a block or the number of threads, and is the same for both orders of the two. The price is an
        error of about 0.0002.

        Parameters
        ----------
        ids : LongTensor, shape (n,)
            Valid ids.
        outputs : slice
            ``start:stop`` within 0 .. V.

        Returns
        -------
        numpy.ndarray, shape (n, stop - start)
            float32. Zero embeddings have cosine 0 with everything, themselves included.
        """
        product: NDArray[np.float32] = self.directions[ids.numpy()] @ self.directions[outputs].T
        return product

    def distances(self, ids: Tensor, outputs: slice) -> NDArray[np.float64]:
        """Return the Euclidean distances of some ids to a range of ids, at most 2, exact like ``cosines``.

        Of the rows of ``directions``, taken as 2 where their rounding makes them longer: a metric all the same.

        Parameters
        ----------
        ids : LongTensor, shape (n,)
            Valid ids.
        outputs : slice
            ``start:stop`` within 0 .. V.

        Returns
        -------
        numpy.ndarray, shape (n, stop - start)
            float64 in [0, 2]; 0 between equal embeddings.
        """
        rows = self.directions[ids.numpy()]
        squares, others = (np.einsum("ij,ij->i", r, r, dtype=np.float64) for r in (rows, self.directions[outputs]))
        squared = squares[:, None] + others - 2.0 * self.cosines(ids, outputs).astype(np.float64)
        distances: NDArray[np.float64] = np.minimum(np.sqrt(squared), 2.0)
        return distances

    @property
    def directions(self) -> NDArray[np.float32]:
        """The centred embeddings at unit length, rounded to multiples of 2^-11, shape (V, d + 1); only to be read.

        Zero embeddings stay zero. The last column is 1 for filling words and 0 for all others.
        """
        if self._coarse is None:
            self._coarse = np.rint(self._directions * _COARSE) / _COARSE
        return self._coarse

    def _nearest(self, k: int) -> Tensor:
        size, directions = len(self), torch.from_numpy(self._directions).double()
        ids = torch.arange(size)
        blocks = []
        for start in range(0, size, _BLOCK_ROWS):
            rows = ids[start : start + _BLOCK_ROWS]
            # Whole numbers, so that equal cosines stay equal however the product was computed, and made
            # different by the id, so that every way of sorting finds the same ones; exact below 2^53.
            keys = (directions[rows] @ directions.T).mul_(2**30).round_().mul_(size).sub_(ids)
            keys[torch.arange(len(rows)), rows] = torch.inf
            blocks.append(keys.topk(k, dim=1).indices)
        return torch.cat(blocks)

    def _word_id(self, word: str) -> int:
        stems = (
            word.removesuffix(suffix) + ending
            for suffix, ending in _SUFFIXES
            if word.endswith(suffix) and len(word) - len(suffix) >= _SHORTEST_STEM
        )
        return next((self._ids[form] for form in (word, *stems) if form in self._ids), self._fallback)


def _split(text: str) -> list[str]:
    text = unicodedata.normalize("NFKC", text).lower().replace("’", "'")
    words = (word.strip("'") for word in "".join(c if _in_word(c) else " " for c in text).split())
    return [word for word in words if any(c.isalnum() for c in word)]


def _in_word(character: str) -> bool:
    # Marks (category M) belong to letters: many scripts write their vowels as marks.
    return character.isalnum() or character == "'" or unicodedata.category(character).startswith("M")


def _long(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.long)


def _check(tokens: Sequence[str], embeddings: Tensor, blanks: int) -> None:
    if not tokens or blanks < 0 or len(tokens) + blanks < 2:
        raise SettingError(
            f"privacy.vocabulary: {len(tokens)} words and {blanks} blanks; expected at least 2 words in all"
        )
    odd = next((token for token in tokens if _split(token) != [token]), None)
    if odd is not None:
        raise SettingError(f"privacy.vocabulary: {odd!r} is not one lower-case word of letters and digits")
    if len(set(tokens)) != len(tokens):
        twice = next(token for i, token in enumerate(tokens) if token in tokens[:i])
        raise SettingError(f"privacy.vocabulary: {twice!r} stands there twice; name each word once")
    if embeddings.ndim != 2 or len(embeddings) != len(tokens):
        raise SettingError(
            f"privacy.embeddings: shape {tuple(embeddings.shape)}; expected one row for each of "
            f"the vocabulary's {len(tokens)} words"
        )
    if not torch.isfinite(embeddings).all():
        raise SettingError("privacy.embeddings: NaN or infinity among the vocabulary's embeddings; use another model")


def _directions(embeddings: Tensor, blanks: int) -> NDArray[np.float32]:
    """Return centred unit rows with one more dimension, which is 0 for words and 1 for blanks.

    Blanks are thus nearest to each other, by the same cosine as all others. numpy adds up in one thread, so
    the same embeddings give the same bytes.
    """
    rows = embeddings.detach().cpu().double().numpy()
    rows = rows / max(np.abs(rows).max(initial=0.0), np.finfo(np.float64).tiny)
    rows = rows - rows.mean(axis=0)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 1e-12)  # below: rounding, no direction
    words = np.pad(unit, ((0, 0), (0, 1)))
    filling = np.zeros((blanks, words.shape[1]))
    filling[:, -1] = 1.0
    return np.concatenate([words, filling]).astype(np.float32)
