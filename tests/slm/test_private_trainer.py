"""DP-SGD's step on gradients that are known, its noise against its accountant, and its models against an attacker."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pdss_fl.data.example import Example
from pdss_fl.errors import SettingError
from pdss_fl.privacy.attacks import membership_attack
from pdss_fl.slm.evaluate import answer_losses
from pdss_fl.slm.model import SlmSettings, SmallModel, create_slm
from pdss_fl.slm.private_trainer import Privacy, PrivateSteps, noise_for, noise_generator, train_privately
from pdss_fl.slm.trainer import TrainingItem, TrainSettings, train


def moved(gradients: list[list[float]], noise: float, clip: float, expected: float, size: int = 2) -> Tensor:
    """How far one plain step of rate 1 moves a parameter whose examples have these gradients."""
    parameter = torch.nn.Parameter(torch.zeros(size))
    steps = PrivateSteps(torch.optim.SGD([parameter], lr=1.0), noise, clip, expected)
    steps.step([lambda g=g: parameter @ torch.tensor(g) for g in gradients])  # type: ignore[misc]
    return -parameter.detach()


def test_each_examples_gradient_is_clipped_by_itself_and_the_sum_divided() -> None:
    assert moved([[3.0, 4.0], [0.3, 0.4]], 0.0, 1.0, 2.0).tolist() == pytest.approx([0.45, 0.6], abs=1e-4)
    assert moved([], 0.0, 1.0, 2.0).tolist() == [0.0, 0.0]


def test_one_example_moves_the_sum_by_no_more_than_the_clip() -> None:
    with_it = moved([[0.1, 0.1], [1e6, -1e6]], 0.0, 0.5, 1.0)
    assert float((with_it - moved([[0.1, 0.1]], 0.0, 0.5, 1.0)).norm()) <= 0.5 + 1e-5


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_example_whose_gradient_is_no_number_adds_nothing(bad: float) -> None:
    """A server can choose finite weights under which only those who hold a word overflow."""
    with_it = moved([[0.1, 0.1], [bad, 1.0]], 0.0, 0.5, 1.0)
    assert torch.equal(with_it, moved([[0.1, 0.1]], 0.0, 0.5, 1.0))


def test_the_noise_does_not_follow_from_a_seed_that_can_be_tried() -> None:
    """PyTorch's CPU generator keeps 32 bits of a seed, which stand as the first word of its state."""
    assert torch.equal(*(torch.Generator().manual_seed(s).get_state()[16:] for s in (5, 5 + 2**32)))
    words = [noise_generator(torch.device("cpu")).get_state().view(torch.int64)[3:627] for _ in range(2)]
    for state in words:
        seeded = torch.Generator().manual_seed(int(state[0])).get_state().view(torch.int64)[3:627]
        assert int((state == seeded).sum()) < 5
        assert int(state.min()) >= 0
        assert int(state.max()) < 2**32
    assert int((words[0] == words[1]).sum()) < 5, "the state is drawn anew"


@pytest.mark.parametrize("gradients", [[], [[0.0] * 4000]])
def test_the_noise_has_its_size_also_where_nothing_was_drawn(gradients: list[list[float]]) -> None:
    found = moved(gradients, 3.0, 0.5, 10.0, size=4000)
    assert float(found.std()) == pytest.approx(3.0 * 0.5 / 10, rel=0.06)  # a standard error of 1.1 %
    assert abs(float(found.mean())) < 0.01
    assert not torch.equal(found, moved(gradients, 3.0, 0.5, 10.0, size=4000)), "fresh noise every time"


def test_the_noise_of_one_step_on_everything_is_the_gaussian_mechanisms() -> None:
    """delta(epsilon) of the Gaussian mechanism is known exactly (Balle and Wang 2018); the accountant is above it."""
    epsilon, delta = 1.0, 1e-5
    sigma = noise_for(Privacy(epsilon, delta, 1.0), 1.0, 1)

    def phi(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    exact = phi(0.5 / sigma - epsilon * sigma) - math.exp(epsilon) * phi(-0.5 / sigma - epsilon * sigma)
    assert exact <= delta
    assert exact > delta / 100, "the accountant wastes some, and not everything"


def test_more_steps_and_less_epsilon_need_more_noise() -> None:
    base = noise_for(Privacy(2.0, 1e-5, 1.0), 0.1, 50)
    assert noise_for(Privacy(2.0, 1e-5, 1.0), 0.1, 500) > base
    assert noise_for(Privacy(1.0, 1e-5, 1.0), 0.1, 50) > base
    with pytest.raises(SettingError, match=r"sharing\.epsilon"):
        noise_for(Privacy(1e-9, 1e-12, 1.0), 1.0, 1000)


def example(i: int) -> Example:
    word = ["time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school"][i % 12]
    return Example(f"what is number {i}?", (), f"{word} {(i * 7919) % 97}")


def fresh() -> SmallModel:
    return create_slm(SlmSettings(hidden_size=64, layers=1, max_tokens=48), ["what is number time year people"])


def auc(slm: SmallModel) -> tuple[float, float]:
    members, others = (answer_losses(slm, [example(i) for i in part]) for part in (range(40), range(40, 80)))
    found = membership_attack([-loss for loss in members], [-loss for loss in others])
    return found.low, found.auc


def test_an_attacker_finds_members_in_a_plain_model_and_not_in_a_private_one() -> None:
    items = [TrainingItem(example(i), "because it is so") for i in range(40)]
    settings = TrainSettings(steps=60, batch_size=20, learning_rate=8e-3, rationale_weight=0.3)
    plain, private = fresh(), fresh()
    train(plain, items, settings)
    before = [p.clone() for p in private.model.parameters()]
    assert train_privately(private, items, settings, Privacy(1.0, 1e-5, 1.0)) == 0
    assert not all(torch.equal(a, b) for a, b in zip(before, private.model.parameters(), strict=True))
    assert auc(plain)[0] > 0.6
    assert auc(private)[0] < 0.5, "the interval holds a guess"


def test_with_a_huge_epsilon_it_learns() -> None:
    items = [TrainingItem(example(i), None) for i in range(6)]
    slm = fresh()
    untrained = sum(answer_losses(slm, [item.example for item in items]))
    settings = TrainSettings(steps=60, batch_size=6, learning_rate=8e-3, rationale_weight=0.0)
    train_privately(slm, items, settings, Privacy(1e4, 1e-5, 1.0))
    assert sum(answer_losses(slm, [item.example for item in items])) < 0.3 * untrained
