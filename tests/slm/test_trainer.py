"""Training: it learns, it is repeatable, and its arms are paired."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pdss_fl.data.example import Example
from pdss_fl.errors import SettingError
from pdss_fl.slm.evaluate import evaluate
from pdss_fl.slm.model import SlmSettings, SmallModel, create_slm
from pdss_fl.slm.trainer import TrainingItem, TrainSettings, train

SETTINGS = TrainSettings(steps=4, batch_size=3, learning_rate=2e-3, rationale_weight=0.5)


def _items(examples: list[Example]) -> list[TrainingItem]:
    return [TrainingItem(example, example.rationale) for example in examples]


def _copy(slm: SmallModel, tmp_path: Path) -> SmallModel:
    slm.save(tmp_path)
    return SmallModel.load(tmp_path)


def _weights(slm: SmallModel) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(slm.model.parameters()).detach().clone()


def test_a_tiny_model_learns_its_examples_by_heart(examples: list[Example]) -> None:
    slm = create_slm(SlmSettings(hidden_size=64, layers=2), [e.question for e in examples])
    losses: list[float] = []
    settings = TrainSettings(steps=80, batch_size=8, learning_rate=5e-3, rationale_weight=0.5)
    result = train(slm, _items(examples), settings, lambda step, loss: losses.append(loss))
    assert len(losses) == 80
    assert losses[-1] < losses[0] / 10
    assert evaluate(slm, examples).correct == len(examples)
    assert result.label_loss > 0
    assert result.rationale_loss > 0
    assert result.truncated == 0


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_pretrained_models_train_and_do_so_repeatably(
    family: str, make_pretrained: Callable[..., Path], examples: list[Example]
) -> None:
    path = str(make_pretrained(family))
    runs = []
    for _ in range(2):  # one training after the other in one process, with the dropout of GPT-2
        slm = create_slm(SlmSettings(model=path, max_tokens=128), [])
        before = _weights(slm)
        runs.append((train(slm, _items(examples), SETTINGS), _weights(slm)))
        assert not torch.equal(before, runs[-1][1])
    assert torch.equal(runs[0][1], runs[1][1])
    assert runs[0][0].label_loss == runs[1][0].label_loss


def test_the_seed_decides_the_order_and_the_callers_random_state_is_kept(
    slm: SmallModel, examples: list[Example], tmp_path: Path
) -> None:
    copies = [_copy(slm, tmp_path) for _ in range(3)]
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    for copy, seed in zip(copies, (1, 1, 2), strict=True):
        train(copy, _items(examples), dataclasses.replace(SETTINGS, seed=seed))
    assert torch.equal(torch.rand(2), expected)
    first, same, other = map(_weights, copies)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_label_rows_are_drawn_alike_with_and_without_rationales(
    slm: SmallModel, examples: list[Example], tmp_path: Path
) -> None:
    """At a vanishing weight the rationale rows are in the batch, and the label losses stay as without."""
    arms = {
        "standalone": ([TrainingItem(e, None) for e in examples], 0.0),
        "weight zero": (_items(examples), 0.0),
        "no rationales": ([TrainingItem(e, None) for e in examples], 1e-9),
        "some": ([TrainingItem(e, e.rationale if i % 2 else None) for i, e in enumerate(examples)], 1e-9),
        "all": (_items(examples), 1e-9),
    }
    seen: dict[str, list[float]] = {}
    tokens = {}
    for name, (items, weight) in arms.items():
        steps: dict[int, float] = {}
        settings = dataclasses.replace(SETTINGS, rationale_weight=weight)
        result = train(_copy(slm, tmp_path), items, settings, steps.__setitem__)
        seen[name], tokens[name] = list(steps.values()), result.tokens
    assert seen["weight zero"] == seen["standalone"]
    assert tokens["weight zero"] == tokens["no rationales"] == tokens["standalone"]
    assert tokens["standalone"] < tokens["some"] < tokens["all"]
    for name in ("no rationales", "some", "all"):
        assert seen[name] == pytest.approx(seen["standalone"], rel=1e-3)


def test_every_epoch_draws_each_item_once(slm: SmallModel, examples: list[Example]) -> None:
    """In 8 steps of 3, each of the 8 examples is drawn three times: counted by their lengths in tokens."""
    settings = dataclasses.replace(SETTINGS, steps=8, rationale_weight=0.0)
    total = train(slm, _items(examples), settings).tokens
    one_each = train(slm, _items(examples), dataclasses.replace(settings, steps=1, batch_size=8)).tokens
    assert total == 3 * one_each


def test_an_empty_rationale_teaches_nothing(slm: SmallModel, examples: list[Example]) -> None:
    result = train(slm, [TrainingItem(e, "") for e in examples], SETTINGS)
    assert result.rationale_loss == 0
    assert result.label_loss > 0


def test_cut_rows_are_counted(slm: SmallModel) -> None:
    long = Example("robin " * 100, ("tulip", "trout"), "trout")
    assert train(slm, [TrainingItem(long, "robin " * 100)], SETTINGS).truncated == 2


def test_a_loss_that_is_not_finite_stops_the_training(slm: SmallModel, examples: list[Example]) -> None:
    settings = dataclasses.replace(SETTINGS, steps=50, learning_rate=1e30)
    with pytest.raises(SettingError, match=r"distill\.learning-rate = 1e\+30: the loss of step \d+"):
        train(slm, _items(examples), settings)
    assert not slm.model.training


def test_nothing_to_train_on_is_refused(slm: SmallModel) -> None:
    with pytest.raises(SettingError, match="nothing to train on"):
        train(slm, [], SETTINGS)


@pytest.mark.parametrize(
    ("field", "value", "name"),
    [
        ("steps", 0, "steps"),
        ("batch_size", 0, "batch-size"),
        ("learning_rate", 0.0, "learning-rate"),
        ("learning_rate", float("nan"), "learning-rate"),
        ("rationale_weight", 1.0, "rationale-weight"),
        ("weight_decay", -1.0, "weight-decay"),
        ("warmup", -1, "warmup"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(field: str, value: float, name: str) -> None:
    with pytest.raises(SettingError, match=rf"distill\.{name} = "):
        dataclasses.replace(SETTINGS, **{field: value})  # type: ignore[arg-type]
