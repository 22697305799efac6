"""When a guess counts as the word itself, or as the same word but for a suffix."""

from __future__ import annotations

import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from pdss_fl.privacy.vocabulary import _SHORTEST_STEM, _SUFFIXES, Vocabulary


def text_classes(vocabulary: Vocabulary) -> Tensor:
    """Return one number an id, LongTensor (V,), equal where two ids read the same: all filling words do."""
    return torch.arange(len(vocabulary)).clamp(max=vocabulary.words)


def stem_classes(vocabulary: Vocabulary) -> Tensor:
    """Return one number an id, LongTensor (V,), equal where two words differ by suffixes only.

    The suffixes are those by which the vocabulary itself reads an unknown word (``'s``, ``s``, ``es``,
    ``ies``, ``ed``, ``ing`` ...). Words that become the same by leaving one off, or none, are the same,
    and so are their likes: ``doctor``, ``doctors`` and ``doctor's``; ``walks`` and ``walked`` even where
    ``walk`` is no word of the vocabulary. Now and then this also joins unrelated words (``car`` and
    ``caring``), which counts rather too much as a leak.
    """
    forms: dict[str, int] = {}
    rows, columns = [], []
    for i, word in enumerate(vocabulary.tokens):
        for form in _forms(word):
            rows.append(i)
            columns.append(len(vocabulary) + forms.setdefault(form, len(forms)))
    nodes = len(vocabulary) + len(forms)
    edges = coo_array(([1] * len(rows), (rows, columns)), shape=(nodes, nodes))
    _, component = connected_components(edges, directed=False)
    return torch.from_numpy(component[: len(vocabulary)]).long()


def _forms(word: str) -> set[str]:
    return {word} | {
        word.removesuffix(suffix) + ending
        for suffix, ending in _SUFFIXES
        if word.endswith(suffix) and len(word) - len(suffix) >= _SHORTEST_STEM
    }


def matches(guesses: Tensor, truth: Tensor, classes: Tensor) -> Tensor:
    """Return whether one of an attacker's guesses is of the private word's class.

    Parameters
    ----------
    guesses : LongTensor, shape (n, g)
    truth : LongTensor, shape (n,)
    classes : LongTensor, shape (V,)
        From ``text_classes`` or ``stem_classes``.

    Returns
    -------
    BoolTensor, shape (n,)
    """
    return (classes[guesses] == classes[truth][:, None]).any(dim=1)
