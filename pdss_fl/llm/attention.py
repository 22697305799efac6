"""Attention for many rows that begin alike: the shared beginning is held, and read, once for all of them.

Kernels of the libraries see one row after the other, so each row's copy of the shared keys travels
through the memory at every token. Here the queries of all rows meet the shared keys in one product,
and only what is a row's own is read row by row. The softmax runs over both parts, so the result is
the same but for the order of roundings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask

SHARED_ATTENTION = "pdss_shared"
"""Name of this attention for ``model.set_attn_implementation``."""

LONG = 64
"""New tokens a row above which scores are not held at once: their number grows with the square."""

_UNKNOWN = ("softcap", "s_aux", "position_bias")  # what some models add to scores; not computed here


@dataclass(frozen=True, eq=False)
class SharedStates:
    """Keys and values of the shared beginning: a pair of (heads, tokens, width) for each layer.

    A class and not a list, since ``accelerate`` would move a list of tensors from device to device.
    """

    layers: list[tuple[Tensor, Tensor]]


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    shared: SharedStates | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend to the shared tokens and to the row's own; without ``shared`` as ``sdpa`` does.

    Parameters
    ----------
    module : nn.Module
        The attention layer; its ``layer_idx`` says which shared states are meant.
    query : Tensor
        (rows, query heads, new tokens, width).
    key, value : Tensor
        (rows, heads, own tokens, width); query heads are a multiple of heads.
    attention_mask : Tensor | None
        (rows, 1, new tokens, shared + own tokens), added to the scores.
    scaling : float | None (default: None)
        Factor of the scores; one over the root of the width if not given.
    shared : SharedStates | None (default: None)
        Keys and values that precede every row's own.

    Returns
    -------
    tuple[Tensor, None]
        (rows, new tokens, query heads, width), and no weights.
    """
    if shared is None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        return output, None
    if attention_mask is None or any(kwargs.get(name) is not None for name in _UNKNOWN):
        raise NotImplementedError("this attention adds nothing but a mask to its scores")
    first = shared.layers[int(module.layer_idx)]  # type: ignore[arg-type]
    if query.shape[2] > LONG:
        key, value = (torch.cat([s.expand(len(query), -1, -1, -1), own], 2) for s, own in zip(first, (key, value)))  # noqa: B905
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        return output, None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _two_parts(query * scale, key, value, attention_mask, *first), None


def _two_parts(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, first_key: Tensor, first_value: Tensor
) -> Tensor:
    rows, query_heads, new, width = query.shape
    heads, tokens, _ = first_key.shape
    grouped = query.reshape(rows, heads, -1, width)  # the query heads of one key head, and their new tokens
    together = grouped.transpose(0, 1).reshape(heads, -1, width)
    first_scores = (together @ first_key.transpose(1, 2)).view(heads, rows, -1, tokens).transpose(0, 1)
    scores = torch.cat([first_scores, grouped @ key.transpose(2, 3)], dim=-1)
    scores = scores.view(rows, heads, -1, new, scores.shape[-1]) + mask.unsqueeze(1)
    weights = torch.softmax(scores, dim=-1).flatten(2, 3)  # narrow formats are summed up in float32
    first_weights = weights[..., :tokens].transpose(0, 1).reshape(heads, -1, tokens)
    output = (first_weights @ first_value).view(heads, rows, -1, width).transpose(0, 1)
    output = output + weights[..., tokens:] @ value
    return output.reshape(rows, query_heads, new, width).transpose(1, 2).contiguous()


AttentionInterface.register(SHARED_ATTENTION, attend)
AttentionMaskInterface.register(SHARED_ATTENTION, eager_mask)
