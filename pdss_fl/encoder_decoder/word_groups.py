"""Words that the LLM says the same of, learned from public prompts: what an encoder can write in place of them.

An encoder that imitates noise (the paper's pairs, made by the exponential mechanism) keeps what the noise kept. Here
its targets keep what the LLM needs and drop the rest: two words are of one group if the LLM's rationales of public
prompts say the same of both ("a robin is a bird", "a hawk is a bird"), and one of them, the group's head, is
written for all. So the released word tells the group, which the LLM needs, and not which of its words it was.

Other words of the public vocabulary join a group by their public embeddings. No private text is read.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

from pdss_fl.privacy import BLANK, Vocabulary
from pdss_fl.privacy.grammar import FUNCTION_WORDS
from pdss_fl.slm.alignment import singular

_FIRST_SENTENCE = re.compile(r"[.!?](?=\s|$)|\n")
_MEMBERS_WITHIN = 0.1  # a word joins a group that it is as near to as nine in ten members are to theirs


@dataclass(frozen=True)
class WordGroups:
    """Heads and members by word; a word without a group stands for itself.

    Parameters
    ----------
    head : dict[str, str]
        Of every word that has a group.
    members : dict[str, tuple[str, ...]]
        By head, the head among them, at least two.
    """

    head: dict[str, str]
    members: dict[str, tuple[str, ...]]

    def canonical(self, words: Sequence[str]) -> list[str]:
        """Return each word's head, position by position."""
        return [self.head.get(word, word) for word in words]

    def like(self, word: str, random: Random) -> str:
        """Return a random member of a word's group, which may be the word itself."""
        return random.choice(self.members.get(self.head.get(word, word), (word,)))


def find_groups(documents: Sequence[Sequence[str]], rationales: Sequence[str], vocabulary: Vocabulary) -> WordGroups:
    """Group the words of a public vocabulary by what an LLM said of public prompts.

    Parameters
    ----------
    documents : Sequence[Sequence[str]]
        The words of public prompts.
    rationales : Sequence[str]
        ``rationales[i]`` is what the LLM wrote of ``documents[i]``, in its first sentence of one of its words.
    vocabulary : Vocabulary
        Public words with their embeddings.
    """
    known = {word: i for i, word in enumerate(vocabulary.tokens) if word != BLANK}
    seeds = _seeds(documents, rationales, known)
    if not seeds:
        return WordGroups({}, {})
    rows = vocabulary.directions
    centres = np.stack([_unit(rows[[known[word] for word in words]].sum(axis=0)) for words in seeds])
    nearness = [
        float(rows[known[word]] @ _unit(rows[[known[w] for w in words if w != word]].sum(axis=0)))
        for words in seeds for word in words
    ]  # fmt: skip
    lowest = float(np.quantile(nearness, _MEMBERS_WITHIN))
    asked = {word for document in documents for word in document}
    members = [list(words) for words in seeds]
    for word, i in known.items():  # words of public prompts have shown what they are
        cosines = centres @ rows[i]
        if word not in asked and cosines.max() >= lowest:
            members[int(cosines.argmax())].append(word)
    heads = [
        max(words, key=lambda word: float(rows[known[word]] @ centre))
        for words, centre in zip(seeds, centres, strict=True)
    ]
    return WordGroups(
        {word: head for head, words in zip(heads, members, strict=True) for word in words},
        {head: tuple(words) for head, words in zip(heads, members, strict=True)},
    )


def _seeds(
    documents: Sequence[Sequence[str]], rationales: Sequence[str], known: dict[str, int]
) -> list[tuple[str, ...]]:
    """Return groups of at least two words of which the LLM most often said the same."""
    said: defaultdict[str, Counter[frozenset[str]]] = defaultdict(Counter)
    for document, rationale in zip(documents, rationales, strict=True):
        sentence = _words(_FIRST_SENTENCE.split(rationale.strip())[0])
        for word in {w for w in document if w in known}:
            rest = frozenset(sentence) - {singular(word)}
            if singular(word) in sentence and rest:
                said[word][rest] += 1
    by_claim: defaultdict[frozenset[str], list[str]] = defaultdict(list)
    for word, claims in said.items():
        claim, votes = claims.most_common(1)[0]
        if votes >= 2:
            by_claim[claim].append(word)
    return [tuple(words) for words in by_claim.values() if len(words) >= 2]


def _words(text: str) -> list[str]:
    return [singular(word) for word in re.findall(r"\w+", text.lower()) if word not in FUNCTION_WORDS]


def _unit(row: NDArray[np.float32]) -> NDArray[np.float32]:
    return row / max(float(np.linalg.norm(row)), 1e-12)
