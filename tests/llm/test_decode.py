"""Greedy decoding in batches that rows join and leave equals ``generate`` on each whole prompt, token for token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from pdss_fl.errors import LLMUnavailable
from pdss_fl.llm.decode import FAILED, Decoder, RunningBatch, close_gaps
from pdss_fl.llm.kv_cache import ROOM, RoomyLayer
from tests.llm.helpers import make_llama, random_model

VOCABULARY = 400
ENDS = set(range(0, VOCABULARY, 23))  # many, so that rows end at different steps
LIMIT = ROOM + 16  # beyond the room of a buffer
SHARED = list(range(40, 70))
SIZE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "initializer_range": 0.3,
    "eos_token_id": 0,
    "bos_token_id": None,
}

Make = Callable[[int], PreTrainedModel]


def make_gpt2(seed: int) -> PreTrainedModel:
    return random_model(GPT2LMHeadModel, GPT2Config(n_embd=32, n_layer=2, n_head=4, **SIZE), seed)


def make_bloom(seed: int) -> PreTrainedModel:
    return random_model(BloomForCausalLM, BloomConfig(hidden_size=32, n_layer=2, n_head=4, **SIZE), seed)


def make_mistral(seed: int) -> PreTrainedModel:
    config = MistralConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=16,
        **SIZE,
    )
    return random_model(MistralForCausalLM, config, seed)


ALL = [make_llama, make_gpt2, make_bloom, make_mistral]


@cache
def prompts(seed: int, beginning: tuple[int, ...] = tuple(SHARED)) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 30, (9,), generator=generator).tolist()
    return [[*beginning, *torch.randint(1, VOCABULARY, (n,), generator=generator).tolist()] for n in lengths]


def generated(model: Any, prompt: list[int]) -> list[int]:
    model.generation_config.eos_token_id = sorted(ENDS)
    ids = torch.tensor([prompt])
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=LIMIT, do_sample=False, pad_token_id=0
    )
    return list(output[0, len(prompt) :].tolist())


def decode(decoder: Decoder, arrivals: Sequence[tuple[int, list[int]]]) -> list[list[int]]:
    """Write prompts that arrive at given steps in one batch, and return the new tokens of each."""
    written: list[list[int]] = [[] for _ in arrivals]
    batch: RunningBatch | None = None
    rows: list[int] = []
    for step in range(max(arrival for arrival, _ in arrivals) + LIMIT + 1):
        if batch:
            batch.advance()
        if new := [i for i, (arrival, _) in enumerate(arrivals) if arrival == step]:
            started = decoder.start([arrivals[i][1] for i in new])
            if batch:
                batch.join(started)
            batch, rows = batch or started, rows + new
        if not batch:
            continue
        for row, token in zip(rows, batch.newest.tolist(), strict=True):
            written[row].append(token)
        places = close_gaps([written[row][-1] not in ENDS and len(written[row]) < LIMIT for row in rows])
        rows = [rows[place] for place in places]
        batch.keep(places) if places else None
        batch = batch if places else None
    return written


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("make", ALL)
def test_equals_generate(make: Make, seed: int) -> None:
    model = make(seed)
    expected = [generated(model, prompt) for prompt in prompts(seed)]
    assert len({len(tokens) for tokens in expected}) > 1
    assert decode(Decoder(model, SHARED), [(0, prompt) for prompt in prompts(seed)]) == expected


@cache
def expected_of(make: Make) -> tuple[Decoder, list[list[int]], list[list[int]]]:
    model = make(4)
    asked = [*prompts(4), *prompts(5, ()), [*SHARED[:17], 7, 8], SHARED, [3]]
    return Decoder(model, SHARED), asked, [generated(make(4), prompt) for prompt in asked]


@pytest.mark.parametrize("make", ALL)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(data=st.data())
def test_equals_generate_whenever_rows_arrive(make: Make, data: st.DataObject) -> None:
    decoder, asked, expected = expected_of(make)
    chosen = data.draw(st.lists(st.integers(0, len(asked) - 1), min_size=1, max_size=8))
    steps = data.draw(st.lists(st.integers(0, 90), min_size=len(chosen), max_size=len(chosen)))
    found = decode(decoder, [(step, asked[i]) for step, i in zip(steps, chosen, strict=True)])
    assert found == [expected[i] for i in chosen]


@pytest.mark.parametrize(
    ("make", "apart"), [(make_llama, True), (make_gpt2, True), (make_bloom, False), (make_mistral, False)]
)
def test_holds_the_shared_beginning_once_where_attention_can_be_replaced(make: Make, apart: bool) -> None:
    model = make(0)
    assert Decoder(model, SHARED).shared_tokens == (len(SHARED) if apart else 0)
    assert model.config._attn_implementation == ("pdss_shared" if apart else make(0).config._attn_implementation)


@pytest.mark.parametrize("reused", [0, 1, 17])
@pytest.mark.parametrize("make", [make_llama, make_bloom])
def test_a_row_reuses_only_what_it_begins_with(make: Make, reused: int) -> None:
    model = make(5)
    asked = [*prompts(5)[:3], [*SHARED[:reused], 7, 8, 9], SHARED]
    assert decode(Decoder(model, SHARED), [(0, p) for p in asked]) == [generated(model, p) for p in asked]


def test_long_prompts_are_read_like_short_ones() -> None:
    model = make_llama(6)
    asked = [[*SHARED, *([5, 9, 11, 7] * 40)], [*SHARED, 3]]  # more than attention.LONG new tokens
    assert decode(Decoder(model, SHARED), [(0, asked[0]), (2, asked[1])]) == [generated(model, p) for p in asked]


def layer_of(rows: int, tokens: int) -> tuple[RoomyLayer, torch.Tensor]:
    states = torch.rand(rows, 2, tokens, 4)
    layer = RoomyLayer()
    layer.update(states, states)
    return layer, states


def test_a_long_row_does_not_pay_for_rows_that_left() -> None:
    (layer, before), (long, its) = layer_of(64, 10), layer_of(1, 1500)
    layer.reorder_cache(torch.tensor([3]))  # type: ignore[arg-type]
    layer.append(long)
    rows, _, tokens, _ = layer._buffers[0].shape
    assert rows * tokens <= max(2 * (1500 + ROOM), 64 * (10 + ROOM)), "what it needs, or what there was"
    assert torch.equal(layer.keys[0, :, -10:], before[3])
    assert torch.equal(layer.keys[1], its[0])


def test_places_of_rows_that_left_are_kept_for_others_as_long() -> None:
    layer, _ = layer_of(64, 10)
    layer.reorder_cache(torch.arange(60))  # type: ignore[arg-type]
    layer.trim(1)
    old, states = layer._buffers[0], torch.rand(60, 2, 1, 4)
    while layer._buffers[0] is old:
        layer.trim(1)
        layer.update(states, states)
    assert len(layer._buffers[0]) == 64


def test_a_row_without_numbers_spoils_no_other() -> None:
    model, poison = make_llama(7), 399
    clean = [p for p in prompts(7) if poison not in p]
    expected = [generated(model, prompt) for prompt in clean]
    with torch.no_grad():
        model.get_input_embeddings().weight[poison] = float("nan")
        model.get_output_embeddings().weight[poison] = 0.0
    decoder = Decoder(model, SHARED)
    batch = decoder.start([[*SHARED, *([5] * 40), poison], clean[0]])
    assert [token == FAILED for token in batch.newest.tolist()] == [True, False]
    first = batch.newest.tolist()[1]
    batch.keep([1])
    batch.join(decoder.start(clean[1:]))  # into the places that the bad row left behind
    written = [[first], *([token] for token in batch.newest.tolist()[1:])]
    for _ in range(5):
        batch.advance()
        for row, token in zip(written, batch.newest.tolist(), strict=True):
            row.append(token)
    assert [row[: len(e)] for row, e in zip(written, expected, strict=True)] == [e[:6] for e in expected]


def test_refuses_a_purely_recurrent_model() -> None:
    config = MambaConfig(hidden_size=16, num_hidden_layers=1, state_size=4, vocab_size=VOCABULARY)
    with pytest.raises(LLMUnavailable, match=r"llm\.model is a MambaForCausalLM"):
        Decoder(MambaForCausalLM(config))
