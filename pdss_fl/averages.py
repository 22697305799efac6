"""A method's averages over the rounds: the last one in memory, the newest two in the run's folder until it ends."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Message
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from pdss_fl.aggregation import Average
from pdss_fl.averaging import average_weights
from pdss_fl.errors import StoreError
from pdss_fl.files import write_atomically
from pdss_fl.sharing_settings import SharingSettings

AVERAGES = "averages"
"""The folder of a run directory in which the newest averages lie until the run ends."""

_ARRAYS = "arrays"


class Averages:
    """What a method's rounds have averaged so far.

    Parameters
    ----------
    folder : Path | None
        Where averages are kept, for a run that can be resumed.
    sharing : SharingSettings
        Which of Flower's strategies averages, and its numbers.
    last_round : int
        The last whole round of an earlier start, from which this one goes on; 0 if there is none.
    """

    def __init__(self, folder: Path | None, sharing: SharingSettings, last_round: int) -> None:
        self._folder, self._sharing = folder, sharing
        rounds = [number for number in _kept_rounds(folder) if number <= last_round] if folder else []
        self._last = kept_average(folder, rounds[-1]) if folder and rounds else None

    def kept(self, server_round: int) -> ArrayRecord | None:
        """Return what a whole round of an earlier start left to go on from; ``None`` if nothing."""
        average = kept_average(self._folder, server_round) if self._folder else None
        return average.arrays if average else None

    def add(self, server_round: int, answered: Mapping[int, Message]) -> tuple[ArrayRecord | None, dict[int, str]]:
        """Average what clients answered to ``train.distill``, and keep that.

        Returns
        -------
        tuple[ArrayRecord | None, dict[int, str]]
            The average; ``None`` if there is none, and that of the round before stays. Why a client's weights are not
            in it, by node id.
        """
        average, unshared = average_weights(answered, self._sharing, server_round, self._last)
        if average is not None:
            self._last = average
            if self._folder:
                keep_average(self._folder, server_round, average)
        elif self._folder:
            _path(self._folder, server_round).unlink(missing_ok=True)  # of a start that died in this round
        return (average.arrays if average else None), unshared


def keep_average(folder: Path, server_round: int, average: Average) -> None:
    """Write a method's average after a round into a folder, beside the one before it.

    Raises
    ------
    StoreError
        If the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        arrays = {f"{_ARRAYS}/{name}": array.numpy() for name, array in average.arrays.items()}
        for attribute, momentum in average.momenta.items():  # in one file, so that neither is without the other
            arrays |= {f"{attribute}/{name}": values for name, values in momentum.items()}
        write_atomically(_path(folder, server_round), save({k: np.asarray(v, order="C") for k, v in arrays.items()}))
        for older in _kept_rounds(folder)[:-2]:
            _path(folder, older).unlink()
    except OSError as err:
        raise StoreError(
            f"output-dir: the run's averaged weights cannot be written ({err.strerror}): free space"
        ) from None


def kept_average(folder: Path, server_round: int) -> Average | None:
    """Return what ``keep_average`` wrote after a round; ``None`` if there is none.

    Raises
    ------
    StoreError
        If it is damaged.
    """
    path = _path(folder, server_round)
    if not path.exists():
        return None
    parts: dict[str, dict[str, np.ndarray]] = {_ARRAYS: {}}
    try:
        for key, values in sorted(load_file(path).items()):
            part, _, name = key.partition("/")
            parts.setdefault(part, {})[name] = values
    except (OSError, SafetensorError):
        raise StoreError(f"{path.name} of the run's averages is damaged: start a new run without resume") from None
    return Average(ArrayRecord({name: Array(values) for name, values in parts.pop(_ARRAYS).items()}), parts)


def _path(folder: Path, server_round: int) -> Path:
    return folder / f"{server_round}.safetensors"


def _kept_rounds(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in folder.glob("*.safetensors"))
