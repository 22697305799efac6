"""Batches survive the trip, and whatever is not what the schema says is refused by name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdss_fl import messages as m
from pdss_fl.errors import MessageError
from pdss_fl.proto import distillation_pb2 as pb

STATEMENT = m.PrivacyStatement("staircase", "pure-ldp", 8.0, 120.5, 1e-5, 20, "basic composition", 0.3, "k=3", "ab")


def batch_of(*texts: str) -> m.PromptBatch:
    prompts = tuple(m.PerturbedPrompt(i, text, (text, "b")) for i, text in enumerate(texts))
    return m.PromptBatch(prompts, STATEMENT)


def answers_to(count: int) -> m.RationaleBatch:
    rows = tuple(m.Rationale(i, f"text {i}", m.Finish.STOP, 3) for i in range(count))
    return m.RationaleBatch(rows, "tiny")


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


@given(st.lists(TEXT, min_size=1, max_size=8))
def test_prompts_come_back_as_they_were_sent(texts: list[str]) -> None:
    batch = batch_of(*texts)
    assert m.PromptBatch.parse(batch.serialize()) == batch


def test_rationales_come_back_in_the_order_of_their_ordinals() -> None:
    batch = answers_to(5)
    shuffled = m.RationaleBatch(batch.rationales[::-1], batch.model)
    assert m.RationaleBatch.parse(shuffled.serialize(), 5) == batch


@pytest.mark.parametrize("data", [b"", b"\x00garbage", b"\xff" * 40])
def test_bytes_that_are_no_batch_are_refused(data: bytes) -> None:
    for parse in (m.PromptBatch.parse, lambda d: m.RationaleBatch.parse(d, 1)):
        with pytest.raises(MessageError):
            parse(data)


@given(st.integers(0, 10_000))
def test_a_truncated_batch_is_refused_or_has_lost_nothing(cut: int) -> None:
    whole = batch_of("a robin", "an oak", "a spoon")
    data = whole.serialize()[: cut % len(whole.serialize())]
    with pytest.raises(MessageError):
        m.PromptBatch.parse(data)


@given(st.binary(max_size=300))
def test_any_bytes_give_a_typed_error_or_a_valid_batch(data: bytes) -> None:
    try:
        batch = m.PromptBatch.parse(data)
    except MessageError:
        return
    assert [p.ordinal for p in batch.prompts] == list(range(len(batch.prompts)))


def test_another_schema_version_is_refused_with_the_remedy() -> None:
    message = batch_of("a robin").to_proto()
    message.schema_version = 2
    with pytest.raises(MessageError, match=r"schema version 2.*same release"):
        m.PromptBatch.parse(message.SerializeToString())


@pytest.mark.parametrize("ordinals", [[0, 0, 1], [0, 2], [1, 2], [0, 1, 2, 3], []])
def test_ordinals_that_do_not_fit_are_refused(ordinals: list[int]) -> None:
    rows = tuple(m.Rationale(i, "text", m.Finish.STOP, 1) for i in ordinals)
    with pytest.raises(MessageError):
        m.RationaleBatch.parse(m.RationaleBatch(rows, "tiny").serialize(), 3)


def test_another_clients_larger_batch_is_refused() -> None:
    with pytest.raises(MessageError, match="expected each of 0 to 2 once"):
        m.RationaleBatch.parse(answers_to(30_000).serialize(), 3)


def test_oversized_batches_are_refused_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    data = batch_of("word " * 100).serialize()
    monkeypatch.setattr(m, "MAX_BATCH_BYTES", 100)
    with pytest.raises(MessageError, match="at most 100 travel"):
        m.PromptBatch.parse(data)
    with pytest.raises(MessageError, match="num-server-rounds"):
        batch_of("word " * 100).serialize()


def test_too_many_prompts_choices_and_characters_are_refused() -> None:
    many = pb.PerturbedPromptBatch(schema_version=1, prompts=[pb.PerturbedPrompt(question="q")] * (m.MAX_PROMPTS + 1))
    with pytest.raises(MessageError, match="at most 20000 are accepted"):
        m.PromptBatch.from_proto(many)
    choices = m.PromptBatch((m.PerturbedPrompt(0, "q", ("c",) * 27),), STATEMENT)
    with pytest.raises(MessageError, match="27 choices"):
        m.PromptBatch.parse(choices.serialize())
    with pytest.raises(MessageError, match="8001 characters"):
        m.PromptBatch.parse(batch_of("x" * 8001).serialize())


def test_a_prompt_without_question_or_a_batch_without_statement_is_refused() -> None:
    with pytest.raises(MessageError, match="prompt 0 has no question"):
        m.PromptBatch.parse(m.PromptBatch((m.PerturbedPrompt(0, "", ()),), STATEMENT).serialize())
    message = batch_of("a robin").to_proto()
    message.ClearField("privacy")
    with pytest.raises(MessageError, match="no privacy statement"):
        m.PromptBatch.from_proto(message)


def test_a_statement_cannot_carry_control_characters_or_numbers_that_are_none() -> None:
    message = batch_of("a robin").to_proto()
    message.privacy.mechanism = "\x1b]0;x\x07" + "m" * 1000
    read = m.PromptBatch.from_proto(message).privacy
    assert read.mechanism.isprintable()
    assert len(read.mechanism) == m.MAX_STATEMENT_CHARS
    message.privacy.epsilon_per_token = float("nan")
    with pytest.raises(MessageError, match="number that is none"):
        m.PromptBatch.from_proto(message)


def test_no_refusal_quotes_the_content() -> None:
    secret = "canary4471"
    message = batch_of(secret * 2000).to_proto()
    with pytest.raises(MessageError) as refusal:
        m.PromptBatch.from_proto(message)
    assert secret not in str(refusal.value)
    assert secret not in refusal.value.local


def test_received_text_is_capped_and_printable() -> None:
    row = m.Rationale(0, "a\x1b[31mred\n" + "x" * 5000, m.Finish.LENGTH, 9)
    read = m.RationaleBatch.parse(m.RationaleBatch((row,), "tiny").serialize(), 1).rationales[0]
    assert len(read.text) == m.MAX_RATIONALE_CHARS
    assert read.text.startswith("a [31mred ")
    assert read.finish is m.Finish.LENGTH


def test_zero_new_tokens_are_refused() -> None:
    with pytest.raises(MessageError, match="0 new tokens"):
        m.GenerationSettings.from_proto(pb.GenerationSettings())
