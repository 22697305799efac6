"""The strategy's side of sharing weights: the average of those replies that can be averaged, and who is not in it."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping

import numpy as np
from flwr.app import ArrayRecord, Message

from pdss_fl.aggregation import WEIGHT, Average, aggregate
from pdss_fl.replies import ARRAYS, reported_counts
from pdss_fl.sharing_settings import PLAIN, SharingSettings

logger = logging.getLogger("pdss_fl.strategy")

RESERVED = "__metadata__"
"""No weight's name, in the format in which averages are kept."""

OWN_MODEL = "it chose a small model of its own and sends no weights"
_OTHER = "its weights are not those of most and of the last average, or no finite numbers"
_NO_EXAMPLE = "it tells of no example that it trained on"
_ALONE = "nobody else sent weights of this model, and one client's are no average"
_NO_NUMBER = "the average of all would hold a number that is none"
_ONES_OWN = "the average of all would be one client's weights as they are"


def average_weights(
    answered: Mapping[int, Message],
    sharing: SharingSettings = PLAIN,
    server_round: int = 1,
    before: Average | None = None,
) -> tuple[Average | None, dict[int, str]]:
    """Return what Flower's strategy makes of the clients' weights, and who is not in it.

    A client whose arrays are not those of most, or are no finite numbers, is named in the log and left out: models
    that differ cannot be averaged. One client's weights are never handed to others as an average: not those of one
    who is alone, and not what a strategy chose out of many.

    Parameters
    ----------
    answered : Mapping[int, Message]
        Replies to ``train.distill`` by node id; nothing in them is trusted.
    sharing : SharingSettings
        Which of Flower's strategies averages, and its numbers; FedAvg by default.
    server_round : int (default: 1)
        From 1.
    before : Average | None (default: None)
        What came out of the last round that had an average; weights of another model are then left out.

    Returns
    -------
    tuple[Average | None, dict[int, str]]
        ``None`` unless ``sharing.fewest_clients`` sent weights of one model, and finite numbers came out that are not
        one client's. Why a client's are not in it, by node id.
    """
    shared, unshared = _comparable(answered, before)
    average, why = None, ""
    if len(shared) == 1:
        why = _ALONE
    elif len(shared) < sharing.fewest_clients:
        why = f"{sharing.fewest_clients} clients have to send weights, for sharing.mode = {sharing.mode!r}"
    else:
        # Floats that are added in another order may give another sum, and a resumed run has other node ids.
        average = aggregate(sharing, server_round, sorted(shared.values(), key=_content), before)
        why = _NO_NUMBER if not _finite(average) else _ONES_OWN if _ones_own(average, shared) else ""
    if why:
        average, unshared = None, unshared | dict.fromkeys(shared, why)
    for node, reason in unshared.items():
        logger.warning("client %d: not averaged: %s", node, reason)
    return average, unshared


def _comparable(
    answered: Mapping[int, Message], before: Average | None
) -> tuple[dict[int, tuple[ArrayRecord, int]], dict[int, str]]:
    """Return weights of one model and their numbers of examples, and why the others' cannot be averaged with them."""
    forms = {node: _form(reply.content.get(ARRAYS)) for node, reply in answered.items()}
    counts = Counter(form for form in forms.values() if form)
    most = max(counts, key=lambda form: (counts[form], form), default=None)
    wanted = _form(before.arrays) if before else most
    shared: dict[int, tuple[ArrayRecord, int]] = {}
    unshared: dict[int, str] = {}
    for node, reply in answered.items():
        sent, examples = reply.content.get(ARRAYS), reported_counts(reply).get(WEIGHT, 0)
        if sent is None:
            unshared[node] = OWN_MODEL
        elif not isinstance(sent, ArrayRecord) or wanted is None or forms[node] != wanted:
            unshared[node] = _OTHER
        elif examples < 1:
            unshared[node] = _NO_EXAMPLE
        else:
            shared[node] = sent, int(examples)
    return shared, unshared


def _form(record: object) -> tuple[tuple[str, tuple[int, ...]], ...] | None:
    """Return names and shapes of finite float arrays; ``None`` for anything else."""
    if not isinstance(record, ArrayRecord) or RESERVED in record:
        return None
    try:
        arrays = {name: array.numpy() for name, array in record.items()}
    except Exception:  # whatever bytes a client may send
        return None
    if not all(a.dtype == np.float32 and bool(np.isfinite(a).all()) for a in arrays.values()):
        return None
    return tuple((name, a.shape) for name, a in sorted(arrays.items())) or None


def _content(sent: tuple[ArrayRecord, int]) -> tuple[bytes, int]:
    record, examples = sent
    return hashlib.sha256(b"".join(record[name].data for name in sorted(record))).digest(), examples


def _finite(average: Average) -> bool:
    held = [array.numpy() for array in average.arrays.values()]
    held += [values for momentum in average.momenta.values() for values in momentum.values()]
    return all(bool(np.isfinite(values).all()) for values in held)


def _ones_own(average: Average, shared: Mapping[int, tuple[ArrayRecord, int]]) -> bool:
    """Tell whether all numbers of an average are those of one client, and of no second one."""
    arrays = {name: array.numpy() for name, array in average.arrays.items()}
    equal = [
        all(np.array_equal(values, record[name].numpy()) for name, values in arrays.items())
        for record, _ in shared.values()
    ]
    return sum(equal) == 1
