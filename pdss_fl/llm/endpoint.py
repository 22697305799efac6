"""An OpenAI-compatible endpoint over HTTP: where it is, its key, one exchange, and when to try again.

The endpoint is not trusted: answers are bounded, redirects are not followed, and of an error's text only a
word is kept, since servers quote the prompt in it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    stop_before_delay,
    wait_random_exponential,
)

from pdss_fl.errors import LLMUnavailable, SettingError
from pdss_fl.llm.tls import is_loopback

MAX_ANSWER_BYTES = 2**20
CONNECT_SECONDS = 10.0
ATTEMPT_SECONDS = 300.0
ATTEMPTS = 8
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 30.0

KEY_NAMES = (
    ("PDSS_LLM_API_KEY", "PDSS_LLM_BASE_URL", ""),
    ("OPENAI_API_KEY", "OPENAI_BASE_URL", "https://api.openai.com"),
)
"""Variables with a key and with the server that it is for, and that server if the second is not set."""


class BadStatus(Exception):
    """An answer with another status than success.

    Parameters
    ----------
    status : int
        Of HTTP.
    kind : str
        The endpoint's own word for the problem, empty where it gives none.
    after : float | None
        Seconds to wait before the next attempt, where it says so.
    """

    def __init__(self, status: int, kind: str = "", after: float | None = None) -> None:
        super().__init__(f"HTTP {status}")
        self.status, self.kind, self.after = status, kind, after

    def __str__(self) -> str:
        return f"HTTP {self.status}, {self.kind}" if self.kind else f"HTTP {self.status}"


class Endpoint:
    """Exchanges JSON with an endpoint; its methods belong to one event loop.

    Parameters
    ----------
    base_url : str
        ``https://HOST/PATH``, most often with the path ``/v1``.
    connections : int
        Most requests at the same time.
    insecure : bool (default: False)
        Allow plain text outside loopback.
    environment : Mapping[str, str] | None (default: None)
        Where the key and the allowed address are looked for; that of this process if not given.

    Attributes
    ----------
    has_key : bool
        Whether a key is sent.

    Raises
    ------
    SettingError
        If the address is none or not allowed here, or would send prompts and key in plain text, or if the key
        cannot be sent.
    """

    def __init__(
        self, base_url: str, connections: int, insecure: bool = False, environment: Mapping[str, str] | None = None
    ) -> None:
        url = check_base_url(base_url, insecure)
        environment = os.environ if environment is None else environment
        key = api_key(url, environment)
        check_allowed(url, environment)
        self.has_key = bool(key)
        self._base = str(url).rstrip("/")
        self._client = httpx.AsyncClient(
            headers={
                "Accept-Encoding": "identity",  # so that a short answer cannot unpack into a long one
                **({"Authorization": f"Bearer {key}"} if key else {}),
            },
            timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            follow_redirects=False,
            trust_env=not is_loopback(url.host),  # no proxy stands between this machine and itself
        )

    async def exchange(self, method: str, path: str, body: bytes = b"", seconds: float = ATTEMPT_SECONDS) -> Any:
        """Send one request and return the JSON of its answer.

        Raises
        ------
        BadStatus
            If the status is not success.
        httpx.TransportError
            If the connection fails or the answer takes more than ``seconds``.
        LLMUnavailable
            If the answer is longer than ``MAX_ANSWER_BYTES``, packed, or no JSON.
        """
        headers = {"Content-Type": "application/json"} if body else {}
        try:
            async with (
                asyncio.timeout(seconds),
                self._client.stream(method, f"{self._base}/{path}", content=body, headers=headers) as response,
            ):
                content = await _read(response)
        except TimeoutError:
            raise httpx.ReadTimeout(f"no answer in {seconds:g} s") from None
        if not response.is_success:
            raise BadStatus(response.status_code, _kind(content), _retry_after(response.headers))
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise unreadable("no JSON") from None

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def check_base_url(base_url: str, insecure: bool = False) -> httpx.URL:
    """Return the address of an endpoint, if it is one that prompts may be sent to; else ``SettingError``."""
    if set("@?#") & set(base_url):
        raise SettingError(
            "llm.base-url may not carry a user name, password, query or fragment: give https://HOST/PATH"
        )
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL:
        url = httpx.URL()
    if url.scheme not in ("http", "https") or not url.host or not 0 < (url.port or 1) < 2**16:
        raise SettingError(f"llm.base-url = {base_url!r} is no address: give https://HOST/PATH")
    if url.scheme == "http" and not (insecure or is_loopback(url.host)):
        raise SettingError(
            f"llm.base-url = {base_url!r} would send prompts and the API key over the network in plain text; "
            "use https, or allow it with llm.insecure = true"
        )
    return url


def check_allowed(url: httpx.URL, environment: Mapping[str, str]) -> None:
    """Refuse an address that this machine's owner did not name; raises ``SettingError``.

    Whoever submits a run names its address, and this process would send requests there from inside its network. So
    ``PDSS_LLM_BASE_URL`` in the environment, where it is set, is the only address; else it has to be loopback, or
    the server that the environment's ``OPENAI_API_KEY`` is for.
    """
    (_, own, _), (openai_key, openai_url, openai) = KEY_NAMES
    if home := environment.get(own, "").strip():
        allowed = _same_server(url, home) and url.path.rstrip("/") == httpx.URL(home).path.rstrip("/")
    else:
        usual = environment.get(openai_url, "").strip() or openai
        has_key = bool(environment.get(openai_key, "").strip())
        allowed = is_loopback(url.host) or (has_key and _same_server(url, usual))
    if not allowed:
        raise SettingError(
            f"llm.base-url = {str(url)!r} is not where this ServerApp may send prompts: its owner has to set {own} in "
            "its environment to that address; without it only loopback is allowed"
        )


def api_key(url: httpx.URL, environment: Mapping[str, str]) -> str:
    """Return the key for an address, empty where there is none.

    It comes from this process's environment, since every node receives a run's settings. The run names the
    address, and whoever submits a run could name one of their own, so a key is sent only where it belongs:
    ``OPENAI_API_KEY`` to ``OPENAI_BASE_URL`` or else to OpenAI, ``PDSS_LLM_API_KEY`` to ``PDSS_LLM_BASE_URL``.

    Raises
    ------
    SettingError
        If a key does not say where it belongs, or has characters that no header can carry; names the
        variable, not the value.
    """
    for key_name, url_name, usual in KEY_NAMES:
        key, home = environment.get(key_name, "").strip(), environment.get(url_name, "").strip() or usual
        if key and not home:
            raise SettingError(
                f"{key_name} is set in the environment without {url_name}: set that to the address that the key is "
                "for, so that no run can have it sent elsewhere"
            )
        if not key or not _same_server(url, home):
            continue
        if not re.fullmatch(r"[\x21-\x7e]+", key):
            raise SettingError(f"{key_name} in the environment has characters that a key cannot have: set it again")
        return key
    return ""


def patiently(timeout: float) -> AsyncRetrying:
    """Return how requests are repeated: when the endpoint is busy, fails or is not reached, after a random wait.

    Parameters
    ----------
    timeout : float
        Seconds beyond which it is not worth waiting, also where the endpoint asks for it.
    """
    return AsyncRetrying(
        retry=retry_if_exception(_is_passing),
        wait=_wait,
        stop=stop_after_attempt(ATTEMPTS) | stop_before_delay(timeout),
        reraise=True,
    )


def unreadable(problem: str) -> LLMUnavailable:
    """Return the error for an answer that is not what the API says."""
    return LLMUnavailable(
        f"the LLM endpoint's answer cannot be used ({problem}); llm.base-url and llm.endpoint-form have to name "
        "an OpenAI-compatible endpoint"
    )


def _is_passing(error: BaseException) -> bool:
    if isinstance(error, BadStatus):
        return error.status in (408, 429) or (error.status >= 500 and error.status != 501)
    return isinstance(error, httpx.TransportError)


def _wait(state: RetryCallState) -> float:
    """Wait as long as the endpoint asks, and up to a quarter longer, so that not all come back at once."""
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, BadStatus) and error.after is not None:
        return error.after * random.uniform(1.0, 1.25)
    return wait_random_exponential(multiplier=FIRST_WAIT_SECONDS, max=LONGEST_WAIT_SECONDS)(state)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that ``Retry-After`` names, as a number or as a date (RFC 9110, 10.2.3)."""
    text = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text):
        return float(text)
    try:
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError):
        return None


async def _read(response: httpx.Response) -> bytes:
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise unreadable("packed, though that was not asked for")
    content = bytearray()
    async for piece in response.aiter_raw():
        content += piece
        if len(content) > MAX_ANSWER_BYTES:
            raise unreadable(f"longer than {MAX_ANSWER_BYTES} bytes")
    return bytes(content)


def _kind(content: bytes) -> str:
    """Return the word with which an error is named; not its message, which can quote the prompt."""
    try:
        error = json.loads(content)["error"]
        words = (error.get("code"), error.get("type"))
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return ""
    return next((w for w in words if isinstance(w, str) and re.fullmatch(r"[A-Za-z_]{1,48}", w)), "")


def _same_server(url: httpx.URL, home: str) -> bool:
    try:
        other = httpx.URL(home)
    except httpx.InvalidURL:
        return False
    return (url.scheme, url.host, url.port) == (other.scheme, other.host, other.port)
