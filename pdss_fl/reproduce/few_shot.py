"""The two bounds that train nothing: the small model and the LLM, each shown examples in its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pdss_fl.config import IDENTITY, RunSettings
from pdss_fl.data.example import Example
from pdss_fl.messages import MAX_FIELD_CHARS, PerturbedPrompt, PromptBatch
from pdss_fl.slm.prompts import label_prompt
from pdss_fl.vocabularies import load_perturber

SHOTS = 4


def with_demonstrations(asked: Sequence[Example], shown: Sequence[Example]) -> list[Example]:
    """Return questions whose label prompt begins with the label prompts and answers of ``shown``.

    They stand where a context stands, so that a prompt that is too long loses the first of them first.
    """
    start = label_prompt(asked[0]).start
    text = " ".join(f"{label_prompt(example)} {example.answer}" for example in shown).removeprefix(start)
    before = f"{text} {start}".strip()
    return [replace(e, context=f"{before} {e.context}" if e.context else before) for e in asked]


def raw_questions(asked: Sequence[Example], settings: RunSettings) -> PromptBatch:
    """Return questions for the LLM as they are, contexts that fit included: public data of an experiment only."""
    prompts = [PerturbedPrompt(i, _question(example), example.choices) for i, example in enumerate(asked)]
    return PromptBatch(tuple(prompts), load_perturber(settings, IDENTITY).statement())


def _question(example: Example) -> str:
    whole = f"{example.context} {example.question}" if example.context else example.question
    return whole if len(whole) <= MAX_FIELD_CHARS else example.question
