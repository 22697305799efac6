"""One model out of many clients' weights, by Flower's own strategies: which class, its numbers, and what it remembers.

The mathematics is Flower's ``aggregate_train`` alone. Not offered are strategies that need more than weights (q-FedAvg
needs losses, which are never reported), and those that hand out one client's weights as they are: Krum.

A strategy with a step of its own (``SERVER_STEP``) moves from a current model towards the clients' average. This side
has no model before the first round, so that the average of the first round is where its steps begin.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    Bulyan,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedTrimmedAvg,
    FedYogi,
    MultiKrum,
)
from flwr.serverapp.strategy.fedopt import FedOpt
from numpy.typing import NDArray

from pdss_fl.replies import ARRAYS
from pdss_fl.sharing_settings import SharingSettings

WEIGHT = "num-examples"
RATES = {"fedavgm": 1.0, "fedadam": 0.1, "fedyogi": 0.01, "fedadagrad": 0.1}
"""The steps that ``sharing.server-learning-rate = 0`` stands for: Flower's own."""

_MOMENTUM = 0.9  # of FedAvgM, as of Flower's FedAdam and FedYogi; Flower's own 0 would make it FedAvg
_MOMENTS = ("m_t", "v_t")
_KEPT = {"fedavgm": ("momentum_vector",), "fedadam": _MOMENTS, "fedyogi": _MOMENTS, "fedadagrad": _MOMENTS}


@dataclass(frozen=True)
class Average:
    """What came out of a round: all that the next one's strategy has to know.

    Parameters
    ----------
    arrays : ArrayRecord
        The weights that everybody goes on from, float32, by name in alphabetical order.
    momenta : Mapping[str, Mapping[str, NDArray]]
        What a strategy with a step of its own remembers, by Flower's name of the attribute and the weight's name.
    """

    arrays: ArrayRecord
    momenta: Mapping[str, Mapping[str, NDArray[Any]]] = field(default_factory=dict)


def aggregate(
    sharing: SharingSettings, server_round: int, sent: Iterable[tuple[ArrayRecord, int]], before: Average | None
) -> Average:
    """Return what Flower's strategy makes of clients' weights; it may hold numbers that are none.

    Parameters
    ----------
    sharing : SharingSettings
        Its ``mode`` names the strategy, any but ``off``.
    server_round : int
        From 1; FedAdam's step depends on it.
    sent : Iterable[tuple[ArrayRecord, int]]
        Finite weights of equal names and shapes, and the number of examples that they were trained on; at least
        ``sharing.fewest_clients``. The order may decide the last bits. Nothing in them is changed.
    before : Average | None
        What came out of the last round that had an average.
    """
    messages = [_message(record, examples) for record, examples in sent]
    strategy = _strategy(sharing, len(messages))
    kept: tuple[str, ...] = _KEPT.get(sharing.mode, ())
    if kept and before is None:
        strategy, kept = FedAvg(), ()
    elif kept and before is not None:
        _remember(strategy, before)
    with np.errstate(all="ignore"):  # a bad client's numbers may overflow; whoever called looks at what comes out
        found = strategy.aggregate_train(server_round, messages)[0] or ArrayRecord()
        arrays = {name: np.asarray(found[name].numpy(), np.float32, order="C") for name in sorted(found)}
    momenta = {attribute: _by_name(getattr(strategy, attribute), arrays) for attribute in kept}
    return Average(ArrayRecord({name: Array(array) for name, array in arrays.items()}), momenta)


def _strategy(sharing: SharingSettings, clients: int) -> FedAvg:
    """Return Flower's strategy of a name, for a round in which so many clients sent weights."""
    bad, rate = sharing.malicious, sharing.server_learning_rate or RATES.get(sharing.mode, 0.0)
    match sharing.mode:
        case "fedavg":
            return FedAvg()
        case "fedmedian":
            return FedMedian()
        case "fedtrimmedavg":  # cuts int(beta * clients) at either end; the half keeps rounding from making it one less
            return FedTrimmedAvg(beta=(bad + 0.5) / clients)
        case "multikrum":
            return MultiKrum(num_malicious_nodes=bad, num_nodes_to_select=clients - bad)
        case "bulyan":
            return Bulyan(num_malicious_nodes=bad)
        case "fedavgm":
            return FedAvgM(server_learning_rate=rate, server_momentum=_MOMENTUM)
        case "fedadam":
            return FedAdam(eta=rate)
        case "fedyogi":
            return FedYogi(eta=rate)
        case "fedadagrad":
            return FedAdagrad(eta=rate)
    raise ValueError(f"sharing.mode = {sharing.mode!r} averages nothing")


def _remember(strategy: FedAvg, before: Average) -> None:
    """Give a strategy with a step of its own what it held after the round before."""
    if isinstance(strategy, FedAvgM):
        strategy.current_arrays = before.arrays
        for momentum in before.momenta.values():
            strategy.momentum_vector = [momentum[name] for name in before.arrays]
    elif isinstance(strategy, FedOpt):
        strategy.current_arrays = {name: array.numpy() for name, array in before.arrays.items()}
        strategy.m_t, strategy.v_t = (dict(before.momenta.get(attribute, {})) for attribute in _MOMENTS)


def _by_name(values: Any, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Return what Flower keeps in the order of the weights, or by their names, by their names."""
    return values if isinstance(values, dict) else dict(zip(names, values, strict=True))


def _message(record: ArrayRecord, examples: int) -> Message:
    """Return a reply as Flower's strategies read it, which empty some and take weights by their places in others."""
    arrays = ArrayRecord({name: record[name] for name in sorted(record)})
    return Message(RecordDict({ARRAYS: arrays, "metrics": MetricRecord({WEIGHT: examples})}), 0, "train")
