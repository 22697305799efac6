"""An endpoint that is busy, fails, is slow or costs too much; and what may never be logged."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable

import pytest

from pdss_fl.errors import LLMUnavailable, MessageError
from pdss_fl.llm import endpoint
from pdss_fl.llm.budget import Budget
from tests.llm.helpers import make_batch
from tests.llm.openai_server import (
    KEY,
    SETTINGS,
    Call,
    Reply,
    failed,
    generator_at,
    number_of,
    numbered,
    said,
    scripted,
)

# Trying again, and giving up


def test_busy_and_failing_answers_are_asked_again_no_sooner_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_WAIT_SECONDS", 0.01)
    replies = [failed(429, Retry_After="1"), failed(503), failed(500), failed(408), said("at last")]
    with scripted(lambda _: replies.pop(0)) as server, generator_at(server.url) as generator:
        (answer,) = generator.generate(numbered(1), SETTINGS)
    assert answer.text == "at last"
    assert len(server.calls) == 5
    assert server.calls[1].at - server.calls[0].at >= 1.0


@pytest.mark.parametrize(
    ("status", "kind", "said_so"),
    [(429, "insufficient_quota", "is busy, or its quota is used up"), (503, "unavailable", "fails")],
)
def test_it_gives_up_in_the_end_and_says_why(status: int, kind: str, said_so: str) -> None:
    with (
        scripted(lambda _: failed(status, kind, Retry_After="0")) as server,
        generator_at(server.url) as generator,
        pytest.raises(LLMUnavailable, match=rf"{said_so} \(HTTP {status}, {kind}\)") as caught,
    ):
        list(generator.generate(numbered(1), SETTINGS))
    assert len(server.calls) == endpoint.ATTEMPTS
    assert "robin" not in caught.value.local


@pytest.mark.parametrize("after", ["86400", "Wed, 21 Oct 2099 07:28:00 GMT"])
def test_it_does_not_wait_longer_than_the_batch_may_take(after: str) -> None:
    with (
        scripted(lambda _: failed(429, Retry_After=after)) as server,
        generator_at(server.url) as generator,
        pytest.raises(LLMUnavailable, match="busy"),
    ):
        list(generator.generate(numbered(1), SETTINGS))
    assert len(server.calls) == 1


@pytest.mark.parametrize(
    ("status", "kind", "error", "words"),
    [
        (302, "", LLMUnavailable, "redirects, which is not followed"),
        (403, "forbidden", LLMUnavailable, r"refuses the API key \(HTTP 403, forbidden\)"),
        (404, "not_found_error", LLMUnavailable, r"llm\.model"),
        (418, "what does a robin have", LLMUnavailable, r"refuses the request \(HTTP 418\)"),
        (400, "context_length_exceeded", MessageError, r"refuses a prompt \(HTTP 400, context_length_exceeded\)"),
        (422, "invalid", MessageError, "refuses a prompt"),
    ],
)
def test_a_refusal_is_not_repeated_and_names_the_remedy(
    status: int, kind: str, error: type[Exception], words: str
) -> None:
    with (
        scripted(lambda _: failed(status, kind, Location="http://127.0.0.1:1/")) as server,
        generator_at(server.url) as generator,
        pytest.raises(error, match=words) as caught,
    ):
        list(generator.generate(numbered(1), SETTINGS))
    assert len(server.calls) == 1
    assert "robin" not in str(caught.value)


def test_a_server_that_is_not_there_is_named_at_once_and_after_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_WAIT_SECONDS", 0.001)
    with generator_at("http://127.0.0.1:1/v1") as generator:
        for ask in (generator.check, lambda: list(generator.generate(numbered(1), SETTINGS))):
            with pytest.raises(LLMUnavailable, match=r"does not answer \(ConnectError\).*llm\.base-url"):
                ask()


def test_a_slow_answer_ends_with_the_timeout_and_what_came_before_is_kept() -> None:
    def script(call: Call) -> Reply:
        return Reply(said("quick").content, seconds=60.0 if number_of(call) == 7 else 0.0)

    seen = []
    with scripted(script) as server, generator_at(server.url, timeout=1.0) as generator:
        with pytest.raises(LLMUnavailable, match=r"8 prompts within llm\.timeout = 1 s"):
            seen.extend(a.ordinal for a in generator.generate(numbered(8), SETTINGS))
        again = [a.ordinal for a in generator.generate(numbered(7), SETTINGS)]
    assert again == list(range(7))
    assert len(server.calls) == 8


def test_a_dropped_connection_is_tried_again_and_counted_as_paid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_WAIT_SECONDS", 0.01)
    replies = [Reply(b"{", headers={"Content-Length": "100", "Connection": "close"}), said("whole")]
    budget = Budget()
    with scripted(lambda _: replies.pop(0)) as server, generator_at(server.url, budget=budget) as generator:
        assert [a.text for a in generator.generate(numbered(1), SETTINGS)] == ["whole"]
    assert budget.written == 12 + 7


# Cancelling


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20.0
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_cancelling_cuts_off_what_is_under_way() -> None:
    cancelled = threading.Event()

    def script(call: Call) -> Reply:
        if number_of(call) == 3:
            cancelled.set()
        return Reply(said("late").content, seconds=0.0 if number_of(call) < 3 else 60.0)

    with scripted(script) as server, generator_at(server.url, concurrency=4) as generator:
        answers = list(generator.generate(numbered(40), SETTINGS, cancelled.is_set))
        assert len(answers) <= 3
        wait_until(lambda: server.under_way == 0)
        assert 1 <= server.cut_off <= 4
        assert len(server.calls) <= 7


def test_a_reader_that_goes_away_cuts_off_what_is_under_way() -> None:
    def script(call: Call) -> Reply:
        return Reply(said("ok").content, seconds=0.0 if number_of(call) == 0 else 60.0)

    with scripted(script) as server, generator_at(server.url, concurrency=2) as generator:
        answers = generator.generate(numbered(40), SETTINGS)
        assert next(answers).ordinal == 0
        del answers
        gc.collect()
        wait_until(lambda: server.under_way == 0)
        assert 1 <= server.cut_off <= 2
        assert len(server.calls) <= 4


def test_closing_ends_those_who_still_wait() -> None:
    with scripted(lambda _: Reply(b"", seconds=60.0)) as server, generator_at(server.url) as generator:
        waiting = threading.Thread(target=lambda: (wait_until(lambda: server.under_way == 1), generator.close()))
        waiting.start()
        with pytest.raises(LLMUnavailable, match="closed while it was asked"):
            list(generator.generate(numbered(1), SETTINGS))
        waiting.join()


# Money


def test_a_cap_on_tokens_stops_before_it_is_exceeded_and_keeps_what_came(caplog: pytest.LogCaptureFixture) -> None:
    budget = Budget(max_tokens=1_500)
    with scripted(lambda _: said("ok")) as server, generator_at(server.url, budget=budget) as generator:
        answers = list(generator.generate(numbered(100), SETTINGS))
        spent = budget.read + budget.written
        with pytest.raises(LLMUnavailable, match=r"llm\.max-run-tokens = 1500 would be exceeded"):
            list(generator.generate(make_batch(1), SETTINGS))
    assert sorted(a.ordinal for a in answers) == list(range(100))
    written = [a for a in answers if a.text]
    assert 0 < len(written) == len(server.calls) < 100
    assert 1_000 - 107 < spent == 107 * len(written) <= 1_500
    assert {(a.text, a.tokens) for a in answers} == {("ok", 7), ("", 0)}
    (line,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "llm.max-run-tokens = 1500" in line
    assert f"{len(written)} of 100 prompts were answered" in line


def test_a_cap_on_money_stops_before_it_is_exceeded() -> None:
    budget = Budget(max_cost=0.01, input_price=2.0, output_price=500.0)
    with scripted(lambda _: said("ok")) as server, generator_at(server.url, budget=budget) as generator:
        assert len(list(generator.generate(numbered(100), SETTINGS))) == 100
        with pytest.raises(LLMUnavailable, match=r"llm\.max-run-cost = 0\.01 would be exceeded.*at a cost of 0\.00"):
            list(generator.generate(make_batch(1), SETTINGS))
    each = (100 * 2.0 + 7 * 500.0) / 1_000_000
    assert 1 <= len(server.calls) <= 0.01 / each


# Nothing leaks


def test_neither_key_nor_prompt_is_logged_at_any_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "pdss_fl")  # whatever a command set before in this process
    replies = [failed(429, Retry_After="0"), said("ok"), failed(400)]
    with scripted(lambda _: replies.pop(0)) as server, generator_at(server.url) as generator:
        list(generator.generate(numbered(1), SETTINGS))
        with pytest.raises(MessageError):
            list(generator.generate(make_batch(1), SETTINGS))
    assert "LLM endpoint, so far: 100 tokens read and 7 written" in caplog.text
    for secret in (KEY, "number 0", "robin"):
        assert secret not in caplog.text
