"""An LLM behind an address, as a generator of rationales; what comes from there is not trusted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import NoReturn

import grpc

from pdss_fl.errors import LLMUnavailable, MessageError
from pdss_fl.llm.protocol import never
from pdss_fl.messages import (
    MAX_BATCH_BYTES,
    SCHEMA_VERSION,
    GenerationSettings,
    PromptBatch,
    Rationale,
    ServerInfo,
    rationale_from_proto,
)
from pdss_fl.proto import distillation_pb2 as pb
from pdss_fl.proto.distillation_pb2_grpc import RationaleServiceStub

INFO_SECONDS = 20.0
MAX_NAME_CHARS = 200

# gRPC repeats a refused request by itself, after the time that the server's hint names.
_RETRY = {
    "methodConfig": [
        {
            "name": [{"service": "pdss.v1.RationaleService"}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "1s",
                "maxBackoff": "10s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["RESOURCE_EXHAUSTED"],
            },
        }
    ]
}


class RemoteGenerator:
    """Asks a ``pdss serve`` for rationales; a ``RationaleGenerator``.

    Parameters
    ----------
    address : str
        ``host:port``, reached in plain text.
    timeout : float (default: 600.0)
        Seconds that one batch may take.
    """

    def __init__(self, address: str, timeout: float = 600.0) -> None:
        self._address, self._timeout = address, timeout
        self._channel = grpc.insecure_channel(
            address,
            options=[
                ("grpc.service_config", json.dumps(_RETRY)),
                ("grpc.per_rpc_retry_buffer_size", 2 * MAX_BATCH_BYTES),  # a larger request is not repeated
            ],
        )
        self._stub = RationaleServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Close the connection; calls under way are cancelled."""
        self._channel.close()

    @cached_property
    def info(self) -> ServerInfo:
        """What the server says it is, asked once.

        Raises
        ------
        MessageError
            If it speaks another schema version.
        LLMUnavailable
            If it cannot be reached.
        """
        try:
            request = pb.GetServerInfoRequest(schema_version=SCHEMA_VERSION)
            found = self._stub.GetServerInfo(request, timeout=min(INFO_SECONDS, self._timeout))
        except grpc.RpcError as error:
            self._raise(error)
        if found.schema_version != SCHEMA_VERSION:
            raise MessageError(
                f"the LLM server has schema version {found.schema_version}; this side speaks "
                f"{SCHEMA_VERSION}: install the same release of pdss-fl on both sides"
            )
        return ServerInfo(
            model=_printable(found.model),
            version=_printable(found.version),
            dtype=_printable(found.dtype),
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

        Raises
        ------
        MessageError
            If the batch exceeds the server's limits or is refused by it, or if what comes back has an
            ordinal that is missing, repeated or was never sent.
        LLMUnavailable
            If the server cannot be reached, is too busy, fails or takes longer than the timeout.
        """
        request = pb.GenerateRationalesRequest(batch=batch.to_proto(), settings=settings.to_proto())
        self._check_limits(len(batch.prompts), request.ByteSize())
        return self._receive(request, len(batch.prompts), is_cancelled)

    def _check_limits(self, prompts: int, size: int) -> None:
        if prompts > self.info.max_prompts or size > self.info.max_request_bytes:
            raise MessageError(
                f"a batch of {prompts} prompts and {size} bytes exceeds the LLM server's limits of "
                f"{self.info.max_prompts} prompts and {self.info.max_request_bytes} bytes; send fewer "
                "examples a round (raise num-server-rounds)"
            )

    def _receive(
        self, request: pb.GenerateRationalesRequest, expected: int, is_cancelled: Callable[[], bool]
    ) -> Iterator[Rationale]:
        missing = set(range(expected))
        call = self._stub.GenerateRationales(request, timeout=self._timeout)
        try:
            for response in call:
                if is_cancelled():
                    return
                rationale = rationale_from_proto(response.rationale)
                if rationale.ordinal not in missing:
                    raise MessageError(
                        f"the LLM server answered ordinal {rationale.ordinal}, which was answered before "
                        f"or is not one of 0 to {expected - 1}"
                    )
                missing.remove(rationale.ordinal)
                yield rationale
        except grpc.RpcError as error:
            self._raise(error)
        finally:
            call.cancel()
        if missing:
            raise MessageError(f"the LLM server left {len(missing)} of {expected} prompts without a rationale")

    def _raise(self, error: grpc.RpcError) -> NoReturn:
        code = error.code()
        details = _printable(error.details() or "")
        if code == grpc.StatusCode.INVALID_ARGUMENT:
            raise MessageError("the LLM server refused the request", private=details) from None
        problem, remedy = _PROBLEMS.get(code, (f"failed with {code.name}", "see the log of `pdss serve` there"))
        raise LLMUnavailable(f"llm.address = {self._address!r} {problem}; {remedy}", private=details) from None


_PROBLEMS = {
    grpc.StatusCode.UNAVAILABLE: (
        "does not answer",
        "start `pdss serve` there, or set llm.address to where it runs",
    ),
    grpc.StatusCode.DEADLINE_EXCEEDED: (
        "did not answer in time",
        "raise llm.timeout, or send fewer examples",
    ),
    grpc.StatusCode.RESOURCE_EXHAUSTED: ("is busy with other requests", "try again later"),
    grpc.StatusCode.UNIMPLEMENTED: ("is not an LLM server of pdss-fl", "set llm.address to a `pdss serve`"),
}


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text[:MAX_NAME_CHARS])
