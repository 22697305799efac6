"""The handlers of the gRPC service: bytes in, rationales out, every failure a status without content.

What a client sends is never logged. Requests are answered one after the other, in their order; one
that is cancelled, or whose deadline passes, stops at the next token or never starts.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError, Message

from pdss_fl.errors import LLMUnavailable, MessageError
from pdss_fl.llm.protocol import RationaleGenerator
from pdss_fl.messages import (
    MAX_BATCH_BYTES,
    MAX_PROMPTS,
    SCHEMA_VERSION,
    GenerationSettings,
    PromptBatch,
    Rationale,
    ServerInfo,
    rationale_to_proto,
)
from pdss_fl.proto import distillation_pb2 as pb

SERVICE = "pdss.v1.RationaleService"
MAX_STOPS = 16
MAX_STOP_CHARS = 200
RETRY_MILLISECONDS = "2000"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServiceLimits:
    """What one server accepts.

    Parameters
    ----------
    max_requests : int (default: 32)
        Requests that may be under way or waiting at a time; more are refused with a hint to retry.
    max_prompts : int (default: 20,000)
        Prompts of one request.
    max_request_bytes : int (default: 32 MiB)
        Bytes of one request.
    max_new_tokens : int (default: 512)
        Upper bound that is put on what a request asks for.
    """

    max_requests: int = 32
    max_prompts: int = MAX_PROMPTS
    max_request_bytes: int = MAX_BATCH_BYTES
    max_new_tokens: int = 512


class RationaleServicer:
    """Answers the calls of ``pdss.v1.RationaleService`` with a generator.

    Handlers receive bytes and decode them here, so that a damaged request is ``INVALID_ARGUMENT``
    like any other that is not what the schema says.
    """

    def __init__(self, generator: RationaleGenerator, limits: ServiceLimits) -> None:
        self._generator, self._limits = generator, limits
        self._places = threading.BoundedSemaphore(limits.max_requests)
        self._llm = futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="llm")

    @property
    def info(self) -> ServerInfo:
        """What the generator is, with the limits of this service."""
        info = self._generator.info
        return replace(
            info,
            max_prompts=min(info.max_prompts, self._limits.max_prompts),
            max_request_bytes=min(info.max_request_bytes, self._limits.max_request_bytes),
            max_new_tokens=min(info.max_new_tokens, self._limits.max_new_tokens),
        )

    def handlers(self) -> grpc.GenericRpcHandler[Any, Any]:
        """Return the handlers to add to a server."""
        methods = {
            "GetServerInfo": grpc.unary_unary_rpc_method_handler(
                self.get_server_info, response_serializer=pb.ServerInfo.SerializeToString
            ),
            "GenerateRationales": grpc.unary_stream_rpc_method_handler(
                self.generate_rationales,
                response_serializer=pb.GenerateRationalesResponse.SerializeToString,
            ),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def get_server_info(self, data: bytes, context: grpc.ServicerContext) -> pb.ServerInfo:
        """Say what is loaded, to callers of any schema version: they compare."""
        try:
            _decode(pb.GetServerInfoRequest(), data)
            return pb.ServerInfo(schema_version=SCHEMA_VERSION, **vars(self.info))
        except Exception as error:
            _abort(error, context)

    def generate_rationales(
        self, data: bytes, context: grpc.ServicerContext
    ) -> Iterator[pb.GenerateRationalesResponse]:
        """Check a request, then stream its rationales as they are finished."""
        try:
            batch, settings = self._parse(data)
            del data
            for rationale in self._answers(batch, settings, context):
                yield pb.GenerateRationalesResponse(rationale=rationale_to_proto(rationale))
        except Exception as error:
            _abort(error, context)

    def close(self) -> None:
        """Start no further request; those under way end with their calls."""
        self._llm.shutdown(wait=False, cancel_futures=True)

    def _parse(self, data: bytes) -> tuple[PromptBatch, GenerationSettings]:
        request = pb.GenerateRationalesRequest()
        _decode(request, data)
        if not request.HasField("batch"):
            raise MessageError("the request carries no prompt batch")
        info = self.info
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
        allowed = min(settings.max_new_tokens, info.max_new_tokens)
        return PromptBatch.from_proto(request.batch), replace(settings, max_new_tokens=allowed)

    def _answers(
        self, batch: PromptBatch, settings: GenerationSettings, context: grpc.ServicerContext
    ) -> Iterator[Rationale]:
        """Queue the batch for the LLM's thread and yield what comes back, until the call is over."""
        if not self._places.acquire(blocking=False):
            raise _Busy
        over = threading.Event()
        answers: SimpleQueue[Rationale | Exception | None] = SimpleQueue()

        def end() -> None:
            over.set()
            answers.put(None)
            self._places.release()

        if not context.add_callback(end):  # the call was over before it got here
            self._places.release()
            return
        self._llm.submit(self._write, batch, settings, over, answers)
        while (answer := answers.get()) is not None:
            if isinstance(answer, Exception):
                raise answer
            yield answer

    def _write(
        self,
        batch: PromptBatch,
        settings: GenerationSettings,
        over: threading.Event,
        answers: SimpleQueue[Rationale | Exception | None],
    ) -> None:
        """Run on the LLM's only thread, so that a slow reader never holds the LLM."""
        try:
            if not over.is_set():
                for rationale in self._generator.generate(batch, settings, over.is_set):
                    answers.put(rationale)
            answers.put(None)
        except Exception as error:  # raised again by the call that it belongs to
            answers.put(error)


class _Busy(Exception):
    """As many requests are under way or waiting as the limits allow."""


def _decode(message: Message, data: bytes) -> None:
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise MessageError(f"the request of {len(data)} bytes is truncated or damaged") from None


def _abort(error: Exception, context: grpc.ServicerContext) -> NoReturn:
    """End the call with the status of an error; only texts that are made to be public go out."""
    if isinstance(error, MessageError):
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, error.public)
    if isinstance(error, LLMUnavailable):
        logger.error("%s", error.public)
        context.abort(grpc.StatusCode.UNAVAILABLE, error.public)
    if isinstance(error, _Busy):
        context.set_trailing_metadata((("grpc-retry-pushback-ms", RETRY_MILLISECONDS),))
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many requests are waiting; retry later")
    # The error's own text can quote a prompt; the lines of code that it went through cannot.
    lines = "".join(traceback.format_tb(error.__traceback__))
    logger.error("the LLM failed with %s\n%s", type(error).__name__, lines)
    context.abort(grpc.StatusCode.INTERNAL, "the LLM failed; see the server's log")
