"""Word embeddings of public models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CTRLConfig,
    CTRLLMHeadModel,
    PreTrainedTokenizerFast,
)

from pdss_fl.errors import SettingError
from pdss_fl.slm.embeddings import word_embeddings

WORDS = ["robin", "saucepan", "zebra", "x"]


def _expected(directory: Path) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)
    matrix = cast(torch.nn.Embedding, model.get_input_embeddings()).weight.detach()
    ids = [tokenizer(f" {word}").input_ids for word in WORDS]
    assert len(ids[0]) < len(ids[2])  # the known word is in one piece, the unknown one is not
    return torch.stack([matrix[i].mean(dim=0) for i in ids])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_word_is_the_mean_of_its_tokens_rows(family: str, make_pretrained: Callable[..., Path]) -> None:
    directory = make_pretrained(family)
    found = word_embeddings(str(directory), WORDS)
    assert found.shape == (4, 32)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, _expected(directory))


def test_weights_in_several_files_of_half_precision(make_pretrained: Callable[..., Path]) -> None:
    directory = make_pretrained("llama")
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    (directory / "model.safetensors").unlink()
    model.save_pretrained(directory, max_shard_size="20KB")
    assert len(list(directory.glob("model-*.safetensors"))) > 1
    found = word_embeddings(str(directory), WORDS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, _expected(directory).float(), rtol=1e-2, atol=1e-3)


def test_an_architecture_with_other_names_is_loaded_whole(
    make_pretrained: Callable[..., Path], tmp_path: Path, bpe_tokenizer: PreTrainedTokenizerFast
) -> None:
    config = CTRLConfig(vocab_size=len(bpe_tokenizer), n_embd=32, dff=32, n_layer=1, n_head=2, n_positions=64)
    CTRLLMHeadModel(config).save_pretrained(tmp_path)
    bpe_tokenizer.save_pretrained(tmp_path)
    torch.testing.assert_close(word_embeddings(str(tmp_path), WORDS), _expected(tmp_path))


def test_a_missing_model_is_refused_by_name() -> None:
    with pytest.raises(SettingError, match=r"privacy\.embeddings = 'no/such-model'"):
        word_embeddings("no/such-model", WORDS)
