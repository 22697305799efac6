"""Greedy decoding of a batch whose rows come and go, and whose prompts begin alike.

Four things make it faster than ``model.generate`` on whole prompts, and none of them changes a token
(in float32; narrower formats round differently with the shape of a batch):

- keys and values of the shared beginning are computed once, and held once where the model's attention
  can be replaced by ``pdss_fl.llm.attention``, else copied into every row;
- keys and values are written in place instead of being copied at every step;
- a row that is finished leaves the batch at once, and others join it between two tokens;
- logits are computed for the last position only.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import LongTensor, Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from pdss_fl.errors import LLMUnavailable
from pdss_fl.llm.attention import SHARED_ATTENTION, SharedStates
from pdss_fl.llm.kv_cache import RoomyLayer

FAILED = -1
"""Stands for the next token of a row whose logits are no numbers."""


class Decoder:
    """Starts batches of prompts; see ``RunningBatch`` for how they go on.

    Parameters
    ----------
    model : PreTrainedModel
        Any causal LM. One with layers other than attention (recurrent states) is decoded without a shared
        beginning, and its batches cannot take in rows; a purely recurrent one is refused with
        ``LLMUnavailable``. Its attention may be replaced by one that gives the same results.
    shared : Sequence[int] (default: ())
        Tokens with which prompts are expected to begin. A row reuses as many of them as it really
        begins with.
    """

    def __init__(self, model: PreTrainedModel, shared: Sequence[int] = ()) -> None:
        self._model = model
        self._accepted = inspect.signature(model.forward).parameters.keys()
        if "past_key_values" not in self._accepted:
            raise LLMUnavailable(
                f"llm.model is a {type(model).__name__}, whose state cannot be kept for a batch of prompts "
                "of different lengths; name a causal LM with attention"
            )
        kinds = {type(layer) for layer in DynamicCache(config=model.config).layers}
        self.can_join = kinds <= {DynamicLayer, DynamicSlidingWindowLayer}
        self._shared = list(shared) if self.can_join else []
        self._states: SharedStates | None = None
        self.apart = False
        if self._shared:
            self._compute_shared(kinds == {DynamicLayer})

    @torch.inference_mode()
    def start(self, prompts: Sequence[Sequence[int]]) -> RunningBatch:
        """Read prompts of at least one token each and return them as a batch with one new token a row."""
        reusable = [self._reusable(prompt) for prompt in prompts]
        cache = self._cache(self.shared_tokens)
        if self.apart:
            return RunningBatch(self, cache, prompts, [0] * len(prompts), reusable)
        # All rows read equally many tokens, so that no gap comes between what is copied and what is read.
        read = max(len(p) - r for p, r in zip(prompts, reusable, strict=True))
        copied = [max(len(p) - read, 0) for p in prompts]
        self._copy_shared(cache, copied)
        return RunningBatch(self, cache, prompts, copied, [0] * len(prompts))

    def next_tokens(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
        """Return the most probable next token of each row, (rows,), or ``FAILED``; all else as ``forward`` names it."""
        highest, tokens = self._logits(ids, mask, positions, cache, self._states if self.apart else None).max(-1)
        return torch.where(highest.isnan(), FAILED, tokens).to(self.device)  # the last layer may be elsewhere

    def shared_mask(self, apart: Tensor) -> Tensor:
        """Return which tokens of the shared beginning rows see that begin with so many, (rows, shared tokens)."""
        return torch.arange(self.shared_tokens, device=apart.device) < apart.unsqueeze(1)

    @property
    def shared_tokens(self) -> int:
        """How many tokens of a prompt are held once for all rows."""
        return len(self._shared) if self.apart else 0

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return self._model.device

    def _logits(
        self, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache, shared: SharedStates | None
    ) -> Tensor:
        optional = {"position_ids": positions, "logits_to_keep": 1}
        output = self._model(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            **{name: value for name, value in optional.items() if name in self._accepted},
            **({"shared": shared} if shared else {}),
        )
        return cast(Tensor, output.logits[:, -1])

    def _reusable(self, prompt: Sequence[int]) -> int:
        if list(prompt[: len(self._shared)]) == self._shared and len(prompt) > len(self._shared):
            return len(self._shared)
        return min(common_length(self._shared, prompt), len(prompt) - 1)

    def _copy_shared(self, cache: DynamicCache, copied: list[int]) -> None:
        """Begin each row with so many tokens of the shared beginning, right-aligned."""
        most = max(copied)
        for i, pair in enumerate(self._states.layers if most and self._states else []):
            rows = [s.new_zeros(len(copied), s.shape[0], most, s.shape[2]) for s in pair]
            for row, states in zip(rows, pair, strict=True):
                for place, count in enumerate(copied):
                    row[place, :, most - count :] = states[:, :count]
            cache.update(rows[0], rows[1], i)

    def _cache(self, before: int = 0) -> DynamicCache:
        cache = DynamicCache(config=self._model.config)
        if self.can_join:
            cache.layers = [RoomyLayer(before) for _ in cache.layers]
        return cache

    @torch.inference_mode()
    def _compute_shared(self, plain: bool) -> None:
        """Compute the shared states, and find out whether they can stay apart from the rows' own."""
        tokens, probe = len(self._shared), self._shared[:2]
        ids = torch.tensor([[*self._shared, *probe]], device=self.device)
        positions = torch.arange(ids.shape[1], device=self.device).unsqueeze(0)
        mask, cache = torch.ones_like(ids), self._cache()
        expected = self._logits(ids, mask, positions, cache, None)
        states = SharedStates([_first_row(layer, tokens) for layer in cache.layers])
        self._states = states
        if not plain or "position_ids" not in self._accepted or self._model.config._attn_implementation != "sdpa":
            return
        self._model.set_attn_implementation(SHARED_ATTENTION)
        try:
            found = self._logits(ids[:, tokens:], mask, positions[:, tokens:], self._cache(tokens), states)
            # Narrow formats round by a few per cent; attention that missed the shared tokens is far off.
            tolerance = 1e-3 if found.dtype == torch.float32 else 0.1
            expected = expected.float() - expected.float().mean()
            self.apart = bool((found.float() - found.float().mean() - expected).norm() <= tolerance * expected.norm())
        except Exception:  # whatever a model raises that does not hand its keywords on to its attention
            self.apart = False
        if not self.apart:
            self._model.set_attn_implementation("sdpa")


class RunningBatch:
    """Rows that are being written, all of them right-aligned at the newest token.

    ``newest`` are the tokens that were written last, (rows,), on the model's device.
    """

    @torch.inference_mode()
    def __init__(
        self,
        decoder: Decoder,
        cache: DynamicCache,
        prompts: Sequence[Sequence[int]],
        copied: list[int],
        apart: list[int],
    ) -> None:
        """Read the rest of prompts of which so many tokens are in the cache, or held apart from it."""
        self._decoder, self._cache, device = decoder, cache, decoder.device
        rests = [list(p[c + a :]) for p, c, a in zip(prompts, copied, apart, strict=True)]
        read, before = max(map(len, rests)), max(copied)
        self._apart = torch.tensor(apart, device=device)
        self._own = torch.tensor([len(p) for p in prompts], device=device) - self._apart
        self._width = before + read
        ids = torch.tensor([[0] * (read - len(rest)) + rest for rest in rests], device=device)
        columns = torch.arange(before, self._width, device=device)
        positions = columns - (self._width - self._own).unsqueeze(1)
        positions = positions.clamp(min=0) + self._apart.unsqueeze(1)
        self.newest = decoder.next_tokens(ids, self._mask(), positions, cache)

    def __len__(self) -> int:
        return len(self._own)

    @torch.inference_mode()
    def keep(self, places: list[int]) -> None:
        """Keep the rows at ``places``, in this order, and drop the others."""
        if places == list(range(len(self))):
            return
        kept = torch.tensor(places, device=self.newest.device)
        self._cache.reorder_cache(cast(LongTensor, kept))
        self._own, self._apart, self.newest = self._own[kept], self._apart[kept], self.newest[kept]
        if self._decoder.can_join:
            self._trim(int(self._own.max()))

    @torch.inference_mode()
    def advance(self) -> None:
        """Write one more token to each row."""
        ids, positions = self.newest.unsqueeze(1), (self._apart + self._own).unsqueeze(1)
        self._own, self._width = self._own + 1, self._width + 1
        self.newest = self._decoder.next_tokens(ids, self._mask(), positions, self._cache)

    @torch.inference_mode()
    def join(self, other: RunningBatch) -> None:
        """Take in the rows of another batch of the same decoder, behind the present ones."""
        for mine, theirs in zip(self._cache.layers, other._cache.layers, strict=True):
            cast(RoomyLayer, mine).append(cast(RoomyLayer, theirs))
        self._own, self._apart = torch.cat([self._own, other._own]), torch.cat([self._apart, other._apart])
        self.newest = torch.cat([self.newest, other.newest])
        self._width = max(self._width, other._width)

    def _mask(self) -> Tensor:
        columns = torch.arange(self._width, device=self._own.device)
        own = columns >= (self._width - self._own).unsqueeze(1)
        return torch.cat([self._decoder.shared_mask(self._apart), own], dim=1).long()

    def _trim(self, width: int) -> None:
        self._width = width
        for layer in self._cache.layers:
            cast(RoomyLayer, layer).trim(width)


def _first_row(layer: Any, tokens: int) -> tuple[Tensor, Tensor]:
    return layer.keys[0, :, :tokens].clone(), layer.values[0, :, :tokens].clone()


def close_gaps(kept: Sequence[bool]) -> list[int]:
    """Return the places of the kept rows, in order except that the last ones fill the gaps before them."""
    count = sum(kept)
    spare = [place for place in range(count, len(kept)) if kept[place]]
    return [place if kept[place] else spare.pop() for place in range(count)]


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many tokens two sequences begin with in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
