"""Making, saving and loading small models."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from pdss_fl.data.example import Example
from pdss_fl.errors import SettingError, StoreError
from pdss_fl.slm.evaluate import predict
from pdss_fl.slm.model import SlmSettings, SmallModel, create_slm, scratch_tokenizer

TOKENIZER = scratch_tokenizer(["what does a robin have", "feathers"])


def test_known_words_are_one_token_each_and_unknown_ones_are_spelled() -> None:
    assert len(TOKENIZER("A Robin have feathers").input_ids) == 4
    assert TOKENIZER.tokenize("robin robins zebra") == ["Ġrobin", "Ġrobin", "s", "Ġ", *"zebra"]


def test_text_that_looks_like_a_special_token_is_none(slm: SmallModel) -> None:
    for token in (slm.tokenizer.eos_token, slm.tokenizer.pad_token):
        assert not {slm.tokenizer.eos_token_id, slm.tokenizer.pad_token_id} & set(slm.encode(f"a {token} b"))


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S")), min_size=1))
def test_any_text_survives_the_scratch_tokenizer(text: str) -> None:
    normal = TOKENIZER.backend_tokenizer.normalizer.normalize_str(text)
    assert TOKENIZER.decode(TOKENIZER(text).input_ids) == f" {normal}"


def test_equal_seeds_give_equal_weights_and_the_callers_random_state_is_kept() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, second, other = (create_slm(SlmSettings(hidden_size=32, layers=1, seed=seed), ["a b"]) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    weights = [next(slm.model.parameters()) for slm in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_saved_model_answers_alike_and_loads_with_the_auto_classes(
    slm: SmallModel, examples: list[Example], tmp_path: Path
) -> None:
    slm.save(tmp_path)
    loaded = SmallModel.load(tmp_path)
    assert predict(loaded, examples) == predict(slm, examples)
    assert (loaded.max_tokens, loaded.tokenizer.get_vocab()) == (slm.max_tokens, slm.tokenizer.get_vocab())
    text = "what does a robin zebra have?"
    assert AutoTokenizer.from_pretrained(tmp_path)(text).input_ids == slm.tokenizer(text).input_ids
    ids = torch.tensor([slm.encode(text)])
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(model(ids).logits, slm.model(ids).logits)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_folder_in_hugging_face_format_is_a_small_model(
    family: str, make_pretrained: Callable[..., Path], examples: list[Example], tmp_path: Path
) -> None:
    slm = create_slm(SlmSettings(model=str(make_pretrained(family)), max_tokens=128), [])
    assert slm.tokenizer.pad_token_id == slm.tokenizer.eos_token_id
    answers = predict(slm, examples)
    assert all(answer in example.choices for answer, example in zip(answers, examples, strict=True))
    slm.save(tmp_path)
    assert predict(SmallModel.load(tmp_path), examples) == answers


def test_a_missing_model_is_refused_by_name() -> None:
    with pytest.raises(SettingError, match=r"slm\.model = 'no/such-model'.*safetensors"):
        create_slm(SlmSettings(model="no/such-model"), [])


def test_pickled_weights_are_refused(make_pretrained: Callable[..., Path]) -> None:
    directory = make_pretrained("llama")
    model = AutoModelForCausalLM.from_pretrained(directory)
    torch.save(model.state_dict(), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    with pytest.raises(SettingError, match=r"slm\.model"):
        create_slm(SlmSettings(model=str(directory)), [])


def test_rows_longer_than_the_model_are_refused(make_pretrained: Callable[..., Path]) -> None:
    directory = str(make_pretrained("gpt2", positions=64))
    with pytest.raises(SettingError, match=r"slm\.max-tokens = 65.*64"):
        create_slm(SlmSettings(model=directory, max_tokens=65), [])


def test_a_tokenizer_of_another_model_is_refused(make_pretrained: Callable[..., Path]) -> None:
    larger = scratch_tokenizer([" ".join(f"{chr(97 + i % 26)}{chr(97 + i // 26)}x" for i in range(300))])
    with pytest.raises(SettingError, match=r"slm\.model.*embeddings"):
        create_slm(SlmSettings(model=str(make_pretrained("llama", tokenizer=larger))), [])


def test_a_tokenizer_without_an_end_token_is_refused(
    make_pretrained: Callable[..., Path], bpe_tokenizer: PreTrainedTokenizerFast
) -> None:
    endless = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bpe_tokenizer.backend_tokenizer
    )
    with pytest.raises(SettingError, match=r"slm\.model.*end token"):
        create_slm(SlmSettings(model=str(make_pretrained("llama", tokenizer=endless))), [])


def test_a_damaged_folder_is_refused_without_its_path_in_public(slm: SmallModel, tmp_path: Path) -> None:
    slm.save(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(StoreError) as error:
        SmallModel.load(tmp_path / "model")
    assert str(tmp_path) not in error.value.public
    assert str(tmp_path) in error.value.local
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(StoreError):
        SmallModel.load(tmp_path / "model")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hidden_size": 48}, r"slm\.hidden-size = 48"),
        ({"layers": 0}, r"slm\.layers = 0"),
        ({"max_tokens": 1}, r"slm\.max-tokens = 1"),
    ],
)
def test_impossible_sizes_are_refused(changed: dict[str, int], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        SlmSettings(**changed)  # type: ignore[arg-type]
