"""Greedy decoding of batches whose prompts begin alike: the shared beginning is computed once.

Three things make it faster than ``model.generate`` on whole prompts, and none of them changes a
token (in float32; narrower formats round differently with the shape of a batch):

- keys and values of the shared beginning are computed once and copied into every batch;
- keys and values of a batch are written in place instead of being copied at every step;
- a row that is finished leaves the batch at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import LongTensor, Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from pdss_fl.errors import LLMUnavailable
from pdss_fl.llm.protocol import never

ROOM = 64
"""Tokens by which a cache grows when it is full."""

T = TypeVar("T")


class RoomyLayer(DynamicLayer):  # type: ignore[misc, no-untyped-call]
    """Keys and values of one layer, (rows, heads, tokens, width), in buffers with room for more tokens."""

    _layer_type = None  # do not replace the library's own class in its table of layer types

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._buffers: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append the states of new tokens and return all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._buffers = [states[:, :, :0] for states in (key_states, value_states)]
        start = self.get_seq_length()
        self._buffers = [
            _write(buffer, states, start)
            for buffer, states in zip(self._buffers, (key_states, value_states), strict=True)
        ]
        end = start + key_states.shape[-2]
        self.keys, self.values = (buffer[:, :, :end] for buffer in self._buffers)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: LongTensor) -> None:
        """Keep the rows ``beam_idx`` in this order; only rows that change their place are copied."""
        rows = beam_idx.to(self._buffers[0].device)
        moved = (rows != torch.arange(len(rows), device=rows.device)).nonzero().flatten()
        for buffer in self._buffers:
            buffer[moved] = buffer[rows[moved]]
        tokens = self.get_seq_length()
        self._buffers = [buffer[: len(rows)] for buffer in self._buffers]
        self.keys, self.values = (buffer[:, :, :tokens] for buffer in self._buffers)


def _write(buffer: Tensor, states: Tensor, start: int) -> Tensor:
    end = start + states.shape[-2]
    if end > buffer.shape[-2]:
        rows, heads, _, width = states.shape
        larger = states.new_empty(rows, heads, end + ROOM, width)
        larger[:, :, :start] = buffer[:, :, :start]
        buffer = larger
    buffer[:, :, start:end] = states
    return buffer


class GreedyDecoder:
    """Continues batches of prompts, token by token, always with the most probable one.

    Parameters
    ----------
    model : PreTrainedModel
        Any causal LM. One with layers other than plain full attention (sliding windows, recurrent
        states) or without ``position_ids`` is decoded without a shared beginning; a purely recurrent
        one is refused with ``LLMUnavailable``.
    shared : Sequence[int] (default: ())
        Tokens with which prompts are expected to begin. A batch reuses as many of them as all its
        prompts really begin with.
    """

    def __init__(self, model: PreTrainedModel, shared: Sequence[int] = ()) -> None:
        self._model = model
        self._accepted = inspect.signature(model.forward).parameters.keys()
        if "past_key_values" not in self._accepted:
            raise LLMUnavailable(
                f"llm.model is a {type(model).__name__}, whose state cannot be kept for a batch of prompts "
                "of different lengths; name a causal LM with attention"
            )
        self._plain = all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)
        usable = self._plain and "position_ids" in self._accepted
        self._shared = list(shared) if usable else []
        self._states = self._shared_states() if self._shared else []

    def decode(
        self,
        prompts: Sequence[Sequence[int]],
        judge: Callable[[list[int]], T | None],
        is_cancelled: Callable[[], bool] = never,
    ) -> Iterator[tuple[int, T]]:
        """Yield ``(row, verdict)`` of each prompt as soon as ``judge`` has a verdict on its new tokens.

        Parameters
        ----------
        prompts : Sequence[Sequence[int]]
            Token ids, at least one a prompt.
        judge : Callable[[list[int]], T | None]
            Called after every token with all new tokens of a row; anything but ``None`` ends the row.
        is_cancelled : Callable[[], bool] (default: never)
            Asked before every step; once it says true, the iterator ends.
        """
        rows = list(range(len(prompts)))
        written: list[list[int]] = [[] for _ in prompts]
        batch = self._start(prompts)
        while True:
            for row, token in zip(rows, batch.newest.tolist(), strict=True):
                written[row].append(token)
            verdicts = [judge(written[row]) for row in rows]
            yield from ((row, v) for row, v in zip(rows, verdicts, strict=True) if v is not None)
            places = _close_gaps([v is None for v in verdicts])
            if not places or is_cancelled():
                return
            rows = [rows[place] for place in places]
            batch.advance(places)

    def _start(self, prompts: Sequence[Sequence[int]]) -> _Batch:
        reused = min(min(common_length(self._shared, p), len(p) - 1) for p in prompts)
        cache = self._cache()
        for i, (keys, values) in enumerate(self._states if reused else []):
            shape = (len(prompts), -1, -1, -1)
            cache.update(keys[:, :, :reused].expand(shape), values[:, :, :reused].expand(shape), i)
        return _Batch(self._forward, cache, [list(p[reused:]) for p in prompts], reused, self._model.device)

    def _cache(self) -> DynamicCache:
        cache = DynamicCache(config=self._model.config)
        if self._plain:
            cache.layers = [RoomyLayer() for _ in cache.layers]
        return cache

    @torch.inference_mode()
    def _shared_states(self) -> list[tuple[Tensor, Tensor]]:
        cache = self._cache()
        ids = torch.tensor([self._shared], device=self._model.device)
        positions = torch.arange(ids.shape[1], device=ids.device).unsqueeze(0)
        self._forward(ids, torch.ones_like(ids), positions, cache)
        layers = [layer for layer in cache.layers if isinstance(layer, RoomyLayer)]
        return [(cast(Tensor, layer.keys), cast(Tensor, layer.values)) for layer in layers]

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
        """Return the most probable next token of each row, (rows,)."""
        optional = {"position_ids": positions, "logits_to_keep": 1}
        output = self._model(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            **{name: value for name, value in optional.items() if name in self._accepted},
        )
        newest: Tensor = output.logits[:, -1].argmax(-1)
        return newest


class _Batch:
    """Rows that are being written: cache, mask (rows, tokens), next positions and newest tokens (rows,).

    Between the shared beginning and the rest of a shorter prompt there are masked columns, so that
    all rows end at the same column; ``position_ids`` count without them.
    """

    @torch.inference_mode()
    def __init__(
        self,
        forward: Callable[[Tensor, Tensor, Tensor, DynamicCache], Tensor],
        cache: DynamicCache,
        prompts: list[list[int]],
        shared: int,
        device: torch.device,
    ) -> None:
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=device)
        gaps = torch.tensor([width - len(p) for p in prompts], device=device).unsqueeze(1)
        columns = torch.arange(width, device=device).unsqueeze(0)
        positions = (columns - gaps).clamp(min=0) + shared
        mask = torch.ones(len(prompts), shared + width, dtype=torch.long, device=device)
        mask[:, shared:] = columns >= gaps
        self._forward, self._cache, self._mask = forward, cache, mask
        self._next = positions[:, -1] + 1
        self.newest = forward(ids, mask, positions, cache)

    @torch.inference_mode()
    def advance(self, places: list[int]) -> None:
        """Keep the rows at ``places``, in this order, and write one more token to each."""
        if places != list(range(len(self.newest))):
            kept = torch.tensor(places, device=self.newest.device)
            self._cache.reorder_cache(cast(LongTensor, kept))
            self._mask, self._next, self.newest = self._mask[kept], self._next[kept], self.newest[kept]
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(places), 1)], dim=1)
        ids, positions = self.newest.unsqueeze(1), self._next.unsqueeze(1)
        self.newest = self._forward(ids, self._mask, positions, self._cache)
        self._next = self._next + 1


def _close_gaps(kept: list[bool]) -> list[int]:
    """Return the places of the kept rows, in order except that the last ones fill the gaps before them."""
    count = sum(kept)
    spare = [place for place in range(count, len(kept)) if kept[place]]
    return [place if kept[place] else spare.pop() for place in range(count)]


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many tokens two sequences begin with in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
