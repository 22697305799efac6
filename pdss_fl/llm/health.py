"""Health (``grpc.health.v1``) for anybody who asks: calls that send or read nothing are few, short, and harm no other.

The library's own servicer holds a thread for each call that sends no request or reads no answer, and lets whoever
changes the status wait for the slowest reader; so these are handlers of streams, like those of the LLM.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2

from pdss_fl.llm.calls import Call, Calls, Refusal, ServiceLimits

MAX_CHECKS, MAX_WATCHERS = 500, 100
"""Calls of each kind at a time; more are turned away. A thread each, made when it is needed."""
_STALL_SECONDS = 2.0
_WATCH_SECONDS = 3_600.0
_WAKE_SECONDS = 1.0

_SERVING, _NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
_METHODS = {"Check": MAX_CHECKS, "Watch": MAX_WATCHERS}


class Health:
    """The health service of one server; all its services have one status, which is not-serving at first.

    Parameters
    ----------
    services : tuple[str, ...]
        Names that may be asked for; the empty one is the server itself.
    """

    def __init__(self, services: tuple[str, ...]) -> None:
        self._services, self._status = services, _NOT_SERVING
        self._changed = threading.Condition()
        self._calls = {
            name: Calls(ServiceLimits(max_requests=most, max_seconds=_WATCH_SECONDS, stall_seconds=_STALL_SECONDS))
            for name, most in _METHODS.items()
        }
        self._pools = {name: futures.ThreadPoolExecutor(most, f"health-{name}") for name, most in _METHODS.items()}

    def set(self, serving: bool) -> None:
        """Change the status, and tell watchers; returns at once, however slowly they read."""
        with self._changed:
            self._status = _SERVING if serving else _NOT_SERVING
            self._changed.notify_all()

    def close(self) -> None:
        """Accept no more calls and end those of watchers."""
        for calls in self._calls.values():
            calls.drain(0.0)
        with self._changed:
            self._changed.notify_all()
        for pool in self._pools.values():
            pool.shutdown(wait=False)

    def handlers(self) -> grpc.GenericRpcHandler[Any, Any]:
        """Return the handlers to add to a server."""
        methods = {
            "Check": grpc.stream_unary_rpc_method_handler(
                apart(self._check, self._pools["Check"]),
                response_serializer=health_pb2.HealthCheckResponse.SerializeToString,
            ),
            "Watch": grpc.stream_stream_rpc_method_handler(
                apart(self._watch, self._pools["Watch"]),
                response_serializer=health_pb2.HealthCheckResponse.SerializeToString,
            ),
        }
        return grpc.method_handlers_generic_handler(health.SERVICE_NAME, methods)

    def _check(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> health_pb2.HealthCheckResponse:
        _, name = self._open("Check", requests, context)
        if name not in self._services:
            context.abort(grpc.StatusCode.NOT_FOUND, "this server has no such service")
        return health_pb2.HealthCheckResponse(status=self._status)

    def _watch(
        self, requests: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[health_pb2.HealthCheckResponse]:
        call, name = self._open("Watch", requests, context)
        last: int | None = None
        while True:
            ends = call.over.is_set()  # asked before the status, so that what a server set before it stopped is told
            status = self._status if name in self._services else _UNKNOWN
            if status != last:
                last = status
                with call.at_the_client():
                    yield health_pb2.HealthCheckResponse(status=status)
            if ends:
                return
            with self._changed:
                if not call.over.is_set() and last in (self._status, _UNKNOWN):
                    self._changed.wait(_WAKE_SECONDS)

    def _open(self, method: str, requests: Iterator[bytes], context: grpc.ServicerContext) -> tuple[Call, str]:
        """Give a call its place and return what it asks for; ends the call where there is neither."""
        try:
            call = self._calls[method].open(context, "")
        except Refusal as refusal:
            context.abort(refusal.code, refusal.text)
        try:
            with call.at_the_client():
                message = next(requests)
            return call, health_pb2.HealthCheckRequest.FromString(message).service
        except (StopIteration, DecodeError):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the request carries no message, or a damaged one")
        except grpc.RpcError:  # how gRPC tells that the call is over
            context.abort(grpc.StatusCode.CANCELLED, "the call ended before its request came")


def apart(handler: Callable[..., Any], pool: futures.ThreadPoolExecutor) -> Callable[..., Any]:
    """Let a method that anybody may call run in threads of its own: half a call holds one, and none of the LLM's."""

    def run(*arguments: Any) -> Any:
        return handler(*arguments)

    run.experimental_thread_pool = pool  # type: ignore[attr-defined]  # what gRPC looks for
    return run
