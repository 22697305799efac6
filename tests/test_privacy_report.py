"""The frequencies with which the best context-free attack is measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from pdss_fl.config import RunSettings
from pdss_fl.data.example import Example
from pdss_fl.privacy_report import word_frequencies
from pdss_fl.vocabularies import load_perturber


@pytest.mark.parametrize(("choices", "share"), [(0, 0.0), (2, 1.0), (4, 2.0)])
def test_words_that_are_not_sent_are_not_counted(tiny: Path, choices: int, share: float) -> None:
    settings = {
        "privacy.vocabulary": "english", "privacy.vocabulary-size": 300, "privacy.embeddings": str(tiny),
        "privacy.question-words": 3, "privacy.choices": choices,
    }  # fmt: skip
    perturber = load_perturber(RunSettings.from_run_config(settings), "staircase")
    asked = Example("old people work", ("time", "way", "day", "life"), "time")
    found = word_frequencies(perturber, (asked,))
    tokens = list(perturber.vocabulary.tokens)
    question, of_choices = (sum(float(found[tokens.index(w)]) for w in words) for words in (
        ("old", "people", "work"), asked.choices
    ))  # fmt: skip
    assert question + of_choices == pytest.approx(1)
    assert of_choices == pytest.approx(2 * share / (3 + 2 * share))  # each of four choices is sent so often
