"""The strategy's side of sharing weights: FedAvg's own average, over those replies that can be averaged."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from pdss_fl.errors import StoreError
from pdss_fl.files import write_atomically
from pdss_fl.replies import ARRAYS, reported_counts

logger = logging.getLogger("pdss_fl.strategy")

AVERAGES = "averages"
"""The folder of a run directory in which the newest averages lie until the run ends."""

_WEIGHT = "num-examples"
_RESERVED = "__metadata__"  # of the format in which averages are kept


OWN_MODEL = "it chose a small model of its own and sends no weights"
_OTHER = "its weights are not those of most, or no finite numbers"
_NO_EXAMPLE = "it tells of no example that it trained on"
_ALONE = "nobody else sent weights of this model, and one client's are no average"


def average_weights(answered: Mapping[int, Message]) -> tuple[ArrayRecord | None, dict[int, str]]:
    """Return the average of the clients' weights, by their numbers of training examples, and who is not in it.

    A client whose arrays are not those of most, or are no finite numbers, is named in the log and left out: models
    that differ cannot be averaged. One client's weights are never handed to others as an average.

    Parameters
    ----------
    answered : Mapping[int, Message]
        Replies to ``train.distill`` by node id; nothing in them is trusted.

    Returns
    -------
    tuple[ArrayRecord | None, dict[int, str]]
        ``None`` unless two clients sent weights of one model. Why a client's are not in it, by node id.
    """
    forms = {node: _form(reply.content.get(ARRAYS)) for node, reply in answered.items()}
    counts = Counter(form for form in forms.values() if form)
    most = max(counts, key=lambda form: (counts[form], form), default=None)
    unshared: dict[int, str] = {}
    shared: dict[int, RecordDict] = {}
    for node, reply in answered.items():
        sent, examples = reply.content.get(ARRAYS), reported_counts(reply).get(_WEIGHT, 0)
        if sent is None:
            unshared[node] = OWN_MODEL
        elif not isinstance(sent, ArrayRecord) or most is None or forms[node] != most:
            unshared[node] = _OTHER
        elif examples < 1:
            unshared[node] = _NO_EXAMPLE
        else:
            shared[node] = RecordDict({ARRAYS: sent, "metrics": MetricRecord({_WEIGHT: examples})})
    if len(shared) == 1:
        unshared |= dict.fromkeys(shared, _ALONE)
        shared = {}
    for node, why in unshared.items():
        logger.warning("client %d: not averaged: %s", node, why)
    records = list(shared.values())
    # Floats that are added in another order may give another sum, and a resumed run has other node ids.
    records.sort(
        key=lambda record: hashlib.sha256(b"".join(a.data for a in record.array_records[ARRAYS].values())).digest()
    )
    return (aggregate_arrayrecords(records, _WEIGHT) if records else None), unshared


def keep_average(folder: Path, server_round: int, average: ArrayRecord) -> None:
    """Write a method's average after a round into a folder, beside the one before it.

    Raises
    ------
    StoreError
        If the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        arrays = {name: np.ascontiguousarray(array.numpy()) for name, array in average.items()}
        write_atomically(_path(folder, server_round), save(arrays))
        for older in sorted(folder.glob("*.safetensors"), key=lambda path: int(path.stem))[:-2]:
            older.unlink()
    except OSError as err:
        raise StoreError(
            f"output-dir: the run's averaged weights cannot be written ({err.strerror}): free space"
        ) from None


def kept_average(folder: Path, server_round: int) -> ArrayRecord | None:
    """Return what ``keep_average`` wrote after a round; ``None`` if there is none.

    Raises
    ------
    StoreError
        If it is damaged.
    """
    path = _path(folder, server_round)
    if not path.exists():
        return None
    try:
        return ArrayRecord({name: Array(array) for name, array in load_file(path).items()})
    except (OSError, SafetensorError):
        raise StoreError(f"{path.name} of the run's averages is damaged: start a new run without resume") from None


def _path(folder: Path, server_round: int) -> Path:
    return folder / f"{server_round}.safetensors"


def _form(record: object) -> tuple[tuple[str, tuple[int, ...]], ...] | None:
    """Return names and shapes of finite float arrays; ``None`` for anything else."""
    if not isinstance(record, ArrayRecord) or _RESERVED in record:
        return None
    try:
        arrays = {name: array.numpy() for name, array in record.items()}
    except Exception:  # whatever bytes a client may send
        return None
    if not all(a.dtype == np.float32 and bool(np.isfinite(a).all()) for a in arrays.values()):
        return None
    return tuple((name, a.shape) for name, a in sorted(arrays.items())) or None
