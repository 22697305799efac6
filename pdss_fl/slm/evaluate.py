"""Answering questions with a small model, and counting what is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from pdss_fl.data.example import Example
from pdss_fl.slm.answers import content_words
from pdss_fl.slm.collator import Row, batch_of, encode_prompt, encode_row
from pdss_fl.slm.generation import generate
from pdss_fl.slm.loss import IGNORED, LABEL
from pdss_fl.slm.model import SmallModel
from pdss_fl.slm.prompts import label_prompt

_MAX_ANSWER_TOKENS = 32


@dataclass(frozen=True)
class Evaluation:
    """How many of ``total`` questions were answered correctly."""

    correct: int
    total: int


def evaluate(slm: SmallModel, examples: Sequence[Example]) -> Evaluation:
    """Count correct answers.

    A choice must be the right one; an open answer must equal the reference without regard to case,
    punctuation and articles.
    """
    pairs = zip(predict(slm, examples), examples, strict=True)
    return Evaluation(sum(_is_correct(text, example) for text, example in pairs), len(examples))


def predict(slm: SmallModel, examples: Sequence[Example], batch_size: int = 64) -> list[str]:
    """Return one answer per example.

    Parameters
    ----------
    slm : SmallModel
        The model; not changed.
    examples : Sequence[Example]
        Their answers are not read.
    batch_size : int (default: 64)
        Rows at a time; each choice of each example is a row.

    Returns
    -------
    list[str]
        For a question with choices the one whose tokens, end token included, have the highest
        log-likelihood after the label prompt; for an open question what the model writes.
    """
    answers = [""] * len(examples)
    closed = [i for i, example in enumerate(examples) if example.choices]
    rows = [encode_row(slm, label_prompt(examples[i]), choice, LABEL) for i in closed for choice in examples[i].choices]
    scores = iter(log_likelihoods(slm, rows, batch_size))
    for i in closed:
        scored = [(next(scores), choice) for choice in examples[i].choices]
        answers[i] = max(scored, key=lambda pair: pair[0])[1]
    open_ = [i for i, example in enumerate(examples) if not example.choices]
    prompts = [encode_prompt(slm, label_prompt(examples[i]), _answer_room(slm))[0] for i in open_]
    written = generate(slm, prompts, _answer_room(slm), batch_size)
    for i, text in zip(open_, written, strict=True):
        answers[i] = text.strip()
    return answers


def answer_losses(slm: SmallModel, examples: Sequence[Example], batch_size: int = 64) -> list[float]:
    """Return how badly a model knows each example's own answer: minus its log-likelihood after the label prompt, nats.

    Parameters
    ----------
    slm : SmallModel
        The model; not changed.
    examples : Sequence[Example]
        Each with an answer.
    batch_size : int (default: 64)
        Rows at a time.
    """
    rows = [encode_row(slm, label_prompt(example), example.answer, LABEL) for example in examples]
    return [-score for score in log_likelihoods(slm, rows, batch_size)]


@torch.no_grad()
def log_likelihoods(slm: SmallModel, rows: Sequence[Row], batch_size: int) -> list[float]:
    """Return the log-likelihood (nats) of each row's completion; rows of like length run together."""
    scores = [0.0] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: rows[i].tokens)
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        batch = batch_of(slm, [rows[i] for i in chosen])
        logits, labels = batch.run(slm.model)
        losses = F.cross_entropy(
            logits[:, :-1].transpose(1, 2).float(), labels[:, 1:], ignore_index=IGNORED, reduction="none"
        )  # (B, K)
        for i, loss in zip(chosen, losses.sum(dim=1).tolist(), strict=True):
            scores[i] = -loss
    return scores


def _answer_room(slm: SmallModel) -> int:
    return min(_MAX_ANSWER_TOKENS, slm.max_tokens // 2)


def _is_correct(predicted: str, example: Example) -> bool:
    if example.choices:
        return predicted == example.answer
    return content_words(predicted) == content_words(example.answer)
