"""The texts of an audit: those that play a client's private ones, and what an attacker has of their kind."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pdss_fl.data.everyday import private_examples, public_examples
from pdss_fl.data.example import Example
from pdss_fl.data.prompts import choice_order, render
from pdss_fl.data.sources import read_any
from pdss_fl.privacy.attacks import Document
from pdss_fl.release import Perturber

_KNOWN_SHARE = 4  # every so many-th text of a user's file plays what an attacker knows of such texts
_FEWEST = 8


@dataclass(frozen=True)
class Material:
    """Whose texts are attacked, and with what.

    Parameters
    ----------
    source : str
        Where the texts come from, for the reader.
    private : tuple[Example, ...]
        What is perturbed and attacked.
    known : tuple[Example, ...]
        Texts of the same kind that the attacker has: word frequencies and examples.
    bank : tuple[Example, ...]
        What a released prompt is looked for in; begins with ``private``: the attacker has the data set itself.
    """

    source: str
    private: tuple[Example, ...]
    known: tuple[Example, ...]
    bank: tuple[Example, ...]


def load_material(path: Path | None, documents: int, seed: int) -> Material:
    """Return a file's texts, or the built-in ones, divided into both sides.

    Parameters
    ----------
    path : Path | None
        As ``read_any`` takes it; ``None`` for the built-in set, whose public split the attacker knows.
    documents : int
        At most so many private texts, drawn by ``seed``.
    seed : int
        Of the drawing.

    Raises
    ------
    DataError
        If the file cannot be read.
    """
    if path is None:
        source, texts, known = "the built-in questions", list(private_examples()), public_examples()
    else:
        source, texts = path.name, list({e.release_key: e for e in read_any(path)}.values())
        known = public_examples()
    random.Random(seed).shuffle(texts)
    if path is not None and len(texts) >= _FEWEST:
        known = tuple(texts[::_KNOWN_SHARE])
        texts = [text for i, text in enumerate(texts) if i % _KNOWN_SHARE]
    private = tuple(texts[:documents])
    return Material(source, private, known, (*texts, *known))


@dataclass(frozen=True)
class Encoded:
    """The same texts as ids, the private ones with their choices in a random order.

    ``orders[i]`` says which of the example's own choices stands where, ``None`` for a filling one.
    """

    raw: list[Document]
    orders: list[list[int | None]]
    known: list[Document]
    bank: list[Document]


def encode(material: Material, perturber: Perturber) -> Encoded:
    """Encode all texts once, for every mechanism over the same vocabulary and shape."""

    def documents(texts: Sequence[Example], orders: Sequence[Sequence[int | None]]) -> list[Document]:
        found = []
        for example, order in zip(texts, orders, strict=True):
            prompt = render(example, order, perturber.shape, perturber.vocabulary.split)
            question, *choices = perturber.encode(prompt)
            found.append(Document(question, tuple(choices)))
        return found

    def unshuffled(texts: Sequence[Example]) -> list[list[int | None]]:
        return [choice_order(example, perturber.shape, lambda _: None) for example in texts]

    orders = [choice_order(example, perturber.shape, perturber.shuffle) for example in material.private]
    return Encoded(
        documents(material.private, orders),
        orders,
        documents(material.known, unshuffled(material.known)),
        documents(material.bank, unshuffled(material.bank)),
    )
