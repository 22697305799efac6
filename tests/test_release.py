"""What leaves is charged first, stored, and sent again for free; what stays is enough to decode."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from pdss_fl.data.example import Example
from pdss_fl.data.prompts import PromptShape
from pdss_fl.errors import BudgetExhausted, DataError, StoreError
from pdss_fl.privacy import Ledger, Vocabulary, create_mechanism
from pdss_fl.release import Perturber, release_prompts, stored_payload, word_pairs

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
        assert book.spent(example.release_key) == document.epsilon
    assert book.spent_by_person("Quuxington") == document.epsilon
    assert released.batch.privacy.epsilon_per_document == document.epsilon
    assert released.batch.privacy.vocabulary_sha256 == VOCABULARY.sha256


def test_nothing_is_released_that_the_ledger_could_not_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = ledger(tmp_path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreError, match="ledger"):
        release_prompts(EXAMPLES, perturber(), book)
    monkeypatch.undo()
    for example in EXAMPLES:  # what may have reached the disk counts as spent
        stored = book.lookup(example.release_key, perturber().recipe)
        assert (stored is None) == (book.spent(example.release_key) == 0.0)


def test_a_retry_sends_the_same_text_and_pays_nothing(tmp_path: Path) -> None:
    first = release_prompts(EXAMPLES, perturber(), ledger(tmp_path))
    second = release_prompts(EXAMPLES, perturber(), ledger(tmp_path))
    texts = [{(p.question, p.choices) for p in released.batch.prompts} for released in (first, second)]
    assert texts[0] == texts[1]
    assert ledger(tmp_path).spent(EXAMPLES[0].release_key) == perturber().document.epsilon


def test_another_setting_is_another_release(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    for made in (perturber(), perturber(epsilon=1.0), perturber(length="exact")):
        release_prompts(EXAMPLES, made, book)
    one = perturber().document.epsilon
    assert book.spent(EXAMPLES[0].release_key) > 2 * one


def test_an_exhausted_example_is_left_out_and_the_run_goes_on(tmp_path: Path) -> None:
    limit = perturber().document.epsilon * 1.5
    release_prompts(EXAMPLES[:1], perturber(), ledger(tmp_path, limit))
    released = release_prompts(EXAMPLES, perturber(epsilon=1.9), ledger(tmp_path, limit))
    assert [e.question for e in released.examples] == ["What has Quuxington?"]
    assert released.refused == 1
    with pytest.raises(BudgetExhausted, match="max-epsilon-per-example"):
        release_prompts(EXAMPLES[:1], perturber(epsilon=1.9), ledger(tmp_path, limit))


def test_the_client_can_put_every_word_back(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    released = release_prompts(EXAMPLES, perturber(), book)
    for example in released.examples:
        payload = stored_payload(example, perturber(), book)
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
    public = Perturber(VOCABULARY, made.mechanism, shape, 1e-5, labels=("no", "yes"))
    book = ledger(tmp_path)
    released = release_prompts(yes_no, public, book)
    assert released.batch.prompts[0].choices == ("no", "yes")
    assert released.batch.privacy.tokens_per_document == 6
    assert book.spent(yes_no[0].release_key) == 6 * 2.0, "six words of the question, none of the labels"
    with pytest.raises(DataError, match="public-choices"):
        release_prompts(EXAMPLES[:1], public, book)


@pytest.mark.parametrize("delta", [0.0, 1e-5, 1e-3])
def test_the_run_cannot_lower_the_charge_by_its_delta(tmp_path: Path, delta: float) -> None:
    made = perturber(epsilon=0.01)
    book = ledger(tmp_path)
    release_prompts(EXAMPLES[:1], Perturber(VOCABULARY, made.mechanism, made.shape, delta), book)
    assert book.spent(EXAMPLES[0].release_key) == pytest.approx(12 * 0.01)


def test_equal_text_of_one_person_is_sent_once_and_of_two_persons_twice(tmp_path: Path) -> None:
    ann, bob = (Example("What is it?", ("a robin", "wheels"), "wheels", person=p) for p in ("Ann", "Bob"))
    book = ledger(tmp_path)
    assert len(release_prompts([ann, ann, bob], perturber(), book).batch.prompts) == 2
    assert book.spent_by_person("Ann") == book.spent_by_person("Bob") == perturber().document.epsilon
