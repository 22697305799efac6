"""Rewritten prompts under a node's policy and ledger: what is allowed, charged, stated and sent."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pdss_fl.audit_report.claims import measure_claim
from pdss_fl.data.example import Example
from pdss_fl.data.prompts import PromptShape
from pdss_fl.errors import BudgetExhausted, PolicyRefusal
from pdss_fl.messages import PrivacyStatement
from pdss_fl.policy import NodePolicy
from pdss_fl.privacy import Ledger, Vocabulary
from pdss_fl.privacy_report import guarantee_lines
from pdss_fl.release import Perturber, release_prompts
from pdss_fl.report import render_summary
from tests.privacy.rewriters import CLAIMING, NAMES, copier, make

WORDS = ["what", "does", "a", "robin", "have", "feathers", "wheels", "petals", "strings", "thing"]
VOCABULARY = Vocabulary(WORDS, torch.randn(10, 6, generator=torch.Generator().manual_seed(1)), fallback="thing")
EXAMPLES = [
    Example("What does a robin have?", ("feathers", "wheels"), "feathers"),
    Example("What has Quuxington?", ("a robin", "wheels", "4471993"), "wheels", person="Quuxington"),
    Example("Zürichsee", ("wheels",), "wheels"),
]
NODE = {
    "state-dir": "/state",
    "data-path": "/data/train.jsonl",
    "max-epsilon-per-token": 2.0,
    "max-epsilon-per-example": 100.0,
}


def perturber(name: str, epsilon: float = 2.0, length: str = "bucket", **given: Any) -> Perturber:
    mechanism = make(name, VOCABULARY, copier(len(VOCABULARY)), epsilon, neighbours=1, **given)
    return Perturber(VOCABULARY, mechanism, PromptShape(length, 6, 2, 3), 1e-5, np.random.default_rng(0))


def check(policy: NodePolicy, made: Perturber) -> None:
    """Refuse as a client does."""
    policy.check_mechanism(made.mechanism.name, made.mechanism.guarantee.kind, made.mechanism.guarantee.epsilon)


@pytest.mark.parametrize("name", CLAIMING)
def test_a_node_allows_what_has_a_guarantee_up_to_its_limit_for_each_word(name: str) -> None:
    policy = NodePolicy.from_node_config(NODE)
    check(policy, perturber(name))
    with pytest.raises(PolicyRefusal, match="max-epsilon-per-token = 2"):
        check(policy, perturber(name, 2.01))


def test_greedy_rewriting_needs_the_nodes_word_and_a_ledger_without_limit(tmp_path: Path) -> None:
    made = perturber("encoder-empirical")
    with pytest.raises(PolicyRefusal, match="'encoder-empirical' is not among this node's allowed-mechanisms"):
        check(NodePolicy.from_node_config(NODE), made)
    check(NodePolicy.from_node_config({**NODE, "allowed-mechanisms": "encoder-empirical"}), made)
    with pytest.raises(BudgetExhausted, match="max-epsilon-per-example"):
        release_prompts(EXAMPLES, made, Ledger(tmp_path / "a.jsonl", 1e300))
    sent = release_prompts(EXAMPLES, made, Ledger(tmp_path / "b.jsonl", math.inf))
    assert sent.batch.privacy.kind == "none"
    assert math.isinf(sent.batch.privacy.epsilon_per_document)


@pytest.mark.parametrize("name", CLAIMING)
def test_a_prompt_is_charged_all_its_words_and_sent_again_for_free(name: str, tmp_path: Path) -> None:
    made, book = perturber(name), Ledger(tmp_path / "ledger.jsonl", 100.0)
    first = release_prompts(EXAMPLES, made, book)
    for example in EXAMPLES:
        assert book.spent(example.release_key) == pytest.approx(12 * 2.0), "words of the public bound, at epsilon each"
    again = release_prompts(EXAMPLES, perturber(name), book)
    texts = [{(p.question, p.choices) for p in released.batch.prompts} for released in (first, again)]
    assert texts[0] == texts[1]
    assert book.spent_by_person("Quuxington") == pytest.approx(24.0)
    release_prompts(EXAMPLES, perturber(name, model="another"), book)
    assert book.spent_by_person("Quuxington") == pytest.approx(48.0), "another model is another release"
    with pytest.raises(BudgetExhausted):
        release_prompts(EXAMPLES, perturber(name), Ledger(tmp_path / "small.jsonl", 23.0))


@pytest.mark.parametrize("length", ["fixed", "bucket", "exact"])
@pytest.mark.parametrize("name", NAMES)
def test_lengths_are_those_of_the_public_shape_and_words_those_of_the_vocabulary(
    name: str, length: str, tmp_path: Path
) -> None:
    released = release_prompts(EXAMPLES, perturber(name, length=length), Ledger(tmp_path / "ledger.jsonl", math.inf))
    assert len(released.batch.prompts) == len(EXAMPLES)
    for prompt, example in zip(released.batch.prompts, released.examples, strict=True):
        question = len(VOCABULARY.split(example.question))
        expected = {"fixed": 6, "bucket": min(6, 1 << (question - 1).bit_length()), "exact": question}[length]
        assert len(prompt.question.split()) == expected
        assert set(" ".join((prompt.question, *prompt.choices)).split()) <= {*WORDS, "_"}


@pytest.mark.parametrize("name", CLAIMING)
def test_what_is_stated_says_whose_epsilon_it_is(name: str) -> None:
    made = perturber(name)
    statement = PrivacyStatement.parse(made.statement().serialize())
    assert (statement.epsilon_per_token, statement.tokens_per_document) == (2.0, 12)
    assert 2.0 < statement.epsilon_per_document <= 24.0
    assert statement.epsilon_per_document == pytest.approx(made.mechanism.compose(12, 1e-5).epsilon)
    assert "unit=document" in statement.parameters
    lines = "\n".join(guarantee_lines(made))
    assert "2 for each released word, between any two documents" in lines
    assert "no single private word has a smaller one" in lines
    summary = {
        "accuracy": {}, "privacy": json.loads(json.dumps(vars(statement))), "seconds": {},
        "llm": {"model": "", "prompts": 0, "tokens": 0},
    }  # fmt: skip
    assert "unit=document" in render_summary(summary)


@pytest.mark.parametrize("name", NAMES)
def test_the_audit_compares_documents(name: str) -> None:
    mechanism = perturber(name).mechanism
    documents = [torch.tensor([i, (3 * i) % 10, 7, 1]) for i in range(10)] + [torch.tensor([1, 2])]
    found = measure_claim(mechanism, 2.0, documents, 0)
    if name == "encoder-empirical":
        assert (found.holds, found.measured) == (None, "infinite")
        assert "nominal" in found.reason
    elif name == "encoder-composed":
        assert (found.holds, found.measured, found.tightness) == (True, "2", pytest.approx(1.0))
    else:
        assert found.holds is None, "some documents cannot confirm a claim for all"
        assert 0.5 < float(found.measured.removeprefix("at least ")) <= 2.0
        assert "10 documents" in found.reason


def test_the_audit_refutes_a_mechanism_that_claims_half_of_what_it_has() -> None:
    mechanism = perturber("encoder-top").mechanism

    class Half(type(mechanism)):  # type: ignore[misc]
        @property
        def guarantee(self) -> Any:
            return type(mechanism.guarantee)("pure-ldp", 1.0, 0.0, "document", "False.")

    wrong = Half(VOCABULARY, epsilon=2.0, neighbours=1, rewriter=copier(len(VOCABULARY)), model="test")
    assert measure_claim(wrong, 2.0, [torch.tensor([1, 2]), torch.tensor([3, 4])], 0).holds is False
