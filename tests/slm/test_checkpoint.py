"""A training that was stopped and goes on: bit for bit as if it had not been."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pdss_fl.data.example import Example
from pdss_fl.errors import SettingError
from pdss_fl.slm.model import SlmSettings, SmallModel, create_slm
from pdss_fl.slm.trainer import TrainingItem, TrainResult, TrainSettings, train

SETTINGS = TrainSettings(steps=12, batch_size=3, learning_rate=2e-3, rationale_weight=0.5, seed=5, checkpoint_every=4)


class Killed(Exception):
    """What ends a training in these tests."""


def _killed_at(last: int) -> Callable[[int, float], None]:
    def on_step(step: int, _loss: float) -> None:
        if step == last:
            raise Killed

    return on_step


def _weights(slm: SmallModel) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(slm.model.parameters()).detach().clone()


@pytest.fixture
def items(examples: list[Example]) -> list[TrainingItem]:
    return [TrainingItem(e, e.rationale if i % 3 else None) for i, e in enumerate(examples)]


@pytest.fixture(params=["scratch", "with dropout"])
def make(request: pytest.FixtureRequest, make_pretrained: Callable[..., Path]) -> Callable[[], SmallModel]:
    """Return a function that makes the same initial small model again and again; GPT-2 drops out a tenth."""
    model = "scratch" if request.param == "scratch" else str(make_pretrained("gpt2"))
    settings = SlmSettings(model=model, hidden_size=32, layers=1, max_tokens=96)
    return lambda: create_slm(settings, ["what does a robin have"])


def _same(first: TrainResult, second: TrainResult) -> bool:
    return dataclasses.replace(first, seconds=0.0) == dataclasses.replace(second, seconds=0.0)


@pytest.mark.parametrize("stops", [(1,), (4,), (7,), (11,), (5, 6, 9)])
def test_stopped_anywhere_and_resumed_equals_uninterrupted(
    stops: tuple[int, ...], make: Callable[[], SmallModel], items: list[TrainingItem], tmp_path: Path
) -> None:
    expected = make()
    whole = train(expected, items, SETTINGS)
    file = tmp_path / "training.checkpoint"
    for stop in stops:
        with pytest.raises(Killed):
            train(make(), items, SETTINGS, _killed_at(stop), file)
        torch.rand(stop)  # the random state of the next process is another one
    seen: list[int] = []
    slm = make()
    result = train(slm, items, SETTINGS, lambda step, _loss: seen.append(step), file)
    assert torch.equal(_weights(slm), _weights(expected))
    assert _same(result, whole)
    assert seen == list(range(stops[-1] // 4 * 4 + 1, 13)), "what was done is not done again"
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    assert not slm.model.training


def test_how_often_it_is_written_changes_nothing(slm: SmallModel, items: list[TrainingItem], tmp_path: Path) -> None:
    copies = [copy.deepcopy(slm) for _ in range(3)]
    for each, every in zip(copies, (1, 5, None), strict=True):
        settings = dataclasses.replace(SETTINGS, checkpoint_every=every or 100)
        train(each, items, settings, checkpoint=tmp_path / str(every) if every else None)
    weights = [_weights(each) for each in copies]
    assert torch.equal(weights[0], weights[2])
    assert torch.equal(weights[1], weights[2])


def test_a_finished_training_is_not_trained_again(slm: SmallModel, items: list[TrainingItem], tmp_path: Path) -> None:
    initial, seen = copy.deepcopy(slm), list[int]()
    first = train(slm, items, SETTINGS, checkpoint=tmp_path / "file")
    again = train(initial, items, SETTINGS, lambda step, _loss: seen.append(step), tmp_path / "file")
    assert (seen, _same(first, again)) == ([], True)
    assert torch.equal(_weights(slm), _weights(initial))


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]


@pytest.mark.parametrize("damage", [_cut, _flipped, lambda _data: b"", lambda _data: b"not a checkpoint"])
def test_a_damaged_file_means_a_new_start_with_a_warning(
    damage: Callable[[bytes], bytes],
    slm: SmallModel,
    items: list[TrainingItem],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected, file = copy.deepcopy(slm), tmp_path / "file"
    with pytest.raises(Killed):
        train(copy.deepcopy(slm), items, SETTINGS, _killed_at(9), file)
    file.write_bytes(damage(file.read_bytes()))
    with caplog.at_level(logging.WARNING):
        result = train(slm, items, SETTINGS, checkpoint=file)
    assert "checkpoint of the training is damaged" in caplog.text
    assert _same(result, train(expected, items, SETTINGS))
    assert torch.equal(_weights(slm), _weights(expected))


@pytest.mark.parametrize("other", ["items", "settings", "model"])
def test_the_file_of_another_training_is_not_used(
    other: str, slm: SmallModel, items: list[TrainingItem], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Killed):
        train(copy.deepcopy(slm), items, SETTINGS, _killed_at(9), tmp_path / "file")
    settings = dataclasses.replace(SETTINGS, learning_rate=1e-3) if other == "settings" else SETTINGS
    asked = items[::-1] if other == "items" else items
    if other == "model":
        slm.model.get_input_embeddings().weight.data[0, 0] += 1e-3  # type: ignore[union-attr,index,operator]
    expected = copy.deepcopy(slm)
    train(expected, asked, settings)
    with caplog.at_level(logging.WARNING):
        train(slm, asked, settings, checkpoint=tmp_path / "file")
    assert "other data, model or settings: starting anew" in caplog.text
    assert torch.equal(_weights(slm), _weights(expected))


def test_a_file_that_cannot_be_written_does_not_stop_the_training(
    slm: SmallModel, items: list[TrainingItem], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way of a folder")
    expected = copy.deepcopy(slm)
    with caplog.at_level(logging.WARNING):
        train(slm, items, SETTINGS, checkpoint=tmp_path / "file" / "training")
    assert "could not be written" in caplog.text
    train(expected, items, SETTINGS)
    assert torch.equal(_weights(slm), _weights(expected))


def test_no_private_text_is_in_the_file(slm: SmallModel, examples: list[Example], tmp_path: Path) -> None:
    train(slm, [TrainingItem(e, e.rationale) for e in examples], SETTINGS, checkpoint=tmp_path / "file")
    written = (tmp_path / "file").read_bytes()
    assert not [word for e in examples for word in e.question.split()[3:] if word.encode() in written]


def test_the_steps_between_are_at_least_one() -> None:
    with pytest.raises(SettingError, match=r"distill\.checkpoint-every = 0"):
        dataclasses.replace(SETTINGS, checkpoint_every=0)
