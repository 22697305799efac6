"""Who holds which examples: deterministic divisions for simulated clients."""

from __future__ import annotations

import random
from collections.abc import Sequence

from pdss_fl.data.example import Example
from pdss_fl.errors import DataError


def iid_partition(examples: Sequence[Example], partition_id: int, num_partitions: int, seed: int) -> list[Example]:
    """Return one of ``num_partitions`` disjoint random parts; sizes differ by at most one.

    Parameters
    ----------
    examples : Sequence[Example]
        The whole set, the same for every caller.
    partition_id : int
        0 .. num_partitions-1, Flower's ``partition-id``.
    num_partitions : int
        Flower's ``num-partitions``.
    seed : int
        Of the division; it has nothing to do with privacy noise.
    """
    order = list(range(len(examples)))
    random.Random(seed).shuffle(order)
    return [examples[i] for i in order[partition_id::num_partitions]]


def entity_partition(examples: Sequence[Example], partition_id: int, num_partitions: int) -> list[Example]:
    """Return one of ``num_partitions`` contiguous slices, of a set in which what belongs together stands together.

    Clients then hold questions about different things, as organisations do; sizes differ by at most one.
    """
    bounds = [len(examples) * i // num_partitions for i in (partition_id, partition_id + 1)]
    return list(examples[slice(*bounds)])


def train_test_split(
    examples: Sequence[Example], train: int, test: int, seed: int
) -> tuple[list[Example], list[Example]]:
    """Divide into at most ``train`` and at most ``test`` examples that share no content.

    Of examples with the same question and choices one is kept. The test side gets at most a quarter. Fewer
    than two different examples raise ``DataError``.
    """
    unique = list({(e.question, tuple(sorted(e.choices))): e for e in examples}.values())
    if len(unique) < 2:
        raise DataError(f"a client holds {len(unique)} different examples; it needs at least 2 to train and test")
    random.Random(seed).shuffle(unique)
    held_out = min(test, max(1, len(unique) // 4))
    return unique[held_out : held_out + train], unique[:held_out]
