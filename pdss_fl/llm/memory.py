"""How much the running batch may hold: its bound in tokens, from the memory there is, and what is left of it."""

from __future__ import annotations

from typing import Any

import psutil
import torch
from transformers import PreTrainedModel

MAX_BATCH_TOKENS = 32_768
"""Bound of rows x tokens of a batch, however much memory there is: the time of a step grows with it."""

SHARE = 0.5
"""Part of the free memory that keys and values may take; the rest is for what the layers hand on, and for others."""


def batch_tokens(model: PreTrainedModel) -> int:
    """Return how many rows x tokens a batch may come to in the memory that is free now, the model being loaded.

    Parameters
    ----------
    model : PreTrainedModel
        On its device: the memory of the GPUs that hold its weights counts, that of the machine where none does.

    Returns
    -------
    int
        ``SHARE`` of the free bytes by the bytes of a token, at most ``MAX_BATCH_TOKENS``.
    """
    return min(MAX_BATCH_TOKENS, int(SHARE * _free_bytes(model)) // bytes_per_token(model))


def bytes_per_token(model: PreTrainedModel) -> int:
    """Return the bytes of one token's keys and values in all layers: 2 x layers x heads of keys x width x bytes.

    As the model's configuration names them, so an estimate where layers differ from one another. At least 1.
    """
    config: Any = model.config.get_text_config()
    query_heads = getattr(config, "num_attention_heads", None) or 1
    heads = getattr(config, "num_key_value_heads", None) or query_heads
    width = getattr(config, "head_dim", None) or getattr(config, "hidden_size", 0) // query_heads
    return max(2 * getattr(config, "num_hidden_layers", 0) * heads * width * model.dtype.itemsize, 1)


def _free_bytes(model: PreTrainedModel) -> int:
    gpus = {weight.device for weight in model.parameters() if weight.device.type == "cuda"}
    if gpus:  # what accelerate spreads over several takes its keys and values along
        return sum(torch.cuda.mem_get_info(gpu)[0] for gpu in gpus)
    return int(psutil.virtual_memory().available)


class Room:
    """Places of a batch that are left for prompts to join; a batch without any takes one prompt of any length.

    Parameters
    ----------
    rows : int
        Most rows.
    tokens : int
        Most rows x tokens of the longest row.
    shared : int
        Tokens of every row that are held once and do not count.
    running : list[int]
        Tokens that the rows that are there may come to.
    """

    def __init__(self, rows: int, tokens: int, shared: int, running: list[int]) -> None:
        self._most_rows, self._most_tokens, self._shared = rows, tokens, shared
        self._rows, self._width = len(running), max(running, default=0) - shared

    def take(self, tokens: int) -> bool:
        """Count one more row of so many tokens, and say whether it fits."""
        self._rows, self._width = self._rows + 1, max(self._width, tokens - self._shared)
        fits = self._rows <= self._most_rows and self._rows * self._width <= self._most_tokens
        return self._rows == 1 or fits
