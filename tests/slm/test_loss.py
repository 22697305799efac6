"""The multi-task loss against its definition."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pdss_fl.data.example import Example
from pdss_fl.errors import SettingError
from pdss_fl.slm.collator import collate, encode_row
from pdss_fl.slm.loss import IGNORED, LABEL, RATIONALE, multi_task_loss
from pdss_fl.slm.model import SmallModel
from pdss_fl.slm.prompts import label_prompt, rationale_prompt

TASK = torch.tensor([LABEL, RATIONALE])
LABELS = torch.tensor([[IGNORED, 1, IGNORED], [IGNORED, 2, 3]])


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary() -> None:
    losses = multi_task_loss(torch.zeros(2, 3, 5), LABELS, TASK, 0.3)
    assert [loss.item() for loss in losses] == pytest.approx([math.log(5)] * 3)


def test_each_task_is_the_mean_over_its_own_tokens() -> None:
    logits = torch.zeros(2, 3, 5)
    logits[0, 0, 1] = 100.0  # the only label token is certain
    logits[1, 0, 2] = 100.0  # one of two rationale tokens is
    loss, label_loss, rationale_loss = multi_task_loss(logits, LABELS, TASK, 0.25)
    assert label_loss.item() == pytest.approx(0)
    assert rationale_loss.item() == pytest.approx(math.log(5) / 2)
    assert loss.item() == pytest.approx(0.25 * math.log(5) / 2)


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 0.99), st.integers(0, 1000))
def test_up_to_a_factor_it_is_the_loss_of_distilling_step_by_step(weight: float, seed: int) -> None:
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(seed))
    loss, label_loss, rationale_loss = multi_task_loss(logits, LABELS, TASK, weight)
    lambda_ = weight / (1 - weight)
    assert loss.item() == pytest.approx((1 - weight) * (label_loss + lambda_ * rationale_loss).item(), rel=1e-4)


def test_logits_at_ignored_places_get_no_gradient() -> None:
    logits = torch.randn(2, 3, 5, requires_grad=True)
    loss = multi_task_loss(logits, LABELS, TASK, 0.5)[0]
    gradient = torch.autograd.grad(loss, logits)[0]
    touched = gradient.abs().sum(dim=-1) > 0
    assert touched.tolist() == [[True, False, False], [True, True, False]]


@pytest.mark.parametrize("present", [LABEL, RATIONALE])
def test_a_task_without_tokens_contributes_nothing(present: int) -> None:
    labels = LABELS.clone()
    labels[1 - present] = IGNORED
    loss, *parts = multi_task_loss(torch.zeros(2, 3, 5), labels, TASK, 0.5)
    assert parts[1 - present].item() == 0
    assert loss.item() == pytest.approx(0.5 * math.log(5))


def test_a_batch_without_any_supervised_token_has_loss_and_gradient_zero() -> None:
    logits = torch.zeros(2, 3, 5, requires_grad=True)
    loss = multi_task_loss(logits, torch.full((2, 3), IGNORED), TASK, 0.5)[0]
    assert loss.item() == 0
    assert torch.autograd.grad(loss, logits)[0].abs().sum() == 0


@pytest.mark.parametrize("weight", [-0.1, 1.0, math.nan])
def test_a_weight_out_of_range_is_refused(weight: float) -> None:
    with pytest.raises(SettingError, match=r"distill\.rationale-weight"):
        multi_task_loss(torch.zeros(2, 3, 5), LABELS, TASK, weight)


def test_one_packed_pass_equals_two_passes(slm: SmallModel, examples: list[Example]) -> None:
    label_rows = [encode_row(slm, label_prompt(e), e.answer, LABEL) for e in examples]
    rationale_rows = [encode_row(slm, rationale_prompt(e), f"{e.rationale} so", RATIONALE) for e in examples]
    empty = encode_row(slm, rationale_prompt(examples[0]), "", RATIONALE)
    pad = slm.tokenizer.pad_token_id
    weights = next(slm.model.parameters())
    packed = collate([*label_rows, *rationale_rows, empty], pad)
    loss, *_ = multi_task_loss(*packed.run(slm.model), packed.task, 0.3)
    gradient = torch.autograd.grad(loss, weights)[0]
    separate = torch.tensor(0.0)
    for rows, weight in ((label_rows, 0.7), (rationale_rows, 0.3)):
        batch = collate(rows, pad)
        full = slm.model(batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels)
        separate = separate + weight * full.loss
    expected = torch.autograd.grad(separate, weights)[0]
    torch.testing.assert_close(loss, separate, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)
