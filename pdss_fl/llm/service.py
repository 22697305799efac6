"""The gRPC server: one loaded LLM behind an address, for any number of strategies and clients."""

from __future__ import annotations

import ipaddress
import socket
from concurrent import futures
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from pdss_fl.errors import SettingError
from pdss_fl.llm.protocol import RationaleGenerator
from pdss_fl.llm.servicer import SERVICE, RationaleServicer, ServiceLimits


@dataclass(frozen=True)
class RunningServer:
    """A server that has started.

    Parameters
    ----------
    address : str
        ``host:port`` with the real port, for ``RemoteGenerator``.
    """

    address: str
    _server: grpc.Server
    _servicer: RationaleServicer
    _health: health.HealthServicer

    def wait(self) -> None:
        """Return when the server has been stopped."""
        self._server.wait_for_termination()

    def stop(self, grace: float) -> None:
        """Accept nothing new, give calls under way ``grace`` seconds, cancel what is left, and return."""
        self._health.enter_graceful_shutdown()
        self._server.stop(grace).wait()
        self._servicer.close()


def serve(
    generator: RationaleGenerator,
    *,
    host: str = "127.0.0.1",
    port: int = 50061,
    limits: ServiceLimits | None = None,
    insecure: bool = False,
) -> RunningServer:
    """Start a server with the rationale and health services, on loopback also with reflection.

    Parameters
    ----------
    generator : RationaleGenerator
        Used by one thread at a time.
    host : str (default: "127.0.0.1")
        Name or address to listen on.
    port : int (default: 50061)
        0 takes a free one.
    limits : ServiceLimits | None (default: None)
        The defaults of ``ServiceLimits`` if not given.
    insecure : bool (default: False)
        Allow plain text outside loopback.

    Raises
    ------
    SettingError
        See ``check_address``.
    """
    check_address(host, port, insecure)
    limits = limits or ServiceLimits()
    server = grpc.server(
        futures.ThreadPoolExecutor(limits.max_requests + 8),  # beside waiting requests, room for short calls
        options=[
            ("grpc.so_reuseport", 0),  # else two servers share a port without a word
            ("grpc.max_receive_message_length", limits.max_request_bytes),
            ("grpc.keepalive_time_ms", 60_000),  # a client that vanished frees its place
        ],
    )
    servicer = RationaleServicer(generator, limits)
    server.add_generic_rpc_handlers((servicer.handlers(),))
    status = _add_health(server)
    if is_loopback(host):
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    shown = f"[{host}]" if ":" in host else host
    try:
        bound = server.add_insecure_port(f"{shown}:{port}")
    except RuntimeError:
        raise _unusable(host, port) from None
    server.start()
    return RunningServer(f"{shown}:{bound}", server, servicer, status)


def check_address(host: str, port: int, insecure: bool) -> None:
    """Refuse an address that cannot or should not be served, before an LLM is loaded for it.

    Raises
    ------
    SettingError
        If ``host`` is not loopback and plain text was not allowed, or if the port cannot be bound.
    """
    if not (insecure or is_loopback(host)):
        raise SettingError(
            f"--host = {host!r} would send prompts over the network in plain text; listen on 127.0.0.1, "
            "or allow it with --insecure"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError:
        raise _unusable(host, port) from None


def is_loopback(host: str) -> bool:
    """Return whether a name or address stays on this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _unusable(host: str, port: int) -> SettingError:
    return SettingError(
        f"--port = {port} on --host = {host!r} is in use or not available; choose another, or 0 for a free one"
    )


def _add_health(server: grpc.Server) -> health.HealthServicer:
    servicer = health.HealthServicer(
        experimental_non_blocking=True, experimental_thread_pool=futures.ThreadPoolExecutor(2)
    )
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    for name in ("", SERVICE):
        servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    return servicer
