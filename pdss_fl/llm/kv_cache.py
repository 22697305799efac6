"""Keys and values of rows that come and go: right-aligned in buffers that have room for more."""

from __future__ import annotations

from typing import Any

import torch
from torch import LongTensor, Tensor
from transformers.cache_utils import DynamicLayer

ROOM = 64
"""Tokens by which a buffer grows when it is full."""


class RoomyLayer(DynamicLayer):  # type: ignore[misc, no-untyped-call]
    """Keys and values of one layer, (rows, heads, tokens, width), written in place.

    All rows end at the same column, wherever they begin, so that a row's tokens are as far apart in
    columns as in the text; columns before a row's beginning hold finite numbers that the mask hides.

    Parameters
    ----------
    before : int (default: 0)
        Tokens that precede the first column and are held elsewhere; they count in the length.
    """

    _layer_type = None  # do not replace the library's own class in its table of layer types

    def __init__(self, before: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._before, self._rows = before, 0
        self._start = self._end = 0
        self._buffers: list[Tensor] = []

    def get_seq_length(self) -> int:
        """Return the tokens of the longest row."""
        return self._before + self._end - self._start

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append the states of new tokens and return all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._rows = len(key_states)
            self._buffers = [states[:, :, :0] for states in (key_states, value_states)]
        new = key_states.shape[-2]
        if self._end + new > self._buffers[0].shape[2]:
            self._remake(self._rows, self._end - self._start, new)
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[: self._rows, :, self._end : self._end + new] = states
        self._end += new
        return self._view()

    def reorder_cache(self, beam_idx: LongTensor) -> None:
        """Keep the rows ``beam_idx`` in this order; only rows that change their place are copied."""
        rows = beam_idx.to(self._buffers[0].device)
        moved = (rows != torch.arange(len(rows), device=rows.device)).nonzero().flatten()
        for buffer in self._buffers:
            buffer[moved, :, : self._end] = buffer[rows[moved], :, : self._end]
        self._rows = len(rows)
        self._view()

    def trim(self, tokens: int) -> None:
        """Forget all columns but the last ``tokens``, which the longest row has."""
        self._start = self._end - tokens
        self._view()

    def append(self, other: RoomyLayer) -> None:
        """Take in the rows of another layer, as further rows."""
        rows, width = self._rows + other._rows, other._end - other._start
        if rows > len(self._buffers[0]) or width > self._end:
            self._remake(rows, max(width, self._end - self._start), 0)
        begin = self._end - width
        for buffer, states in zip(self._buffers, other._view(), strict=True):
            buffer[self._rows : rows, :, :begin] = 0  # a masked number that is none would still spread
            buffer[self._rows : rows, :, begin : self._end] = states
        self._rows, self._start = rows, min(self._start, begin)
        self._view()

    def _remake(self, rows: int, width: int, new: int) -> None:
        """Move to buffers of at least so many rows and columns, the present ones at the end of ``width``.

        Places of rows that left stay as far as the buffers do not grow by them: one long row that joins would
        otherwise be paid for as often as there were ever rows.
        """
        old, room = self._view(), width + new + ROOM
        places, columns = len(self._buffers[0]), self._buffers[0].shape[2]
        rows = max(rows, min(places, places * columns // room))
        length = self._end - self._start
        self._start, self._end = width - length, width
        larger = [states.new_zeros(rows, states.shape[1], room, states.shape[3]) for states in old]
        for buffer, states in zip(larger, old, strict=True):
            buffer[: self._rows, :, self._start : self._end] = states
        self._buffers = larger

    def _view(self) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (b[: self._rows, :, self._start : self._end] for b in self._buffers)
        return self.keys, self.values
