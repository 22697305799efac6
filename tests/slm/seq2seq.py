"""A tiny T5 (pad token = start token, no begin token) and a tiny BART in Hugging Face format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

WORDS = ["robin", "trout", "tulip", "predict:", "explain:", "choices:", "answer:", "rationale:", "what does a has have"]
FAMILIES = ("t5", "bart")


def make_tokenizer(family: str) -> PreTrainedTokenizerFast:
    if family == "t5":
        special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
        letters = [(letter, -9.0) for letter in "▁abcdefghijklmnopqrstuvwxyz:;.'?,QCRSATIW-"]
        words = [("▁" + word, -2.0) for entry in WORDS for word in entry.split()]
        known = [(name, 0.0) for name in special.values()]
        raw = Tokenizer(models.Unigram([*known, *dict.fromkeys([*words, *letters])], unk_id=2))
        raw.pre_tokenizer, raw.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        raw.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    else:
        special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>"}
        raw = Tokenizer(models.BPE())
        raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=330, special_tokens=[*special.values()], initial_alphabet=alphabet, show_progress=False
        )
        raw.train_from_iterator([" ".join(WORDS)] * 3, trainer)
        raw.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, **special)  # type: ignore[no-untyped-call,no-any-return]


def _model(family: str, vocab_size: int, dropout: float) -> Any:
    torch.manual_seed(0)
    if family == "t5":
        return T5ForConditionalGeneration(
            T5Config(
                vocab_size=vocab_size, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, dropout_rate=dropout,
                decoder_start_token_id=0,
            )
        )  # fmt: skip
    made = BartForConditionalGeneration(
        BartConfig(
            vocab_size=vocab_size, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=512,
            dropout=dropout, init_std=0.1,
        )
    )  # fmt: skip
    made.generation_config.num_beams = 4  # as published summarisers have them
    made.generation_config.no_repeat_ngram_size = 2
    return made


def save_seq2seq(directory: Path, family: str, dropout: float = 0.0) -> str:
    """Save a tiny model of a family ("t5" or "bart") and return its folder."""
    tokenizer = make_tokenizer(family)
    _model(family, len(tokenizer), dropout).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)
