"""The built-in data set ``everyday``: multiple-choice questions about everyday things.

A question asks for a property that a thing has because of its kind ("A robin has which of these?"),
so whoever knows the kind of a thing and the properties of kinds can answer, and a rationale that
names both ("A robin is a bird. Birds have feathers.") teaches more than the answer alone. The wrong
choices are properties of other kinds, never one that also holds of this kind.

Everything follows from ``everyday_facts`` by SHA-256, so every process makes the same set.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Literal

from pdss_fl.data.everyday_facts import KINDS, Kind
from pdss_fl.data.example import Example

Split = Literal["public", "private"]

PUBLIC_THINGS_PER_KIND = 3
CHOICES = 4

_TEMPLATES = {
    "kind": (
        "What is {it}?",
        "What would you call {it}?",
        "Which group does {it} belong to?",
        "Which word says best what {it} is?",
        "{It} is a kind of what?",
    ),
    "part": (
        "What does {it} have?",
        "Which of these does {it} have?",
        "What would you expect {it} to have?",
        "Can you name something that {it} has?",
        "{It} has which of these?",
    ),
    "place": (
        "Where would you find {it}?",
        "Where would you look for {it}?",
        "Where might you come across {it}?",
        "Where is {it} most likely to be?",
        "Which place goes best with {it}?",
    ),
    "ability": (
        "What can {it} do?",
        "Which of these can {it} do?",
        "What might {it} do?",
        "What is {it} able to do?",
        "{It} can do which of these?",
    ),
    "action": (
        "What do people do with {it}?",
        "What might you do with {it}?",
        "Which of these can you do with {it}?",
        "What would someone want to do with {it}?",
        "Which action goes best with {it}?",
    ),
    "made": (
        "What is {it} made of?",
        "What is {it} usually made from?",
        "What goes into making {it}?",
        "What is often used to make {it}?",
    ),
    "origin": (
        "What does {it} come from?",
        "Which of these does {it} come from?",
        "Where does {it} come from?",
        "{It} comes from what?",
    ),
    "user": (
        "Who knows a lot about {it}?",
        "Who often has to deal with {it}?",
        "Who is most likely to deal with {it}?",
        "Whose work has to do with {it}?",
        "Which of these people thinks about {it} at work?",
    ),
    "need": (
        "What does {it} need?",
        "Which of these does {it} need?",
        "What would you say {it} needs?",
        "{It} needs which of these?",
    ),
    "purpose": (
        "What is {it} good for?",
        "What is {it} used for?",
        "What do people use {it} for?",
        "What is {it} useful for?",
    ),
    "trait": (
        "What is {it} like?",
        "Which word describes {it}?",
        "Which word fits {it} best?",
        "How would you describe {it}?",
    ),
}


@dataclass(frozen=True)
class Fact:
    """What one question asks: the ``value`` of a ``relation`` that a ``thing`` of a ``kind`` has.

    ``others`` are values of the relation that hold too or could be argued for; no choice is among them.
    """

    thing: str
    kind: str
    relation: str
    value: str
    others: frozenset[str]


@cache
def public_examples() -> tuple[Example, ...]:
    """Return the public split, about a quarter of the set, for demonstrations, adapters and tests.

    Returns
    -------
    tuple[Example, ...]
        Each with four choices and a reference rationale. No thing occurs in both splits, every kind
        does. The questions about one thing stand together, so equal slices are clients that hold
        different things.
    """
    return _examples(facts("public"))


@cache
def private_examples() -> tuple[Example, ...]:
    """Return the split that plays the clients' private data; see `public_examples`."""
    return _examples(facts("private"))


def facts(split: Split) -> tuple[Fact, ...]:
    """Return what the examples of a split (``"public"`` or ``"private"``) ask, one for one."""
    things = [(thing, kind) for kind in KINDS for thing in _things(kind, split)]
    things.sort(key=lambda entry: _rank("thing", entry[0]))
    return tuple(fact for thing, kind in things for fact in _facts_about(thing, kind))


@cache
def words() -> tuple[str, ...]:
    """Return the public vocabulary of the set, without looking at any example.

    Returns
    -------
    tuple[str, ...]
        Every word that a question, a choice or a reference rationale can contain, in lower case, sorted.
    """
    texts = [template.format(it="", It="") for group in _TEMPLATES.values() for template in group]
    texts.append("a an like other is so the answer")
    for kind in KINDS:
        texts += [kind.name, kind.phrase, kind.plural, kind.clue, kind.things, kind.mass]
        texts += [text for p in kind.properties for text in (p.value, p.statement)]
    return tuple(sorted(set(re.findall(r"[a-z]+", " ".join(texts).lower()))))


def _things(kind: Kind, split: Split) -> list[str]:
    things = sorted((kind.things + " " + kind.mass).split(), key=lambda thing: _rank("split", thing))
    return things[:PUBLIC_THINGS_PER_KIND] if split == "public" else things[PUBLIC_THINGS_PER_KIND:]


def _facts_about(thing: str, kind: Kind) -> list[Fact]:
    own = [Fact(thing, kind.name, "kind", kind.name, frozenset(kind.also.split()))]
    return own + [Fact(thing, kind.name, p.relation, p.value, frozenset(p.also.split())) for p in kind.properties]


def _examples(asked: tuple[Fact, ...]) -> tuple[Example, ...]:
    kinds = {kind.name: kind for kind in KINDS}
    wrong = _wrong_choices(asked)
    return tuple(_example(fact, wrong[fact], kinds[fact.kind]) for fact in asked)


def _example(fact: Fact, wrong: list[str], kind: Kind) -> Example:
    it = _with_article(fact.thing) if fact.thing in kind.things.split() else fact.thing
    template = min(_TEMPLATES[fact.relation], key=lambda text: _rank(text, fact.thing))
    return Example(
        question=template.format(it=it, It=_capital(it)),
        choices=tuple(
            sorted([fact.value, *wrong], key=lambda choice: _rank("order", fact.thing, fact.relation, choice))
        ),
        answer=fact.value,
        rationale=_rationale(it, fact, kind),
        entity=fact.thing,
    )


def _rationale(it: str, fact: Fact, kind: Kind) -> str:
    if fact.relation == "kind":
        why = f"{_capital(it)} {kind.clue}, like other {kind.plural}."
    else:
        statement = next(p.statement for p in kind.properties if p.relation == fact.relation)
        why = f"{_capital(it)} is {kind.phrase}. {statement}"
    return f"{why} So the answer is {fact.value}."


def _wrong_choices(asked: tuple[Fact, ...]) -> dict[Fact, list[str]]:
    """Choose wrong values such that each is wrong about three times as often as it is right.

    With four choices this makes a value right in about a quarter of its appearances, so that the
    choices alone give no hint. Questions with few values to choose from are served first.
    """
    due = Counter((fact.relation, fact.value) for fact in asked for _ in range(CHOICES - 1))
    open_values = {fact: sorted(_values()[fact.relation] - {fact.value} - fact.others) for fact in asked}
    wrong = {}
    for fact in sorted(asked, key=lambda f: (len(open_values[f]), _rank(f.thing, f.relation))):
        by_need = sorted(
            open_values[fact],
            key=lambda value: (-due[fact.relation, value], _rank("wrong", fact.thing, fact.relation, value)),
        )
        wrong[fact] = by_need[: CHOICES - 1]
        due.subtract((fact.relation, value) for value in wrong[fact])
    return wrong


@cache
def _values() -> dict[str, frozenset[str]]:
    """Return every value of each relation."""
    found: dict[str, set[str]] = {"kind": {kind.name for kind in KINDS}}
    for kind in KINDS:
        for p in kind.properties:
            found.setdefault(p.relation, set()).add(p.value)
    return {relation: frozenset(values) for relation, values in found.items()}


def _rank(*parts: str) -> str:
    """Return a key whose order is arbitrary but the same in every process."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
