"""How simulated clients share one data set: equally, by label, by what examples are about, or in unequal sizes.

Every example goes to exactly one client, and equal settings give equal divisions. The words are Flower's own
(``iid``, ``dirichlet``, ``alpha``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pdss_fl.data.example import Example
from pdss_fl.data.partition import iid_partition
from pdss_fl.errors import DataError

MIN_PART = 2  # one example to train on and one to be asked
_ATTEMPTS = 100


@dataclass(frozen=True)
class Division:
    """A rule by which clients share a data set.

    Parameters
    ----------
    kind : str
        ``iid`` (``auto`` and ``file`` mean the same here): at random, sizes differ by at most one. ``dirichlet``:
        the shares of each label (answer) are drawn from a symmetric Dirichlet distribution. ``size``: the clients'
        sizes are; who holds what is random. ``entity``: all examples about one thing are one client's, sizes as
        equal as that allows.
    alpha : float (default: 0.5)
        Of the Dirichlet distribution, above 0; small is uneven, and as it grows the division becomes ``iid``.
    """

    kind: str
    alpha: float = 0.5


def divide(examples: Sequence[Example], division: Division, num_partitions: int, seed: int) -> list[list[Example]]:
    """Return every client's part, in the order of Flower's ``partition-id``.

    Raises
    ------
    DataError
        If a part would be left with fewer than ``MIN_PART`` examples, naming ``data.partition`` and the remedy;
        ``iid`` leaves that to whoever divides the part into training and test.
    """
    if division.kind not in ("dirichlet", "size", "entity"):
        mixed = iid_partition(examples, 0, 1, seed)
        return [mixed[i::num_partitions] for i in range(num_partitions)]
    owners = _owners(examples, division, num_partitions, seed)
    return [[e for e, owner in zip(examples, owners, strict=True) if owner == i] for i in range(num_partitions)]


def divide_sides(
    train: Sequence[Example], test: Sequence[Example], division: Division, num_partitions: int, seed: int
) -> list[tuple[list[Example], list[Example]]]:
    """Return every client's part of a data set that has a training and a test side of its own.

    A client's shares of labels, and the things that its examples are about, are the same on both sides.
    """
    if division.kind not in ("dirichlet", "size", "entity"):
        sides = [divide(side, division, num_partitions, seed) for side in (train, test)]
        return list(zip(*sides, strict=True))
    owners = _owners([*train, *test], division, num_partitions, seed)
    parts: list[tuple[list[Example], list[Example]]] = [([], []) for _ in range(num_partitions)]
    for i, example in enumerate((*train, *test)):
        parts[owners[i]][i >= len(train)].append(example)
    return parts


def _owners(examples: Sequence[Example], division: Division, parts: int, seed: int) -> list[int]:
    """Draw divisions until every client has ``MIN_PART`` examples, as Flower's own partitioners do."""
    for attempt in range(_ATTEMPTS):
        rng = np.random.default_rng([seed, attempt])
        if division.kind == "entity":
            owners = _by_entity(examples, parts, rng)
        elif division.kind == "dirichlet":
            owners = _by_share([e.answer for e in examples], division.alpha, parts, rng)
        else:
            owners = _by_share([""] * len(examples), division.alpha, parts, rng)
        if min(np.bincount(owners, minlength=parts)) >= MIN_PART:
            return owners
        if division.kind == "entity":
            break
    remedy = "fewer clients" if division.kind == "entity" else "a larger data.alpha or fewer clients"
    raise DataError(
        f"data.partition = {division.kind!r} leaves one of {parts} clients with fewer than {MIN_PART} of "
        f"{len(examples)} examples: use {remedy}"
    )


def _by_share(labels: Sequence[str], alpha: float, parts: int, rng: np.random.Generator) -> list[int]:
    """Divide the examples of each label by shares of its own."""
    members: dict[str, list[int]] = {}
    for i, label in enumerate(labels):
        members.setdefault(label, []).append(i)
    owners = np.zeros(len(labels), dtype=int)
    for label in sorted(members):
        mixed = rng.permutation(members[label])
        bounds = np.cumsum(rng.dirichlet(np.full(parts, alpha)))[:-1] * len(mixed)
        # A random offset: else labels with few examples would all fall to the same clients.
        owners[mixed] = np.searchsorted(bounds, np.arange(len(mixed)) + rng.random(), "right")
    return [int(owner) for owner in owners]


def _by_entity(examples: Sequence[Example], parts: int, rng: np.random.Generator) -> list[int]:
    """Give the largest entity first, each to the client that holds least."""
    names = [e.entity or e.person for e in examples]
    if None in names:
        raise DataError(
            "data.partition = 'entity' needs to know what each example is about, and one does not say: name the "
            "column with data.fields = 'entity=COLUMN'"
        )
    sizes = Counter(names)
    order = sorted(sizes, key=str)
    rng.shuffle(order)
    held, owner = [0] * parts, {}
    for name in sorted(order, key=lambda name: -sizes[name]):
        owner[name] = min(range(parts), key=lambda i: held[i])
        held[owner[name]] += sizes[name]
    return [owner[name] for name in names]
