"""Rewriting: claims about whole documents, held against the exact law of every document that can be listed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from pdss_fl.errors import SettingError
from pdss_fl.privacy import DocumentGuarantee, PrivacyGuarantee, create_mechanism
from pdss_fl.privacy.audit import exact_epsilon
from pdss_fl.privacy.document_audit import audit_documents, every_document
from pdss_fl.privacy.parameters import check_parameters, settable_parameters
from pdss_fl.privacy.rewriting import EncoderComposed, Rewriter
from pdss_fl.privacy.statistical_audit import statistical_audit
from pdss_fl.testing import check_mechanism
from tests.privacy.rewriters import CLAIMING, NAMES, copier, make, table, words


@pytest.mark.parametrize("name", NAMES)
def test_it_passes_the_kit(name: str) -> None:
    check_mechanism(lambda v: make(name, v, table(len(v)), neighbours=3))


@pytest.mark.parametrize("name", CLAIMING)
@pytest.mark.parametrize("epsilon", [0.1, 3.0, 60.0])
def test_all_documents_are_within_the_claim(name: str, epsilon: float) -> None:
    for rewriter in (table(4), copier(4)):
        for length in (1, 3):
            found = audit_documents(make(name, words(4), rewriter, epsilon, neighbours=1), length)
            assert found.holds, found.verdict
            assert found.claimed == pytest.approx(length * epsilon)
            assert found.documents == 4**length


@pytest.mark.parametrize("name", ["encoder-top", "encoder-composed"])
def test_the_claim_is_tight_where_two_documents_differ_at_every_place(name: str) -> None:
    found = audit_documents(make(name, words(5), copier(5), neighbours=1), 3)
    assert found.epsilon == pytest.approx(6.0, abs=1e-9)
    first, second, released = found.worst
    assert torch.equal(first, released)
    assert (first != second).all()


@pytest.mark.parametrize("name", CLAIMING)
def test_a_claim_of_half_of_it_is_caught(name: str) -> None:
    honest = type(make(name, words(4), copier(4)))

    class Half(honest):  # type: ignore[valid-type, misc]
        @property
        def guarantee(self) -> PrivacyGuarantee:
            return PrivacyGuarantee("pure-ldp", self.epsilon / 2 - 0.1, 0.0, "document", "False.")

    wrong = Half(words(9), epsilon=2.0, neighbours=1, rewriter=copier(9), model="test")
    assert not audit_documents(wrong, 2).holds
    with pytest.raises(AssertionError, match="claim epsilon"):
        check_mechanism(lambda v: Half(v, epsilon=2.0, neighbours=1, rewriter=copier(len(v)), model="test"))


def test_what_goes_through_the_staircase_is_not_worth_one_word() -> None:
    """The tempting claim: that a private word costs epsilon, as it does where words are replaced one by one."""

    class OneWord(EncoderComposed):
        def compose(self, tokens: int, delta: float) -> DocumentGuarantee:
            return DocumentGuarantee(self.epsilon, 0.0, tokens, "false")

    def first_word(documents: Tensor | None, prefixes: Tensor) -> Tensor:
        assert documents is not None
        return torch.eye(5)[documents[:, 0]]

    honest = make("encoder-composed", words(5), first_word, neighbours=1)
    wrong = OneWord(words(5), epsilon=2.0, neighbours=1, rewriter=first_word, model="test")
    one_apart = torch.tensor([[0, 3, 3], [1, 3, 3]])
    assert audit_documents(honest, 3, one_apart).epsilon == pytest.approx(6.0), "one word changes all three"
    assert audit_documents(honest, 3, one_apart).holds
    assert not audit_documents(wrong, 3, one_apart).holds


@settings(max_examples=40)
@given(st.sampled_from(CLAIMING[:3]), st.floats(1e-3, 30), st.integers(1, 12), st.floats(0, 60), st.integers(0, 99))
def test_after_every_prefix_any_two_documents_are_within_epsilon(
    name: str, epsilon: float, k: int, scale: float, seed: int
) -> None:
    mechanism: Any = make(name, words(12), table(12, scale, seed), epsilon, neighbours=k)
    documents, prefix = every_document(12, 2), torch.tensor([[seed % 12, 5]]).expand(144, 2)
    law = mechanism.log_prob_given(documents, prefix)
    torch.testing.assert_close(law.exp().sum(dim=1), torch.ones(144, dtype=torch.float64), rtol=0, atol=1e-9)
    assert exact_epsilon(law) <= epsilon + 1e-12, "not even by rounding"


@pytest.mark.parametrize("name", CLAIMING)
def test_samples_do_not_refute_the_claim(name: str) -> None:
    """Documents whose law is too large to list."""
    mechanism = make(name, words(30), copier(30), 0.5, neighbours=3)
    pairs = [(torch.arange(6), torch.arange(6, 12)), (torch.zeros(6, dtype=torch.long), torch.arange(6))]
    with pytest.raises(ValueError, match="too many"):
        audit_documents(mechanism, 6)
    bound = statistical_audit(mechanism, pairs, 2000, 0.99, np.random.default_rng(0))
    assert bound.epsilon <= mechanism.compose(6, 0.0).epsilon


def test_samples_refute_every_claim_of_what_promises_nothing() -> None:
    mechanism = make("encoder-empirical", words(30), copier(30))
    assert mechanism.guarantee.kind == "none"
    assert mechanism.compose(6, 1e-5).epsilon == math.inf
    bound = statistical_audit(mechanism, [(torch.arange(6), torch.arange(6, 12))], 20_000, 0.99)
    assert bound.epsilon > 7
    found = audit_documents(make("encoder-empirical", words(4), copier(4)), 2)
    assert (found.epsilon, found.claimed) == (math.inf, math.inf)


def tiny_model(size: int) -> Rewriter:
    """A real causal model that reads a document, a mark and what was released, or the mark alone."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size + 1, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        initializer_range=1.0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()

    @torch.inference_mode()
    def rewriter(documents: Tensor | None, prefixes: Tensor) -> Tensor:
        mark = torch.full((len(prefixes), 1), size)
        read = torch.cat([*([] if documents is None else [documents]), mark, prefixes], dim=1)
        logits: Tensor = model(read).logits
        return logits[:, -1, :size]

    return rewriter


@pytest.mark.parametrize("name", NAMES)
def test_a_real_model_is_within_the_claim(name: str) -> None:
    mechanism = make(name, words(4), tiny_model(4), 3.0, neighbours=1)
    found = audit_documents(mechanism, 3)
    assert found.holds, found.verdict
    assert found.epsilon > 1, "the model does read the document"
    documents = [torch.tensor([0, 1, 2]), torch.tensor([3]), torch.empty(0, dtype=torch.long), torch.tensor([3, 3, 3])]
    released = mechanism.perturb_documents(documents, np.random.default_rng(0))
    assert [len(out) for out in released] == [3, 1, 0, 3]


@pytest.mark.parametrize("name", NAMES)
def test_documents_are_rewritten_each_by_itself_and_the_prefix_is_what_was_released(name: str) -> None:
    seen: list[tuple[Tensor | None, Tensor]] = []
    plain = table(8)

    def records(documents: Tensor | None, prefixes: Tensor) -> Tensor:
        seen.append((documents, prefixes))
        return plain(documents, prefixes)

    mechanism = make(name, words(8), records, 1.0)
    documents = [torch.tensor([1, 2, 3]), torch.tensor([4]), torch.tensor([5, 6, 7])]
    released = mechanism.perturb_documents(documents, np.random.default_rng(0))
    assert [len(out) for out in released] == [3, 1, 3]
    for read, prefixes in seen:
        alike = [0, 2] if (read is None and len(prefixes) == 2) or (read is not None and read.shape[1] == 3) else [1]
        if read is not None:
            assert torch.equal(read, torch.stack([documents[i] for i in alike]))
        if name != "encoder-composed":  # whose encoder reads what it wrote itself
            assert torch.equal(prefixes, torch.stack([released[i][: prefixes.shape[1]] for i in alike]))
    assert any(read is None for read, _ in seen) == (name == "encoder-difference-clipping")


@pytest.mark.parametrize("name", NAMES)
def test_the_release_names_all_it_depends_on_and_whose_epsilon_it_is(name: str) -> None:
    mechanism = make(name, words(8), table(8), model="encoder-7f3a")
    assert "model=encoder-7f3a" in mechanism.parameters
    assert "unit=document" in mechanism.parameters
    assert mechanism.guarantee.unit == "document"
    with pytest.raises(NotImplementedError, match="whole document"):
        mechanism.log_prob()
    assert {"rewriter", "model"}.isdisjoint(settable_parameters(type(mechanism)))
    with pytest.raises(SettingError, match="model"):
        check_parameters(name, {"model": "mine"})


@pytest.mark.parametrize("name", NAMES)
def test_without_a_rewriter_the_setting_that_gives_one_is_named(name: str) -> None:
    with pytest.raises(SettingError, match=r"encoder-decoder\.model"):
        create_mechanism(name, words(8), epsilon=1.0, neighbours=2)
    with pytest.raises(SettingError, match="model is empty"):
        make(name, words(8), table(8), model="")


@pytest.mark.parametrize(
    "logits", [torch.zeros(1, 7), torch.zeros(8), torch.full((1, 8), math.nan), torch.full((1, 8), -math.inf)]
)
@pytest.mark.parametrize("name", NAMES)
def test_a_rewriter_that_returns_something_else_is_an_error(name: str, logits: Tensor) -> None:
    with pytest.raises(ValueError, match="rewriter"):
        make(name, words(8), lambda _, __: logits).perturb(torch.tensor([1]))
