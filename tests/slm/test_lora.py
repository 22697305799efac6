"""Low-rank training: what changes, what stays, and that the model remains a plain one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from pdss_fl.data.example import Example
from pdss_fl.errors import SettingError
from pdss_fl.slm.evaluate import predict
from pdss_fl.slm.model import SlmSettings, SmallModel, create_slm
from pdss_fl.slm.trainer import TrainingItem, TrainSettings, train
from tests.slm.seq2seq import FAMILIES, save_seq2seq

RANK = 2
SETTINGS = TrainSettings(
    steps=30, batch_size=8, learning_rate=2e-2, rationale_weight=0.5, lora_rank=RANK, checkpoint_every=4
)


@pytest.fixture(scope="module", params=["gpt2", "llama", *FAMILIES])
def folder(
    request: pytest.FixtureRequest,
    make_pretrained: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    if request.param in FAMILIES:
        return save_seq2seq(tmp_path_factory.mktemp(request.param), request.param)
    return str(make_pretrained(request.param))


@pytest.fixture
def items(examples: list[Example]) -> list[TrainingItem]:
    return [TrainingItem(e, e.rationale) for e in examples]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_low_rank_updates_are_learned_and_added_to_the_weights(
    dtype: str, folder: str, items: list[TrainingItem], tmp_path: Path
) -> None:
    slm = create_slm(SlmSettings(folder, max_tokens=128, dtype=dtype), [])
    before = {name: values.clone() for name, values in slm.model.state_dict().items()}
    losses: list[float] = []
    train(slm, items, SETTINGS, lambda _step, loss: losses.append(loss))
    assert losses[-1] < losses[0] - 0.2
    after = slm.model.state_dict()
    assert before.keys() == after.keys()
    assert {values.dtype for values in after.values()} == {getattr(torch, dtype)}
    changed = {name for name, values in after.items() if not torch.equal(values, before[name])}
    assert changed
    for name in changed:
        assert "emb" not in name
        assert "wte" not in name
        assert after[name].dim() == 2
        if dtype == "float32":  # else rounding to bfloat16 hides the rank
            found = torch.linalg.svdvals(after[name] - before[name])
            assert found[RANK] < 1e-4 * found[0]
    assert all(weights.requires_grad for weights in slm.model.parameters())
    slm.save(tmp_path)
    loaded = SmallModel.load(tmp_path)
    assert loaded.model.dtype == getattr(torch, dtype)
    asked = [item.example for item in items]
    assert predict(loaded, asked) == predict(slm, asked)


def test_a_saved_model_knows_nothing_of_adapters(
    make_pretrained: Callable[..., Path], items: list[TrainingItem], tmp_path: Path
) -> None:
    slm = create_slm(SlmSettings(str(make_pretrained("llama")), max_tokens=128), [])
    train(slm, items, dataclasses.replace(SETTINGS, steps=2))
    slm.save(tmp_path)
    assert not list(tmp_path.glob("adapter*"))
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, slm.model(ids).logits)


def test_a_stopped_low_rank_training_goes_on_bit_for_bit(
    folder: str, items: list[TrainingItem], tmp_path: Path
) -> None:
    def stop(step: int, _loss: float) -> None:
        if step == 6:
            raise InterruptedError

    settings = dataclasses.replace(SETTINGS, steps=10)
    models = [create_slm(SlmSettings(folder, max_tokens=128), []) for _ in range(3)]
    train(models[0], items, settings)
    with pytest.raises(InterruptedError):
        train(models[1], items, settings, stop, tmp_path / "file")
    seen: list[int] = []
    train(models[2], items, settings, lambda step, _loss: seen.append(step), tmp_path / "file")
    assert seen == list(range(5, 11))
    first, _, third = (torch.nn.utils.parameters_to_vector(slm.model.parameters()) for slm in models)
    assert torch.equal(first, third)


def test_settings_that_cannot_be_are_refused_by_name() -> None:
    with pytest.raises(SettingError, match=r"slm\.lora-rank = -1"):
        dataclasses.replace(SETTINGS, lora_rank=-1)
    with pytest.raises(SettingError, match=r"slm\.dtype = 'float16'"):
        SlmSettings("some/model", dtype="float16")
