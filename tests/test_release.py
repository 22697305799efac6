"""What leaves is charged first, stored, and sent again for free; what stays is enough to decode."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from pdss_fl.data.example import Example
from pdss_fl.data.prompts import PromptShape
from pdss_fl.errors import BudgetExhausted, StoreError
from pdss_fl.privacy import Ledger, Vocabulary, create_mechanism
from pdss_fl.release import Perturber, release_prompts, word_pairs

WORDS = ["what", "does", "a", "robin", "have", "feathers", "wheels", "petals", "strings", "thing"]
VOCABULARY = Vocabulary(WORDS, torch.randn(10, 6, generator=torch.Generator().manual_seed(1)), fallback="thing")
EXAMPLES = [
    Example("What does a robin have?", ("feathers", "wheels", "petals"), "feathers"),
    Example("What has Quuxington?", ("a robin", "wheels"), "wheels", person="Quuxington"),
]


def perturber(name: str = "staircase", epsilon: float = 2.0, length: str = "fixed") -> Perturber:
    mechanism = create_mechanism(name, VOCABULARY, epsilon=epsilon, neighbours=2)
    return Perturber(VOCABULARY, mechanism, PromptShape(length, 6, 2, 3), 1e-5)


def ledger(folder: Path, limit: float = 1000.0) -> Ledger:
    return Ledger(folder / "ledger.jsonl", limit)


def test_every_prompt_is_charged_its_document_epsilon(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    released = release_prompts(EXAMPLES, perturber(), book)
    document = perturber().document
    assert document.tokens == 12
    for example in EXAMPLES:
        assert book.spent(example.content_hash) == document.epsilon
    assert book.spent_by_person("Quuxington") == document.epsilon
    assert released.batch.privacy.epsilon_per_document == document.epsilon
    assert released.batch.privacy.vocabulary_sha256 == VOCABULARY.sha256


def test_the_ledger_is_written_before_anything_is_released(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    (tmp_path / "ledger.jsonl").unlink()
    (tmp_path / "ledger.jsonl").mkdir()
    with pytest.raises(StoreError, match="ledger"):
        release_prompts(EXAMPLES, perturber(), book)


def test_a_retry_sends_the_same_text_and_pays_nothing(tmp_path: Path) -> None:
    first = release_prompts(EXAMPLES, perturber(), ledger(tmp_path))
    second = release_prompts(EXAMPLES, perturber(), ledger(tmp_path))
    texts = [{(p.question, p.choices) for p in released.batch.prompts} for released in (first, second)]
    assert texts[0] == texts[1]
    assert ledger(tmp_path).spent(EXAMPLES[0].content_hash) == perturber().document.epsilon


def test_another_setting_is_another_release(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    for made in (perturber(), perturber(epsilon=1.0), perturber(length="exact")):
        release_prompts(EXAMPLES, made, book)
    one = perturber().document.epsilon
    assert book.spent(EXAMPLES[0].content_hash) > 2 * one


def test_an_exhausted_example_is_left_out_and_the_run_goes_on(tmp_path: Path) -> None:
    limit = perturber().document.epsilon * 1.5
    release_prompts(EXAMPLES[:1], perturber(), ledger(tmp_path, limit))
    released = release_prompts(EXAMPLES, perturber(epsilon=1.9), ledger(tmp_path, limit))
    assert [e.question for e in released.examples] == ["What has Quuxington?"]
    assert released.refused == 1
    with pytest.raises(BudgetExhausted, match="max-epsilon-per-example"):
        release_prompts(EXAMPLES[:1], perturber(epsilon=1.9), ledger(tmp_path, limit))


def test_the_client_can_put_every_word_back(tmp_path: Path) -> None:
    released = release_prompts(EXAMPLES, perturber(), ledger(tmp_path))
    for example, payload in zip(released.examples, released.payloads, strict=True):
        pairs = word_pairs(example, payload, perturber())
        private = [word for _, word in pairs]
        expected = VOCABULARY.split(" ".join((example.question, *example.choices)))
        assert sorted(private) == sorted(expected)
        assert all(out in (*WORDS, "_") for out, _ in pairs)


def test_identity_releases_words_of_the_vocabulary_only(tmp_path: Path) -> None:
    released = release_prompts(EXAMPLES, perturber("identity"), ledger(tmp_path, math.inf))
    texts = " ".join(" ".join((p.question, *p.choices)) for p in released.batch.prompts)
    assert "quuxington" not in texts
    assert "what does a robin have _" in texts


def test_seeded_noise_repeats_a_release_exactly(tmp_path: Path) -> None:
    import numpy as np

    batches = []
    for i in range(2):
        made = perturber()
        seeded = Perturber(made.vocabulary, made.mechanism, made.shape, made.delta, np.random.default_rng(3))
        batches.append(release_prompts(EXAMPLES, seeded, ledger(tmp_path / str(i))).batch)
    assert batches[0] == batches[1]


def test_public_labels_are_sent_as_they_are_and_cost_nothing(tmp_path: Path) -> None:
    yes_no = [Example("Does a robin have wheels?", ("yes", "no"), "no")]
    made = perturber()
    shape = PromptShape("fixed", 6, 2, 3, public_choices=True)
    released = release_prompts(yes_no, Perturber(VOCABULARY, made.mechanism, shape, 1e-5), ledger(tmp_path))
    assert released.batch.prompts[0].choices == ("no", "yes")
    assert released.batch.privacy.tokens_per_document == 6
