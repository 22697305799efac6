"""Which weights of a small model clients average, and how averaged ones come back into it."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pdss_fl.errors import MessageError
from pdss_fl.slm.model import SmallModel

_ADAPTER = "lora_"


def shared_state(slm: SmallModel) -> dict[str, torch.Tensor]:
    """Return the weights that are averaged, by name, in float32: all, tied ones once.

    Of a model that holds LoRA adapters these alone; ``slm.lora`` merges those of a training into the weights.
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
