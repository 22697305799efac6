"""Tiny real models: one from scratch, and a GPT-2 and a Llama in Hugging Face format without a pad token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from pdss_fl.data.example import Example
from pdss_fl.slm.model import SlmSettings, SmallModel, create_slm

torch.set_num_threads(1)

THINGS = ("robin", "trout", "hammer", "tulip", "violin", "saucepan", "horse", "lorry")
TRAITS = ("feathers", "fins", "a handle", "petals", "strings", "a lid", "hooves", "wheels")


def _choices(i: int) -> tuple[str, ...]:
    return tuple(TRAITS[(i + offset) % len(TRAITS)] for offset in (2, 5, 0, 7))


EXAMPLES = [
    Example(f"what does a {thing} have", _choices(i), TRAITS[i], rationale=f"it has {TRAITS[i]}")
    for i, thing in enumerate(THINGS)
]
TEXTS = [" ".join((e.question, *e.choices, e.rationale or "")) for e in EXAMPLES]


@pytest.fixture(scope="session")
def examples() -> list[Example]:
    return EXAMPLES


@pytest.fixture
def slm() -> SmallModel:
    """Make a from-scratch model of one layer."""
    return create_slm(SlmSettings(hidden_size=32, layers=1, max_tokens=64), TEXTS)


@pytest.fixture(scope="session")
def bpe_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer of the GPT-2 kind: an end token, no padding token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call,no-any-return]
        tokenizer_object=tokenizer, eos_token="<|end|>", bos_token="<|end|>"
    )


@pytest.fixture(scope="session")
def make_pretrained(
    tmp_path_factory: pytest.TempPathFactory, bpe_tokenizer: PreTrainedTokenizerFast
) -> Callable[..., Path]:
    """Return a function that writes a tiny model of a family ("gpt2" or "llama") and returns its folder."""

    def make(family: str, positions: int = 512, tokenizer: PreTrainedTokenizerFast = bpe_tokenizer) -> Path:
        directory = tmp_path_factory.mktemp(family)
        torch.manual_seed(0)
        _tiny(family, len(bpe_tokenizer), positions).save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        return directory

    return make


def _tiny(family: str, vocab_size: int, positions: int) -> PreTrainedModel:
    if family == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, n_positions=positions, n_embd=32, n_layer=1, n_head=2))
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=positions,
        )
    )
