"""The generator over llama.cpp's own server: what is sent, and what may come back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from transformers import AutoTokenizer

from pdss_fl.bundled import bundled_model_path
from pdss_fl.errors import LLMUnavailable, MessageError
from pdss_fl.llm.budget import Budget
from pdss_fl.llm_settings import LLMSettings
from pdss_fl.messages import (
    MAX_RATIONALE_CHARS,
    Finish,
    GenerationSettings,
    PerturbedPrompt,
    PromptBatch,
    RationaleBatch,
)
from pdss_fl.server_app import load_generator
from tests.llm.helpers import STATEMENT, make_batch
from tests.llm.openai_server import (
    KEY,
    SETTINGS,
    SHORT,
    Call,
    Reply,
    generator_at,
    llama_server,
    number_of,
    numbered,
    said,
    scripted,
)

FORMS = pytest.mark.parametrize("form", ["chat", "completion"])


# llama.cpp's own server


@pytest.fixture(scope="module")
def llama() -> Iterator[str]:
    with llama_server() as url:
        yield url


@FORMS
def test_llama_cpp_reads_the_very_tokens_that_the_local_llm_reads(llama: str, form: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bundled_model_path())
    batch, budget = make_batch(5), Budget()
    with generator_at(llama, form=form, concurrency=4, budget=budget) as generator:
        answers = list(generator.generate(batch, SETTINGS))
    assert {a.ordinal for a in answers} == set(range(5))
    assert all(a.text and "\n" not in a.text and 1 <= a.tokens <= 12 for a in answers)
    texts = [SHORT.render(tokenizer, p) if form == "chat" else SHORT.plain(p) for p in batch.prompts]
    assert budget.read == sum(len(ids) for ids in tokenizer(texts)["input_ids"])
    assert budget.written == sum(a.tokens for a in answers)


def test_a_run_names_llama_cpp_and_the_environment_has_its_key(llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = LLMSettings(backend="openai", base_url=llama, model="smollm2")
    monkeypatch.delenv("PDSS_LLM_API_KEY", raising=False)
    with pytest.raises(LLMUnavailable, match=r"wants an API key.*HTTP 401.*PDSS_LLM_API_KEY"):
        load_generator(settings)
    monkeypatch.setenv("PDSS_LLM_API_KEY", KEY)
    monkeypatch.setenv("PDSS_LLM_BASE_URL", llama)
    generator = load_generator(settings)
    assert generator.info.model == "smollm2"
    generator.close()  # type: ignore[attr-defined]


def test_llama_cpp_refuses_a_wrong_key_and_the_error_does_not_show_it(llama: str) -> None:
    with generator_at(llama, key="sk-another") as generator:
        for ask in (generator.check, lambda: list(generator.generate(numbered(1), SETTINGS))):
            with pytest.raises(LLMUnavailable, match=r"refuses the API key.*PDSS_LLM_API_KEY") as caught:
                ask()
            assert "sk-another" not in caught.value.local


def test_llama_cpp_refuses_a_prompt_beyond_its_context(llama: str) -> None:
    batch = PromptBatch((PerturbedPrompt(0, "robin " * 1500),), STATEMENT)
    with (
        generator_at(llama) as generator,
        pytest.raises(MessageError, match=r"HTTP 400, exceed_context_size_error.*llm\.max-new-tokens") as caught,
    ):
        list(generator.generate(batch, SETTINGS))
    assert "robin" not in caught.value.local


# What is sent


@FORMS
def test_a_request_is_greedy_bounded_and_carries_nothing_else_of_a_prompt(form: str) -> None:
    settings = GenerationSettings(5, ("\n", "a", "b", "c", "d"))
    with scripted(lambda _: said("ok")) as server, generator_at(server.url, form=form) as generator:
        list(generator.generate(numbered(1), settings))
    (call,) = server.calls
    assert call.key == f"Bearer {KEY}"
    fields = {"model": "smollm2", "temperature": 0, "stream": False, "max_tokens": 5, "stop": ["\n", "a", "b", "c"]}
    prompt = PerturbedPrompt(0, "number 0 of them")
    asked = {"messages": SHORT.messages(prompt)} if form == "chat" else {"prompt": SHORT.plain(prompt)}
    assert call.body == fields | asked
    assert call.path == ("/v1/chat/completions" if form == "chat" else "/v1/completions")


def test_answers_keep_their_ordinals_however_they_come() -> None:
    def script(call: Call) -> Reply:
        reply = said(f"answer {number_of(call)}")
        reply.seconds = 0.003 * (number_of(call) * 7 % 11)
        return reply

    with scripted(script) as server, generator_at(server.url, concurrency=6) as generator:
        answers = list(generator.generate(numbered(60), SETTINGS))
    assert sorted((a.ordinal, a.text) for a in answers) == [(i, f"answer {i}") for i in range(60)]
    assert [a.ordinal for a in answers] != list(range(60))
    assert 2 <= server.most_under_way <= 6


def test_concurrent_callers_share_one_bound_and_get_their_own_answers() -> None:
    def script(call: Call) -> Reply:
        return Reply(said(f"answer {number_of(call)}").content, seconds=0.01)

    found: dict[int, list[str]] = {}
    with scripted(script) as server, generator_at(server.url, concurrency=3) as generator:

        def ask(caller: int) -> None:
            batch = PromptBatch((PerturbedPrompt(0, f"number {caller} of them"),), STATEMENT)
            found[caller] = [a.text for a in generator.generate(batch, SETTINGS)]

        callers = [threading.Thread(target=ask, args=(i,)) for i in range(12)]
        for thread in callers:
            thread.start()
        for thread in callers:
            thread.join()
    assert found == {i: [f"answer {i}"] for i in range(12)}
    assert server.most_under_way <= 3


def test_what_was_answered_is_not_asked_again_except_for_another_tenant() -> None:
    same = PromptBatch(tuple(PerturbedPrompt(i, "number 1 of them") for i in range(3)), STATEMENT)
    with scripted(lambda _: said("ok")) as server, generator_at(server.url) as generator:
        assert {a.ordinal for a in generator.generate(same, SETTINGS)} == {0, 1, 2}
        assert len(list(generator.generate(same, SETTINGS))) == 3
        assert len(server.calls) == 1
        list(generator.generate(same, SETTINGS, tenant="other"))
        list(generator.generate(same, GenerationSettings(13), tenant="other"))
    assert len(server.calls) == 3


# What comes back is not trusted


@FORMS
@pytest.mark.parametrize(
    ("text", "finish", "expected", "reason"),
    [
        ("  ice is cold. \n more", "stop", "ice is cold.", Finish.STOP),
        ("\n ice is", "length", "ice is", Finish.LENGTH),
        ("ice\nmore", "length", "ice", Finish.STOP),
        ("a\x1b[31mred\x00", "stop", "a [31mred", Finish.STOP),
        ("x" * 50_000, None, "x" * MAX_RATIONALE_CHARS, Finish.STOP),
        ("lone \ud800 half", 7, "lone   half", Finish.STOP),
        ("", "content_filter", "", Finish.STOP),
    ],
)
def test_a_text_is_cut_cleaned_and_can_travel(form: str, text: str, finish: Any, expected: str, reason: Finish) -> None:
    with scripted(lambda _: said(text, finish)) as server, generator_at(server.url, form=form) as generator:
        (answer,) = generator.generate(numbered(1), SETTINGS)
    assert (answer.text, answer.finish) == (expected, reason)
    assert RationaleBatch.parse(RationaleBatch((answer,), "m").serialize(), 1).rationales == (answer,)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "no JSON"),
        (b"<html>hello</html>", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[]", "no choices"),
        (b"{}", "no choices"),
        (b'{"choices": []}', "no choices"),
        (b'{"choices": {"0": 1}}', "no choices"),
        (b'{"choices": [{"message": {"content": 5}}]}', "no chat text"),
        (b'{"choices": [{"text": "completion"}]}', "no chat text"),
        (b'{"choices": [{"message": {"content": "' + b"x" * 2**21 + b'"}}]}', "longer than 1048576 bytes"),
    ],
)
def test_an_answer_that_is_none_ends_the_batch_by_name_and_counts_as_paid(content: bytes, problem: str) -> None:
    budget = Budget()
    with (
        scripted(lambda _: Reply(content)) as server,
        generator_at(server.url, budget=budget) as generator,
        pytest.raises(LLMUnavailable, match=rf"{problem}.*llm\.endpoint-form"),
    ):
        list(generator.generate(numbered(1), SETTINGS))
    assert len(server.calls) == 1
    assert budget.written == SETTINGS.max_new_tokens
    assert budget.read > 100


def test_a_packed_answer_is_refused_before_it_is_unpacked() -> None:
    reply = Reply(b"\x1f\x8b" + b"0" * 100, headers={"Content-Encoding": "gzip"})
    with (
        scripted(lambda _: reply) as server,
        generator_at(server.url) as generator,
        pytest.raises(LLMUnavailable, match="packed"),
    ):
        list(generator.generate(numbered(1), SETTINGS))


@pytest.mark.parametrize(
    "usage", [[], {}, {"prompt_tokens": -1, "completion_tokens": "7"}, {"completion_tokens": True}]
)
def test_a_usage_that_is_none_counts_as_the_most_that_was_possible(usage: Any) -> None:
    budget = Budget()
    with scripted(lambda _: said("ok", usage=usage)) as server, generator_at(server.url, budget=budget) as generator:
        (answer,) = generator.generate(numbered(1), SETTINGS)
    assert (answer.tokens, budget.written) == (12, 12)
    assert budget.read > 100
