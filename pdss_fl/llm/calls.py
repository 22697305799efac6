"""The calls that a server is answering: how many there may be, how long, and how they end.

A call holds a place from the moment it is accepted until gRPC says that it is over. It ends early when
its client leaves, sends no request or reads nothing for a while, when it takes too long, and when the server stops.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue

import grpc

from pdss_fl.messages import MAX_BATCH_BYTES, MAX_PROMPTS, Rationale

RETRY_SECONDS = 2.0
_WATCH_SECONDS = 0.5


@dataclass(frozen=True)
class ServiceLimits:
    """What one server accepts.

    Parameters
    ----------
    max_requests : int (default: 64)
        Requests that may be under way or waiting at a time; more are refused with a hint to retry.
    max_requests_per_tenant : int (default: 8)
        The same for one tenant: a run's node, a client certificate, or, off loopback, an address without either.
    max_prompts : int (default: 20,000)
        Prompts of one request.
    max_prompt_tokens : int (default: 1,024)
        Tokens of one prompt without the instruction; words where the LLM's tokenizer is out of reach.
    max_request_bytes : int (default: 32 MiB)
        Bytes of one request.
    max_new_tokens : int (default: 512)
        Upper bound that is put on what a request asks for.
    max_seconds : float (default: 7,200)
        Seconds that one request may take, whatever deadline it has.
    stall_seconds : float (default: 60)
        Seconds for which a client may leave an answer unread, or not send its request.
    keepalive_seconds : float (default: 30)
        Silence after which a connection is probed; one that does not answer within as long again is closed.
    idle_seconds : float (default: 300)
        A connection without a call for so long is closed; a client opens another when it needs one.
    max_connections : int (default: 1,000)
        Connections at a time; more are closed at once.
    max_streams : int (default: 128)
        Calls at a time on one connection; more wait at the client.
    """

    max_requests: int = 64
    max_requests_per_tenant: int = 8
    max_prompts: int = MAX_PROMPTS
    max_prompt_tokens: int = 1024
    max_request_bytes: int = MAX_BATCH_BYTES
    max_new_tokens: int = 512
    max_seconds: float = 7200.0
    stall_seconds: float = 60.0
    keepalive_seconds: float = 30.0
    idle_seconds: float = 300.0
    max_connections: int = 1000
    max_streams: int = 128


class Refusal(Exception):
    """A call ends with this status; ``come_again`` adds the hint to retry. The text may leave the machine."""

    def __init__(self, code: grpc.StatusCode, text: str, come_again: bool = False) -> None:
        super().__init__(text)
        self.code, self.text, self.come_again = code, text, come_again


class Call:
    """One accepted call: what its LLM thread hands to the thread that sends.

    Attributes
    ----------
    over : threading.Event
        Set when nobody waits for answers any more.
    answers : SimpleQueue[Rationale | Exception | None]
        What is to be sent; ``None`` or an exception is the last.
    tenant : str
        Whose call it is.
    """

    def __init__(self, context: grpc.ServicerContext, tenant: str, limits: ServiceLimits) -> None:
        self.over = threading.Event()
        self.answers: SimpleQueue[Rationale | Exception | None] = SimpleQueue()
        self.tenant = tenant
        self._waits_since: float | None = None
        self._context, self._stall = context, limits.stall_seconds
        self._end_by = time.monotonic() + limits.max_seconds

    def end(self, reason: Exception | None = None) -> None:
        """Ask the LLM for no more, and let the sending thread finish, with an error if there is one."""
        self.over.set()
        self.answers.put(reason)

    @contextmanager
    def at_the_client(self) -> Iterator[None]:
        """Mark that nothing goes on until the client sends its request or reads an answer."""
        self._waits_since = time.monotonic()
        yield
        self._waits_since = None

    def cancel_if_late(self, now: float) -> None:
        """End a call whose time is up, or whose client has kept this side waiting for too long."""
        since = self._waits_since
        if now > self._end_by or (since is not None and now - since > self._stall):
            self._context.cancel()  # type: ignore[no-untyped-call]


class Calls:
    """All calls under way."""

    def __init__(self, limits: ServiceLimits) -> None:
        self._limits = limits
        self._changed = threading.Condition()
        self._open: set[Call] = set()
        self._tenants: Counter[str] = Counter()
        self._closing = False
        threading.Thread(target=self._watch, name="calls", daemon=True).start()

    def __len__(self) -> int:
        return len(self._open)

    def open(self, context: grpc.ServicerContext, tenant: str) -> Call:
        """Accept a call; it gives its place back when gRPC says that it is over.

        Raises
        ------
        Refusal
            If there is no place, in total or for this tenant, or if the server is stopping.
        """
        call = Call(context, tenant, self._limits)
        with self._changed:
            if self._closing:
                raise Refusal(grpc.StatusCode.UNAVAILABLE, "the server is stopping; ask again later", True)
            if len(self._open) >= self._limits.max_requests:
                raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many requests are waiting; retry later", True)
            if tenant and self._tenants[tenant] >= self._limits.max_requests_per_tenant:
                raise Refusal(
                    grpc.StatusCode.RESOURCE_EXHAUSTED, "too many requests of this run and node; retry later", True
                )
            self._open.add(call)
            self._tenants[tenant] += 1
        if not context.add_callback(lambda: self._close(call)):  # the call was over before it got here
            self._close(call)
        return call

    def drain(self, seconds: float) -> None:
        """Accept nothing new, wait until all calls are over, and end what is left after ``seconds``."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._open, seconds)
            left = list(self._open)
        for call in left:
            call.end(Refusal(grpc.StatusCode.UNAVAILABLE, "the server is stopping; ask again later", True))

    def _close(self, call: Call) -> None:
        call.end()
        with self._changed:
            self._open.remove(call)
            self._tenants[call.tenant] -= 1
            if not self._tenants[call.tenant]:
                del self._tenants[call.tenant]
            self._changed.notify_all()

    def _watch(self) -> None:
        with self._changed:
            while not (self._closing and not self._open):
                self._changed.wait(_WATCH_SECONDS)
                now = time.monotonic()
                for call in list(self._open):  # ending one may take it out of the set
                    call.cancel_if_late(now)
