"""Where prompts and keys may go, and how long the endpoint may ask to wait."""

from __future__ import annotations

import asyncio
import json
import time
from email.utils import formatdate
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdss_fl.config import RunSettings
from pdss_fl.errors import LLMUnavailable, SettingError
from pdss_fl.llm.budget import Budget, Tokens
from pdss_fl.llm.endpoint import BadStatus, Endpoint, api_key, check_base_url
from pdss_fl.llm.openai_wire import read_rationale, read_usage
from pdss_fl.messages import MAX_RATIONALE_CHARS, GenerationSettings, RationaleBatch, printable
from tests.llm.openai_server import KEY, failed, said, scripted

FIELDS = ("choices", "message", "content", "text", "finish_reason", "usage", "prompt_tokens", "completion_tokens")

OPENAI = "https://api.openai.com/v1"
ELSEWHERE = "https://llm.example.org/v1"


@pytest.mark.parametrize(
    "url", [OPENAI, "http://127.0.0.1:8000/v1", "http://[::1]:8000/v1", "http://localhost/v1", "https://10.0.0.7"]
)
def test_encrypted_and_loopback_addresses_are_taken(url: str) -> None:
    assert str(check_base_url(url)) == url


@pytest.mark.parametrize(
    "url", ["http://10.0.0.7:8000/v1", "http://llm.example.org/v1", "http://127.0.0.1.example.org"]
)
def test_plain_text_off_loopback_needs_to_be_called_insecure(url: str) -> None:
    with pytest.raises(SettingError, match=r"llm\.base-url = .*plain text.*llm\.insecure = true"):
        Endpoint(url, 1, environment={})
    assert check_base_url(url, insecure=True).host


@pytest.mark.parametrize(
    "url", ["ftp://a/v1", "localhost:8000/v1", "https://", "https://a:b:c/", "v1", "https://a:99999"]
)
def test_what_is_no_address_is_refused_by_name(url: str) -> None:
    with pytest.raises(SettingError, match=r"llm\.base-url = .*https://HOST/PATH"):
        check_base_url(url)


@pytest.mark.parametrize("url", [f"https://user:{KEY}@a/v1", f"https://a/v1?key={KEY}", f"https://a/v1#{KEY}"])
def test_a_secret_in_the_address_is_refused_before_anything_is_written_and_not_shown(url: str) -> None:
    for refuse in (lambda: check_base_url(url), lambda: RunSettings.from_run_config({"llm.base-url": url})):
        with pytest.raises(SettingError, match=r"llm\.base-url may not carry") as caught:
            refuse()
        assert KEY not in caught.value.local


def test_a_money_cap_without_prices_is_refused() -> None:
    with pytest.raises(SettingError, match=r"llm\.max-run-cost = 1\.0 has no effect without prices"):
        RunSettings.from_run_config({"llm.max-run-cost": 1.0})


@pytest.mark.parametrize(
    ("url", "environment", "expected"),
    [
        (ELSEWHERE, {}, ""),
        (ELSEWHERE, {"PDSS_LLM_API_KEY": " a \n", "PDSS_LLM_BASE_URL": ELSEWHERE}, "a"),
        (OPENAI, {"OPENAI_API_KEY": "b"}, "b"),
        (OPENAI, {"PDSS_LLM_API_KEY": "a", "PDSS_LLM_BASE_URL": OPENAI, "OPENAI_API_KEY": "b"}, "a"),
        (ELSEWHERE, {"OPENAI_API_KEY": "b"}, ""),
        ("https://api.openai.com:444/v1", {"OPENAI_API_KEY": "b"}, ""),
        (ELSEWHERE, {"OPENAI_API_KEY": "b", "OPENAI_BASE_URL": ELSEWHERE}, "b"),
        (OPENAI, {"OPENAI_API_KEY": "b", "OPENAI_BASE_URL": ELSEWHERE}, ""),
        (ELSEWHERE, {"PDSS_LLM_API_KEY": "a", "PDSS_LLM_BASE_URL": ELSEWHERE}, "a"),
        ("http://llm.example.org/v1", {"PDSS_LLM_API_KEY": "a", "PDSS_LLM_BASE_URL": ELSEWHERE}, ""),
        (OPENAI, {"PDSS_LLM_API_KEY": "a", "PDSS_LLM_BASE_URL": "nonsense://:::"}, ""),
    ],
)
def test_a_key_goes_only_where_it_belongs(url: str, environment: dict[str, str], expected: str) -> None:
    assert api_key(httpx.URL(url), environment) == expected


def test_a_key_without_an_address_is_sent_nowhere() -> None:
    with pytest.raises(SettingError, match="without PDSS_LLM_BASE_URL") as caught:
        Endpoint(ELSEWHERE, 1, environment={"PDSS_LLM_API_KEY": KEY})
    assert KEY not in caught.value.local


@pytest.mark.parametrize("key", ["two words", "line\nbreak", "schlüssel"])
def test_a_key_that_no_header_can_carry_is_named_and_not_shown(key: str) -> None:
    with pytest.raises(SettingError, match="PDSS_LLM_API_KEY in the environment") as caught:
        Endpoint(OPENAI, 1, environment={"PDSS_LLM_API_KEY": key, "PDSS_LLM_BASE_URL": OPENAI})
    assert key not in caught.value.local


@pytest.mark.parametrize(
    ("header", "low", "high"),
    [
        ("3", 3.0, 3.0),
        ("0.5", 0.5, 0.5),
        (formatdate(time.time() + 3600, usegmt=True), 3000.0, 3600.0),
        ("soon", -1, -1),
    ],
    ids=["whole", "broken", "date", "nonsense"],  # every process of a test run has to find the same names
)
def test_retry_after_is_read_as_seconds_or_as_a_date(header: str, low: float, high: float) -> None:
    async def ask(url: str) -> float | None:
        endpoint = Endpoint(url, 1, environment={})
        with pytest.raises(BadStatus) as caught:
            await endpoint.exchange("POST", "completions", b"{}")
        await endpoint.aclose()
        return caught.value.after

    with scripted(lambda _: failed(429, Retry_After=header)) as server:
        after = asyncio.run(ask(server.url))
    assert low <= (-1 if after is None else after) <= high


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=8,
)


@given(answer=_json, form=st.sampled_from(["chat", "completion"]))
def test_any_json_is_a_rationale_that_can_travel_or_a_clean_refusal(answer: Any, form: str) -> None:
    settings = GenerationSettings(12, ("\n", "", "So"))
    used = read_usage(answer, Tokens(50, 12))
    try:
        rationale = read_rationale(answer, form, settings, used.written)
    except LLMUnavailable:
        return
    assert RationaleBatch.parse(RationaleBatch((rationale,), "m").serialize(), 1).rationales == (rationale,)


@given(text=st.text(), form=st.sampled_from(["chat", "completion"]))
def test_a_proper_answer_with_any_text_is_read(text: str, form: str) -> None:
    answer = json.loads(said(text).content)
    rationale = read_rationale(answer, form, GenerationSettings(12), 7)
    assert rationale.text == printable(text.lstrip().split("\n")[0], MAX_RATIONALE_CHARS).rstrip()


_requests = st.lists(
    st.tuples(st.integers(1, 400), st.integers(1, 50), st.floats(0, 1), st.integers(0, 5)), max_size=30
)


@given(requests=_requests, limit=st.integers(1, 3_000))
def test_a_budget_is_never_exceeded_and_lets_through_what_fits(
    requests: list[tuple[int, int, float, int]], limit: int
) -> None:
    """Many requests at a time that use a part of what they hold back, in any order."""

    async def spend() -> tuple[int, int]:
        budget, refused = Budget(max_tokens=limit), 0

        async def one(read: int, written: int, part: float, turns: int) -> None:
            nonlocal refused
            most = Tokens(read, written)
            try:
                await budget.reserve(most)
            except LLMUnavailable:
                refused += 1
                assert budget.read + budget.written + read + written > limit
                return
            assert budget.read + budget.written <= limit
            for _ in range(turns):
                await asyncio.sleep(0)
            budget.settle(most, Tokens(int(read * part), int(written * part)))

        await asyncio.gather(*(one(*request) for request in requests))
        return budget.read + budget.written, refused

    spent, refused = asyncio.run(spend())
    assert spent <= limit
    if sum(read + written for read, written, *_ in requests) <= limit:
        assert refused == 0


ELSEWHERE = "https://10.0.0.7/v1"


@pytest.mark.parametrize(
    ("url", "environment", "allowed"),
    [
        ("http://127.0.0.1:8000/v1", {}, True),
        ("http://localhost:8000/v1", {}, True),
        (ELSEWHERE, {}, False),
        ("https://api.openai.com/v1", {}, False),
        ("https://api.openai.com/v1", {"OPENAI_API_KEY": "sk"}, True),
        (ELSEWHERE, {"OPENAI_API_KEY": "sk"}, False),
        (ELSEWHERE, {"OPENAI_API_KEY": "sk", "OPENAI_BASE_URL": ELSEWHERE}, True),
        (ELSEWHERE, {"PDSS_LLM_BASE_URL": ELSEWHERE}, True),
        (ELSEWHERE + "/", {"PDSS_LLM_BASE_URL": ELSEWHERE}, True),
        ("https://10.0.0.7/admin", {"PDSS_LLM_BASE_URL": ELSEWHERE}, False),
        ("https://10.0.0.7:8443/v1", {"PDSS_LLM_BASE_URL": ELSEWHERE}, False),
        ("http://127.0.0.1:8000/v1", {"PDSS_LLM_BASE_URL": ELSEWHERE}, False),
        ("https://api.openai.com/v1", {"PDSS_LLM_BASE_URL": ELSEWHERE, "OPENAI_API_KEY": "sk"}, False),
    ],
)
def test_a_run_names_only_what_the_owner_of_the_server_allows(
    url: str, environment: dict[str, str], allowed: bool
) -> None:
    if allowed:
        Endpoint(url, 1, environment=environment)
        return
    with pytest.raises(SettingError, match=r"llm\.base-url = .*PDSS_LLM_BASE_URL"):
        Endpoint(url, 1, insecure=True, environment=environment)
