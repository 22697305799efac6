"""Which weights of a small model clients average, and how averaged ones come back into it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file

from pdss_fl.errors import MessageError
from pdss_fl.slm.lora import low_rank
from pdss_fl.slm.model import SmallModel

_ADAPTER = "lora_"


@contextmanager
def low_rank_updates(initial: SmallModel, rank: int, seed: int, saved: Path) -> Iterator[None]:
    """Put a method's low-rank updates on the initial small model: inside, they alone are trained and shared.

    Updates of all rounds lie on the same initial weights, so whoever has those knows the model by its updates, however
    many rounds he missed (FedIT, arXiv 2305.05644). Averages are of the factors, not of their products. At the end the
    updates are added to the weights, as ``low_rank`` does.

    Parameters
    ----------
    initial : SmallModel
        As it was before any training; changed in place.
    rank, seed : int
        As of ``low_rank``; equal for all who share, or averages of first factors would mean nothing.
    saved : Path
        The folder of the method's small model; without an ``updates_file`` of earlier rounds they begin anew.
    """
    with low_rank(initial.model, rank, seed):
        if updates_file(saved).exists():
            load_shared(initial, load_file(updates_file(saved)))
        yield


def updates_file(folder: Path) -> Path:
    """Return where a method's low-rank updates are: ``shared_state`` as it is inside of ``low_rank_updates``."""
    return folder / "updates.safetensors"


def shared_state(slm: SmallModel) -> dict[str, torch.Tensor]:
    """Return the weights that are averaged, by name, in float32: all, tied ones once.

    Of a model on which low-rank updates lie these alone.
    """
    named = dict(slm.model.named_parameters())
    adapters = {name: p for name, p in named.items() if _ADAPTER in name}
    return {name: p.detach().float().cpu().clone() for name, p in (adapters or named).items()}


def load_shared(slm: SmallModel, state: Mapping[str, torch.Tensor]) -> None:
    """Put averaged weights into a small model, in place.

    Raises
    ------
    MessageError
        If names or shapes are not those of ``shared_state``, or a weight is not finite; nothing is changed then.
    """
    own = shared_state(slm)
    if {name: tuple(t.shape) for name, t in state.items()} != {name: tuple(t.shape) for name, t in own.items()}:
        raise MessageError(
            "the averaged weights are not of this client's small model: all clients that share need the same slm.* "
            "settings, and the same release of pdss-fl"
        )
    if not all(bool(torch.isfinite(tensor).all()) for tensor in state.values()):
        raise MessageError("the averaged weights hold a number that is none")
    named = dict(slm.model.named_parameters())
    with torch.no_grad():
        for name, tensor in state.items():
            named[name].copy_(tensor)
