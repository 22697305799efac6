"""The handlers of the gRPC service: bytes in, rationales out, every failure a status without content.

What a client sends is never logged. One that leaves, or whose deadline passes, stops its prompts at the
next token; one that reads slowly holds its own place and nobody else's: the LLM is called from a thread
of each request, beside the one that sends.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError, Message

from pdss_fl.errors import Busy, LLMFailed, LLMUnavailable, MessageError
from pdss_fl.llm.calls import RETRY_SECONDS, Call, Calls, Refusal, ServiceLimits
from pdss_fl.llm.metrics import ServiceMetrics, short_hash
from pdss_fl.llm.protocol import RationaleGenerator
from pdss_fl.llm.tokens import TokenRefused, verify
from pdss_fl.messages import (
    SCHEMA_VERSION,
    GenerationSettings,
    PerturbedPrompt,
    PromptBatch,
    Rationale,
    ServerInfo,
    rationale_to_proto,
)
from pdss_fl.proto import distillation_pb2 as pb

SERVICE = "pdss.v1.RationaleService"
MAX_STOPS = 16
MAX_STOP_CHARS = 200
_BEARER = "bearer "
_COUNTED = 64  # prompts at a time: what is too long is found out early, and others read theirs in between
_NAMES = ("x509_common_name", "x509_subject_alternative_name", "x509_pem_cert")

logger = logging.getLogger(__name__)


class RationaleServicer:
    """Answers the calls of ``pdss.v1.RationaleService`` with a generator, once it has one.

    Handlers receive bytes and decode them here, so that a damaged request is ``INVALID_ARGUMENT``
    like any other that is not what the schema says. They are handlers of request streams, though a request is one
    message: gRPC lets those run before the message is there, and a thread for each would be lost to whoever
    opens calls and sends none. So a caller is known, and has a place, before a byte of the message is waited for.

    Parameters
    ----------
    limits : ServiceLimits
        What is accepted.
    token_key : bytes | None (default: None)
        If given, only callers with a token of this key are answered.
    token_leeway : float (default: 60.0)
        Seconds by which the clocks of whoever makes tokens may differ from this one's.
    by_address : bool (default: False)
        Tell callers that prove nothing apart by their addresses: off loopback they share no answers and no places.
    """

    def __init__(
        self,
        limits: ServiceLimits,
        token_key: bytes | None = None,
        token_leeway: float = 60.0,
        by_address: bool = False,
    ) -> None:
        self._limits, self._token_key, self._leeway = limits, token_key, token_leeway
        self._by_address = by_address
        self._generator: RationaleGenerator | None = None
        self._llm: futures.ThreadPoolExecutor | None = None
        self.calls, self.metrics = Calls(limits), ServiceMetrics()
        self.metrics.watch(lambda: len(self.calls))

    def use(self, generator: RationaleGenerator) -> None:
        """Answer calls with this generator from now on."""
        if hasattr(generator, "stats"):
            self.metrics.watch_generator(generator.stats)
        self._llm = futures.ThreadPoolExecutor(self._limits.max_requests, thread_name_prefix="llm")
        self._generator = generator

    def handlers(self) -> grpc.GenericRpcHandler[Any, Any]:
        """Return the handlers to add to a server."""
        methods = {
            "GetServerInfo": grpc.stream_unary_rpc_method_handler(
                self.get_server_info, response_serializer=pb.ServerInfo.SerializeToString
            ),
            "GenerateRationales": grpc.stream_stream_rpc_method_handler(
                self.generate_rationales,
                response_serializer=pb.GenerateRationalesResponse.SerializeToString,
            ),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def get_server_info(self, _requests: Iterator[bytes], context: grpc.ServicerContext) -> pb.ServerInfo | None:
        """Say what is loaded, to callers of any schema version: they compare, so nothing they send is read."""
        try:
            self._tenant(context)
            return pb.ServerInfo(schema_version=SCHEMA_VERSION, **vars(self._info(self._ready())))
        except Exception as error:
            _abort(_refusal(error), context)
        return None

    def generate_rationales(
        self, requests: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[pb.GenerateRationalesResponse]:
        """Check a request, then stream its rationales as they are finished."""
        status, tenant, sent, started = "CANCELLED", "", 0, time.monotonic()
        try:
            tenant = self._tenant(context)
            generator = self._ready()
            call = self.calls.open(context, tenant)
            batch, settings = self._parse(_message(requests, call), generator, call)
            for rationale in self._answers(generator, batch, settings, call):
                self.metrics.answered(tenant, rationale.tokens)
                if not sent:
                    self.metrics.first_after(started)
                sent += 1
                yield pb.GenerateRationalesResponse(rationale=rationale_to_proto(rationale))
            status = "OK" if context.is_active() else status
        except Exception as error:
            refusal = _refusal(error)
            status = refusal.code.name
            _abort(refusal, context)
        finally:
            self._ended(status, tenant, sent, time.monotonic() - started)

    def close(self) -> None:
        """Start no further request; those under way end with their calls."""
        if self._llm is not None:
            self._llm.shutdown(wait=False, cancel_futures=True)

    def _ended(self, status: str, tenant: str, rationales: int, seconds: float) -> None:
        self.metrics.ended(status)
        told = {"status": status, "tenant": short_hash(tenant), "rationales": rationales, "seconds": round(seconds, 3)}
        logger.info("%(status)s: %(rationales)d rationales in %(seconds).1f s to tenant %(tenant)s", told, extra=told)

    def _tenant(self, context: grpc.ServicerContext) -> str:
        """Return who calls: the run and node of a token, else the name in a client certificate, else the address."""
        if self._token_key is not None:
            sent = [value for key, value in context.invocation_metadata() if key == "authorization"]
            if len(sent) != 1 or not isinstance(sent[0], str) or not sent[0].lower().startswith(_BEARER):
                raise Refusal(grpc.StatusCode.UNAUTHENTICATED, "the call carries no bearer token")
            return verify(sent[0][len(_BEARER) :], self._token_key, self._leeway).tenant
        shown = context.auth_context()
        # One that names nobody is a tenant by itself: callers without a name would share answers.
        names: Any = next((found for key in _NAMES if any(found := shown.get(key, ()))), ())
        if names:
            return "certificate " + b" ".join(names).decode(errors="replace")
        return tenant_at(context.peer()) if self._by_address else ""

    def _ready(self) -> RationaleGenerator:
        if self._generator is None:
            raise Refusal(grpc.StatusCode.UNAVAILABLE, "the LLM is being loaded; ask again later", come_again=True)
        return self._generator

    def _info(self, generator: RationaleGenerator) -> ServerInfo:
        """Return what the generator is, with the limits of this service."""
        info, limits = generator.info, self._limits
        return replace(
            info,
            max_prompts=min(info.max_prompts, limits.max_prompts),
            max_request_bytes=min(info.max_request_bytes, limits.max_request_bytes),
            max_new_tokens=min(info.max_new_tokens, limits.max_new_tokens),
        )

    def _parse(self, data: bytes, generator: RationaleGenerator, call: Call) -> tuple[PromptBatch, GenerationSettings]:
        request = pb.GenerateRationalesRequest()
        _decode(request, data)
        if not request.HasField("batch"):
            raise MessageError("the request carries no prompt batch")
        info = self._info(generator)
        if len(request.batch.prompts) > info.max_prompts:
            raise MessageError(
                f"the request has {len(request.batch.prompts)} prompts; this server accepts {info.max_prompts}"
            )
        settings = GenerationSettings.from_proto(request.settings)
        if len(settings.stop) > MAX_STOPS or not all(1 <= len(s) <= MAX_STOP_CHARS for s in settings.stop):
            raise MessageError(
                f"the generation settings have {len(settings.stop)} stop texts; at most {MAX_STOPS} of "
                f"1 to {MAX_STOP_CHARS} characters are accepted"
            )
        batch = PromptBatch.from_proto(request.batch)
        count = getattr(generator, "count_tokens", _count_words)
        for start in range(0, len(batch.prompts), _COUNTED):
            if call.over.is_set():  # else whoever opens and cancels calls would hold threads without a place
                raise Refusal(grpc.StatusCode.CANCELLED, "the call ended while its request was read")
            longest = max(count(batch.prompts[start : start + _COUNTED]))
            if longest > self._limits.max_prompt_tokens:
                raise MessageError(
                    f"a prompt has {longest} tokens; this server accepts {self._limits.max_prompt_tokens} "
                    "(--max-prompt-tokens)"
                )
        return batch, replace(settings, max_new_tokens=min(settings.max_new_tokens, info.max_new_tokens))

    def _answers(
        self, generator: RationaleGenerator, batch: PromptBatch, settings: GenerationSettings, call: Call
    ) -> Iterator[Rationale]:
        """Hand the batch to the LLM and yield what comes back, until the call is over."""
        self.metrics.accepted(len(batch.prompts))
        generate = partial(generator.generate, batch, settings, call.over.is_set, call.tenant)
        assert self._llm is not None
        try:
            self._llm.submit(_write, generate, call)
        except RuntimeError:  # it was shut down just now
            raise Refusal(grpc.StatusCode.UNAVAILABLE, "the server is stopping; ask again later", True) from None
        while (answer := call.answers.get()) is not None:
            if isinstance(answer, Exception):
                raise answer
            with call.at_the_client():
                yield answer


def tenant_at(peer: str) -> str:
    """Return the tenant behind a peer as gRPC names it (``ipv4:host:port``, ``ipv6:[host]:port``): its host."""
    kind, _, address = unquote(peer).partition(":")
    return f"address {address.rpartition(':')[0].strip('[]') if kind in ('ipv4', 'ipv6') else address}"


def _write(generate: Callable[[], Iterator[Rationale]], call: Call) -> None:
    """Run beside the thread that sends, so that a slow reader never holds the LLM."""
    try:
        if not call.over.is_set():
            for rationale in generate():
                call.answers.put(rationale)
        call.answers.put(None)
    except Exception as error:  # raised again by the call that it belongs to
        call.answers.put(error)


def _message(requests: Iterator[bytes], call: Call) -> bytes:
    """Return a request's one message; its client has as long to send it as to read an answer."""
    try:
        with call.at_the_client():
            return next(requests)
    except StopIteration:
        raise MessageError("the request carries no message") from None
    except grpc.RpcError:  # how gRPC tells that the call is over
        raise Refusal(grpc.StatusCode.CANCELLED, "the call ended before its request came") from None


def _count_words(prompts: tuple[PerturbedPrompt, ...]) -> list[int]:
    return [sum(len(text.split()) for text in (p.question, *p.choices)) for p in prompts]


def _decode(message: Message, data: bytes) -> None:
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise MessageError(f"the request of {len(data)} bytes is truncated or damaged") from None


def _refusal(error: Exception) -> Refusal:
    """Return the status of an error; only texts that are made to be public go out."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, TokenRefused):
        code = grpc.StatusCode.PERMISSION_DENIED if error.scope else grpc.StatusCode.UNAUTHENTICATED
        return Refusal(code, error.text)
    if isinstance(error, Busy):
        return Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, error.public, come_again=True)
    if isinstance(error, MessageError):
        return Refusal(grpc.StatusCode.INVALID_ARGUMENT, error.public)
    if isinstance(error, LLMUnavailable):
        logger.error("%s", error.public)
        # Clients ask again what is unavailable; what has failed would fail again, and set others' rows apart again.
        code = grpc.StatusCode.INTERNAL if isinstance(error, LLMFailed) else grpc.StatusCode.UNAVAILABLE
        return Refusal(code, error.public)
    # The error's own text can quote a prompt; the lines of code that it went through cannot.
    lines = "".join(traceback.format_tb(error.__traceback__))
    logger.error("the LLM failed with %s\n%s", type(error).__name__, lines)
    return Refusal(grpc.StatusCode.INTERNAL, "the LLM failed; see the server's log")


def _abort(refusal: Refusal, context: grpc.ServicerContext) -> None:
    if refusal.come_again:
        context.set_trailing_metadata((("grpc-retry-pushback-ms", str(int(RETRY_SECONDS * 1000))),))
    context.abort(refusal.code, refusal.text)
