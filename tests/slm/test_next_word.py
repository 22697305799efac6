"""A real causal model as the scorer of the next word, and the law of the contextual mechanism with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pdss_fl.errors import SettingError
from pdss_fl.privacy import BLANK, Vocabulary, create_mechanism
from pdss_fl.privacy.audit import exact_epsilon
from pdss_fl.slm.next_word import next_word

WORDS = ("robin", "feathers", "violin", "zebra", "strings", "saucepan", "horse", "wheels", "what", "has")
EPSILON = 3.0


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(WORDS, torch.randn(len(WORDS), 5, generator=torch.Generator().manual_seed(0)), blanks=2)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_words_are_scored_as_the_model_scores_them(
    family: str, make_pretrained: Callable[..., Path], vocabulary: Vocabulary
) -> None:
    directory = make_pretrained(family)
    score = next_word(str(directory), vocabulary.tokens, "privacy.embeddings")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(directory).eval(), AutoTokenizer.from_pretrained(directory)
    end = tokenizer.eos_token_id

    def pieces(i: int) -> list[int]:
        return [end] if vocabulary.tokens[i] == BLANK else tokenizer(" " + vocabulary.tokens[i]).input_ids

    def log_prob(read: list[int], then: list[int]) -> float:
        with torch.no_grad():
            rows = model(torch.tensor([read + then])).logits[0].log_softmax(-1)
        return sum(float(rows[len(read) - 1 + i, piece]) for i, piece in enumerate(then))

    for prefix in ([], [0], [8, 9, 3], [0, len(WORDS), 1]):
        read = [end, *(piece for i in prefix if i < len(WORDS) for piece in pieces(i))]
        expected = [
            log_prob(read, pieces(i)[:1]) + (log_prob(pieces(i)[:1], pieces(i)[1:]) if len(pieces(i)) > 1 else 0.0)
            for i in range(len(vocabulary))
        ]
        torch.testing.assert_close(score(prefix), torch.tensor(expected), atol=1e-4, rtol=1e-4)


def test_the_law_after_any_released_words_has_exactly_its_epsilon(
    make_pretrained: Callable[..., Path], vocabulary: Vocabulary
) -> None:
    score = next_word(str(make_pretrained("llama")), vocabulary.tokens, "privacy.embeddings")
    parameters = {"next_word": score, "model": "tiny", "weight": 1.0}
    mechanism = create_mechanism("contextual", vocabulary, epsilon=EPSILON, neighbours=2, **parameters)
    laws = [mechanism.log_prob_given(prefix) for prefix in ([], [3], [8, 9])]
    for law in laws:
        torch.testing.assert_close(law.exp().sum(dim=1), torch.ones(len(vocabulary), dtype=torch.float64))
        assert exact_epsilon(law) == pytest.approx(EPSILON, abs=1e-9)
        assert exact_epsilon(law) <= EPSILON + 1e-12
    assert not torch.equal(laws[0], laws[1]), "the words released before change the law"
    released = torch.stack(mechanism.perturb_documents([torch.tensor([8, 0])] * 4000, np.random.default_rng(0)))
    for first in (8, 9):
        second = released[released[:, 0] == first, 1]
        expected = mechanism.log_prob_given([first])[0].exp().numpy()
        found = np.bincount(second.numpy(), minlength=len(vocabulary)) / len(second)
        assert np.abs(found - expected).max() < 5 * np.sqrt(0.25 / len(second))


def test_a_model_that_cannot_be_read_is_named(tmp_path: Path, vocabulary: Vocabulary) -> None:
    with pytest.raises(SettingError, match=r"privacy\.embeddings = .*missing"):
        next_word(str(tmp_path / "missing"), vocabulary.tokens, "privacy.embeddings")
