"""An LLM behind an address, as a generator of rationales; what comes from there is not trusted.

A connection that breaks, a server that restarts and one that is busy cost no rationale: the client asks
again, for the prompts without an answer only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from random import SystemRandom
from typing import Any, NoReturn

import grpc
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

from pdss_fl.errors import LLMUnavailable, MessageError
from pdss_fl.llm.protocol import never
from pdss_fl.llm.tls import ClientTls, open_channel
from pdss_fl.llm_settings import LLMSettings
from pdss_fl.messages import (
    SCHEMA_VERSION,
    GenerationSettings,
    PerturbedPrompt,
    PromptBatch,
    Rationale,
    ServerInfo,
    printable,
    rationale_from_proto,
)
from pdss_fl.proto import distillation_pb2 as pb
from pdss_fl.proto.distillation_pb2_grpc import RationaleServiceStub

INFO_SECONDS = 20.0
MAX_NAME_CHARS = 200
MIN_HINT_SECONDS, MAX_HINT_SECONDS = 0.1, 60.0
MAX_PAUSE_SECONDS = 10.0
_KEEPALIVE_MS = 20_000
_OPTIONS = [
    ("grpc.keepalive_time_ms", _KEEPALIVE_MS),  # find out about a server that vanished without a word
    ("grpc.keepalive_timeout_ms", _KEEPALIVE_MS),
    ("grpc.http2.ping_timeout_ms", _KEEPALIVE_MS),
    ("grpc.http2.max_pings_without_data", 0),  # an LLM may think for longer than two of these
    # What is tried again here is to be tried on the network, and not to be answered from a memory of the last try.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_retries", 0),
]


class RemoteGenerator:
    """Asks a ``pdss serve`` for rationales; a ``RationaleGenerator`` for any number of threads.

    Parameters
    ----------
    address : str
        ``host:port``.
    timeout : float (default: 1800.0)
        Seconds that one batch may take, with all attempts: what ``llm.timeout`` means everywhere.
    tls : ClientTls | None (default: None)
        Plain text if not given, which needs ``insecure`` for another machine.
    insecure : bool (default: False)
        Allow plain text to another machine; never with a token.
    token : Callable[[], str] | None (default: None)
        Gives the bearer token of a call, asked anew for each.
    retries : int (default: 40)
        How often in a row a broken connection may bring nothing before the batch is given up. The pauses
        grow to ten seconds at most, so a server may well be away for a minute or two. One that says that it
        is busy, loading or stopping is asked again until the timeout.
    backoff : float (default: 0.5)
        Seconds of the first pause at most.

    Raises
    ------
    SettingError
        See ``open_channel``.
    """

    def __init__(
        self,
        address: str,
        timeout: float = LLMSettings().timeout,
        *,
        tls: ClientTls | None = None,
        insecure: bool = False,
        token: Callable[[], str] | None = None,
        retries: int = 40,
        backoff: float = 0.5,
    ) -> None:
        self._address, self._timeout, self._token, self._retries = address, timeout, token, retries
        self._pause = wait_random_exponential(multiplier=backoff, max=MAX_PAUSE_SECONDS)
        self._channel = open_channel(address, tls, insecure=insecure, has_token=token is not None, options=_OPTIONS)
        self._stub = RationaleServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Close the connection; calls under way are cancelled."""
        self._channel.close()

    @cached_property
    def info(self) -> ServerInfo:
        """What the server says it is, asked once; one that is loading is waited for.

        Raises
        ------
        MessageError
            If it speaks another schema version.
        LLMUnavailable
            If it cannot be reached.
        """
        deadline = time.monotonic() + self._timeout
        for attempt in self._attempts(lambda: True, deadline):
            with attempt:
                found = self._ask_info(deadline)
        if found.schema_version != SCHEMA_VERSION:
            raise MessageError(
                f"the LLM server has schema version {found.schema_version}; this side speaks "
                f"{SCHEMA_VERSION}: install the same release of pdss-fl on both sides"
            )
        return ServerInfo(
            model=printable(found.model, MAX_NAME_CHARS),
            version=printable(found.version, MAX_NAME_CHARS),
            dtype=printable(found.dtype, MAX_NAME_CHARS),
            max_prompts=found.max_prompts,
            max_request_bytes=found.max_request_bytes,
            max_new_tokens=found.max_new_tokens,
        )

    def generate(
        self,
        batch: PromptBatch,
        settings: GenerationSettings,
        is_cancelled: Callable[[], bool] = never,
        tenant: str = "",
    ) -> Iterator[Rationale]:
        """Yield one rationale a prompt as they arrive; see ``RationaleGenerator.generate``.

        ``tenant`` is not sent: the server takes it from the token.

        Raises
        ------
        MessageError
            If the batch exceeds the server's limits or is refused by it, or if what comes back has an
            ordinal that is missing, repeated or was never sent.
        LLMUnavailable
            If the server cannot be reached, stays too busy, fails or takes longer than the timeout.
        """
        size = pb.GenerateRationalesRequest(batch=batch.to_proto(), settings=settings.to_proto()).ByteSize()
        self._check_limits(len(batch.prompts), size)
        return self._resume(_Unanswered(batch), settings, is_cancelled)

    def _check_limits(self, prompts: int, size: int) -> None:
        if prompts > self.info.max_prompts or size > self.info.max_request_bytes:
            raise MessageError(
                f"a batch of {prompts} prompts and {size} bytes exceeds the LLM server's limits of "
                f"{self.info.max_prompts} prompts and {self.info.max_request_bytes} bytes; send fewer "
                "examples a round (raise num-server-rounds)"
            )

    def _resume(
        self, unanswered: _Unanswered, settings: GenerationSettings, is_cancelled: Callable[[], bool]
    ) -> Iterator[Rationale]:
        """Ask until every prompt is answered, each time for those that are left."""
        deadline = time.monotonic() + self._timeout
        for attempt in self._attempts(lambda: unanswered.failures > self._retries, deadline):
            with attempt:
                yield from self._ask(unanswered, settings, deadline, is_cancelled)

    def _ask(
        self, unanswered: _Unanswered, settings: GenerationSettings, deadline: float, is_cancelled: Callable[[], bool]
    ) -> Iterator[Rationale]:
        part = unanswered.batch()
        request = pb.GenerateRationalesRequest(batch=part.to_proto(), settings=settings.to_proto())
        call = self._stub.GenerateRationales(request, timeout=deadline - time.monotonic(), metadata=self._metadata())
        owners = dict(enumerate(unanswered.prompts))
        try:
            for response in call:
                if is_cancelled():
                    return
                rationale = rationale_from_proto(response.rationale)
                owner = owners.pop(rationale.ordinal, None)
                if owner is None:
                    raise MessageError(
                        f"the LLM server answered ordinal {rationale.ordinal}, which was answered before "
                        f"or is not one of 0 to {len(part.prompts) - 1}"
                    )
                unanswered.answered(owner)
                yield replace(rationale, ordinal=owner)
        except grpc.RpcError as error:
            if not owners:
                return  # everything is here; how the call ended makes no difference
            if (hint := _hint(error)) is None:
                unanswered.failures += 1
            self._raise(error, hint)
        finally:
            call.cancel()
        if owners:
            raise MessageError(f"the LLM server left {len(owners)} of {len(part.prompts)} prompts without a rationale")

    def _ask_info(self, deadline: float) -> pb.ServerInfo:
        left = min(INFO_SECONDS, deadline - time.monotonic())
        try:
            request = pb.GetServerInfoRequest(schema_version=SCHEMA_VERSION)
            found: pb.ServerInfo = self._stub.GetServerInfo(request, timeout=left, metadata=self._metadata())
        except grpc.RpcError as error:
            self._raise(error, _hint(error))
        return found

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self._token()}"),) if self._token else ()

    def _attempts(self, is_lost: Callable[[], bool], deadline: float) -> Retrying:
        """Return attempts at what raises ``_AskAgain``: with a hint always, without one until it is lost.

        None of them begins after the deadline, and no pause ends after it.
        """

        def is_enough(state: RetryCallState) -> bool:
            error = state.outcome.exception() if state.outcome else None
            hinted = isinstance(error, _AskAgain) and error.hint is not None
            return (not hinted and is_lost()) or time.monotonic() + state.upcoming_sleep >= deadline

        def pause(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            hint = error.hint if isinstance(error, _AskAgain) else None
            # Clients that were sent away together do not come back together.
            return self._pause(state) if hint is None else hint * SystemRandom().uniform(1.0, 1.5)

        return Retrying(retry=retry_if_exception_type(_AskAgain), stop=is_enough, wait=pause, reraise=True)

    def _raise(self, error: grpc.RpcError, hint: float | None) -> NoReturn:
        code = error.code()
        details = printable(error.details() or "", MAX_NAME_CHARS)
        if code == grpc.StatusCode.INVALID_ARGUMENT:
            raise MessageError("the LLM server refused the request", private=details) from None
        problem, remedy = _PROBLEMS.get(code, (f"failed with {code.name}", "see the log of `pdss serve` there"))
        text = f"llm.address = {self._address!r} {problem}; {remedy}"
        if hint is not None or code == grpc.StatusCode.UNAVAILABLE:
            raise _AskAgain(text, details, hint) from None
        raise LLMUnavailable(text, private=details) from None


class _Unanswered:
    """The prompts without a rationale, by the caller's ordinal, and how often in a row nothing came."""

    def __init__(self, batch: PromptBatch) -> None:
        self.prompts: dict[int, PerturbedPrompt] = {p.ordinal: p for p in batch.prompts}
        self.failures = 0
        self._privacy = batch.privacy

    def batch(self) -> PromptBatch:
        """Return what is left as a batch with ordinals of its own, in the order of ``prompts``."""
        return PromptBatch(tuple(replace(p, ordinal=i) for i, p in enumerate(self.prompts.values())), self._privacy)

    def answered(self, ordinal: int) -> None:
        """Take out a prompt; an answer starts the count of failures anew."""
        del self.prompts[ordinal]
        self.failures = 0


class _AskAgain(LLMUnavailable):
    """A call ended in a way that the next one may not; ``hint`` is the pause that the server asks for."""

    def __init__(self, public: str, private: str, hint: float | None) -> None:
        super().__init__(public, private)
        self.hint = hint


_PROBLEMS = {
    grpc.StatusCode.UNAVAILABLE: (
        "does not answer",
        "start `pdss serve` there, or set llm.address to where it runs; with TLS, compare the CA with the "
        "server's certificate and its names",
    ),
    grpc.StatusCode.DEADLINE_EXCEEDED: (
        "did not answer in time",
        "raise llm.timeout, or send fewer examples",
    ),
    grpc.StatusCode.RESOURCE_EXHAUSTED: ("is busy, or refuses a request of this size", "try again later"),
    grpc.StatusCode.UNIMPLEMENTED: ("is not an LLM server of pdss-fl", "set llm.address to a `pdss serve`"),
    grpc.StatusCode.UNAUTHENTICATED: (
        "does not accept the token of this run",
        "give the ServerApp the server's key file (PDSS_TOKEN_KEY), and compare the clocks and llm.token-lifetime",
    ),
    grpc.StatusCode.PERMISSION_DENIED: (
        "does not let this run generate",
        "the token is for something else: compare PDSS_TOKEN_KEY with the server's --token-key",
    ),
}


def _hint(error: grpc.RpcError) -> float | None:
    """Return the seconds after which the server wants to be asked again, if it says so."""
    trailing: Any = error.trailing_metadata() or ()
    for key, value in trailing:
        if key == "grpc-retry-pushback-ms" and str(value).isdecimal():
            return min(max(int(value) / 1000, MIN_HINT_SECONDS), MAX_HINT_SECONDS)
    return None
