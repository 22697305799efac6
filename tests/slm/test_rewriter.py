"""A trained encoder as a rewriter: shapes, finite scores, a law of words, and no mixing of rows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pdss_fl.privacy import BLANK
from pdss_fl.slm.encoder_decoder import MANIFEST, TEMPLATE_WORDS, WEIGHTS, file_sha256
from pdss_fl.slm.model import SlmSettings, create_slm
from pdss_fl.slm.rewriter import load_rewriter, rewriter_name
from tests.slm.seq2seq import FAMILIES, save_seq2seq

WORDS = ("robin", "trout", "feathers", "unheardof", BLANK, BLANK)
KNOWN = "robin trout feathers"


@pytest.fixture(params=["scratch", "llama", "t5", "bart"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, make_pretrained: Callable[..., Path]) -> str:
    model = request.param if request.param == "scratch" else str(tmp_path / "base")
    if request.param == "llama":
        model = str(make_pretrained("llama"))
    if request.param in FAMILIES:
        save_seq2seq(tmp_path / "base", request.param)
    slm = create_slm(SlmSettings(model, hidden_size=32, layers=1, max_tokens=64), [TEMPLATE_WORDS, KNOWN])
    slm.save(tmp_path)
    (tmp_path / MANIFEST).write_text(json.dumps({"weights-sha256": file_sha256(tmp_path / WEIGHTS)}))
    return str(tmp_path)


def test_scores_are_finite_for_documents_prefixes_and_none(folder: str) -> None:
    rewrite = load_rewriter(folder, WORDS, "test")
    documents = torch.tensor([[0, 2, 4], [1, 3, 5], [0, 2, 4]])
    for t in (0, 1, 3):
        scores = rewrite(documents, torch.zeros(3, t, dtype=torch.long))
        assert scores.shape == (3, len(WORDS))
        assert scores.dtype == torch.float32
        assert torch.isfinite(scores).all()
        assert torch.equal(scores[0], scores[2])
        public = rewrite(None, torch.zeros(2, t, dtype=torch.long))
        assert public.shape == (2, len(WORDS))
        assert torch.equal(public[0], public[1])
        assert not torch.equal(public[0], scores[0])


def test_scores_are_probabilities_over_those_of_no_knowledge(folder: str) -> None:
    scores = load_rewriter(folder, WORDS, "test")(torch.tensor([[0, 1]]), torch.tensor([[2]]))[0]
    shares = (scores - math.log(len(WORDS))).exp()
    assert 0 < shares.sum() <= 1 + 1e-5  # of all that the model could write
    assert scores[4] == scores[5]  # filling words are one thing


def test_filling_words_together_are_as_likely_as_one(folder: str) -> None:
    asked = torch.tensor([[0, 1]]), torch.tensor([[2]])
    two, one = (load_rewriter(folder, some, "test")(*asked)[0] - math.log(len(some)) for some in (WORDS, WORDS[:-1]))
    assert torch.allclose(two[4:].logsumexp(dim=0), one[4], atol=1e-4)


def test_a_row_depends_on_itself_alone(folder: str) -> None:
    rewrite = load_rewriter(folder, WORDS, "test")
    documents, prefixes = torch.tensor([[0, 2], [3, 3], [1, 4]]), torch.tensor([[3, 1], [0, 0], [2, 5]])
    together = rewrite(documents, prefixes)
    for i in range(3):
        alone = rewrite(documents[i : i + 1], prefixes[i : i + 1])
        assert torch.allclose(alone[0], together[i], atol=1e-4)


def test_its_name_follows_the_weights_and_the_words(folder: str) -> None:
    name = rewriter_name(folder, WORDS, "test")
    assert name == rewriter_name(folder, WORDS, "test")
    assert name != rewriter_name(folder, WORDS[:-1], "test")
    assert "/" not in name


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e38])
def test_weights_that_overflow_at_one_word_still_give_finite_scores(tmp_path: Path, bad: float) -> None:
    """Whoever made the model could else have a client fail, uncharged, if a prompt holds the word."""
    slm = create_slm(SlmSettings(hidden_size=32, layers=1, max_tokens=64), [TEMPLATE_WORDS, KNOWN])
    with torch.no_grad():
        slm.model.get_input_embeddings().weight[slm.encode_next("trout")[0]] = bad  # type: ignore[operator, index]
    slm.save(tmp_path)
    (tmp_path / MANIFEST).write_text(json.dumps({"weights-sha256": file_sha256(tmp_path / WEIGHTS)}))
    rewrite = load_rewriter(str(tmp_path), WORDS, "test")
    for prefixes in (torch.zeros(3, 0, dtype=torch.long), torch.tensor([[0], [1], [1]])):
        for documents in (torch.tensor([[0, 2], [1, 2], [0, 1]]), None):
            assert torch.isfinite(rewrite(documents, prefixes)).all()
