"""Greedy decoding in batches equals ``generate`` on each whole prompt, token for token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
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
from pdss_fl.llm.states import ROOM
from pdss_fl.llm.decode import Decoder, close_gaps
from tests.llm.helpers import make_llama, random_model

VOCABULARY = 400
ENDS = set(range(0, VOCABULARY, 23))  # many, so that rows end at different steps
LIMIT = ROOM + 16  # beyond the room of a cache
SIZE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "initializer_range": 0.3,
    "eos_token_id": 0,
    "bos_token_id": None,
}


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


def random_prompts(seed: int, shared: list[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 30, (9,), generator=generator).tolist()
    return [shared + torch.randint(1, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def generated(model: Any, prompt: list[int]) -> list[int]:
    model.generation_config.eos_token_id = sorted(ENDS)
    ids = torch.tensor([prompt])
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=LIMIT, do_sample=False, pad_token_id=0
    )
    return list(output[0, len(prompt) :].tolist())


def verdict(tokens: list[int]) -> list[int] | None:
    return list(tokens) if tokens[-1] in ENDS or len(tokens) == LIMIT else None


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("make", [make_llama, make_gpt2, make_bloom, make_mistral])
def test_equals_generate(make: Callable[[int], PreTrainedModel], seed: int) -> None:
    model, shared = make(seed), list(range(40, 70))
    prompts = random_prompts(seed, shared)
    expected = [generated(model, prompt) for prompt in prompts]
    assert len({len(tokens) for tokens in expected}) > 1
    found = dict(GreedyDecoder(model, shared).decode(prompts, verdict))
    assert [found[row] for row in range(len(prompts))] == expected


@pytest.mark.parametrize("reused", [0, 1, 17])
def test_reuses_only_what_all_prompts_begin_with(reused: int) -> None:
    model, shared = make_llama(5), list(range(40, 70))
    prompts = [*random_prompts(5, shared)[:3], [*shared[:reused], 7, 8, 9], shared]
    found = dict(GreedyDecoder(model, shared).decode(prompts, verdict))
    assert [found[row] for row in range(len(prompts))] == [generated(model, prompt) for prompt in prompts]


def test_rows_leave_as_they_finish() -> None:
    prompts = random_prompts(3, [])
    order = [tokens for _, tokens in GreedyDecoder(make_llama(3)).decode(prompts, verdict)]
    assert [len(tokens) for tokens in order] == sorted(len(tokens) for tokens in order)
    assert len(order) == len(prompts)


def test_stops_at_the_next_token_when_cancelled() -> None:
    asked: list[int] = []

    def count(tokens: list[int]) -> int | None:
        asked.append(len(tokens))
        return None

    decoder = GreedyDecoder(make_llama())
    assert not list(decoder.decode([[5, 6], [7]], count, is_cancelled=lambda: len(asked) >= 6))
    assert asked == [1, 1, 2, 2, 3, 3]


def test_refuses_a_purely_recurrent_model() -> None:
    config = MambaConfig(hidden_size=16, num_hidden_layers=1, state_size=4, vocab_size=VOCABULARY)
    with pytest.raises(LLMUnavailable, match=r"llm\.model is a MambaForCausalLM"):
        GreedyDecoder(MambaForCausalLM(config))
