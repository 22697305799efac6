"""Scoring of choices and open answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch

from pdss_fl.data.example import Example
from pdss_fl.slm.evaluate import Evaluation, evaluate, predict
from pdss_fl.slm.model import SlmSettings, SmallModel, create_slm
from pdss_fl.slm.prompts import label_prompt
from pdss_fl.slm.trainer import TrainingItem, TrainSettings, train


def _log_likelihood(slm: SmallModel, example: Example, choice: str) -> float:
    """One row at a time, token by token, without padding."""
    prompt = label_prompt(example)
    ids = slm.encode(prompt.start) + slm.encode(f" {prompt.body}") + slm.encode(f" {prompt.end}")
    total = 0.0
    for token in [*slm.encode(f" {choice}"), slm.tokenizer.eos_token_id]:
        with torch.no_grad():
            total += slm.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[token].item()
        ids.append(token)
    return total


def test_the_most_likely_choice_is_predicted(make_pretrained: Callable[..., Path], examples: list[Example]) -> None:
    slm = create_slm(SlmSettings(model=str(make_pretrained("llama")), max_tokens=128), [])
    for example, answer in zip(examples, predict(slm, examples, batch_size=5), strict=True):
        scores = {choice: _log_likelihood(slm, example, choice) for choice in example.choices}
        assert math.isclose(scores[answer], max(scores.values()), rel_tol=1e-5)


def test_a_planted_answer_wins_in_any_place_and_batch(slm: SmallModel) -> None:
    planted = [Example("robin", ("tulip", "robin trout", "hammer"), "hammer")]
    settings = TrainSettings(steps=30, batch_size=4, learning_rate=1e-2, rationale_weight=0.0)
    train(slm, [TrainingItem(e, None) for e in planted], settings)
    orders = [("hammer", "tulip", "robin trout"), ("tulip", "hammer"), ("robin trout", "tulip", "hammer")]
    asked = [Example("robin", choices, "tulip") for choices in orders]
    for batch_size in (1, 2, 64):
        assert predict(slm, asked, batch_size) == ["hammer"] * 3
    assert evaluate(slm, asked + planted) == Evaluation(correct=1, total=4)


def test_the_reference_answer_is_not_read(slm: SmallModel, examples: list[Example]) -> None:
    blind = [Example(e.question, e.choices, e.choices[0]) for e in examples]
    assert predict(slm, blind) == predict(slm, examples)


def test_open_answers_are_written_and_compared_without_case_punctuation_and_articles(
    slm: SmallModel,
) -> None:
    asked = [Example("what sings", (), "a robin"), Example("what has a lid", (), "saucepan lid")]
    settings = TrainSettings(steps=40, batch_size=2, learning_rate=1e-2, rationale_weight=0.0)
    train(slm, [TrainingItem(e, None) for e in asked], settings)
    mixed = [asked[1], Example("who", ("x", "y"), "x"), asked[0]]
    assert predict(slm, mixed)[::2] == ["saucepan lid", "a robin"]
    references = [Example("what sings", (), "The ROBIN."), Example("what sings", (), "robins")]
    assert evaluate(slm, references) == Evaluation(correct=1, total=2)


def test_nothing_to_answer(slm: SmallModel) -> None:
    assert evaluate(slm, []) == Evaluation(correct=0, total=0)
