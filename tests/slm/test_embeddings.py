"""Word embeddings of public models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from pdss_fl.errors import SettingError
from pdss_fl.slm.embeddings import TEMPLATE, word_embeddings

WORDS = ["robin", "saucepan", "zebra", "x"]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_word_is_the_state_after_the_question_what_it_is(family: str, make_pretrained: Callable[..., Path]) -> None:
    directory = make_pretrained(family)
    found = word_embeddings(str(directory), WORDS * 30)
    model, tokenizer = AutoModel.from_pretrained(directory).eval(), AutoTokenizer.from_pretrained(directory)
    for place, word in enumerate(WORDS):
        ids = tokenizer(TEMPLATE.format(word=word), return_tensors="pt").input_ids
        with torch.no_grad():
            alone = model(ids, output_hidden_states=True).hidden_states[-2][0, -1]
        torch.testing.assert_close(found[place + 40], alone, rtol=1e-4, atol=1e-5)
    assert found.dtype == torch.float32
    assert len(found) == 120


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"privacy\.embeddings = .*missing"):
        word_embeddings(str(tmp_path / "missing"), WORDS)
