"""The gRPC server: one loaded LLM behind an address, for any number of strategies and clients."""

from __future__ import annotations

import errno
import socket
from concurrent import futures
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from pdss_fl.errors import SettingError
from pdss_fl.llm.calls import ServiceLimits
from pdss_fl.llm.health import Health, apart
from pdss_fl.llm.metrics import ServiceMetrics
from pdss_fl.llm.protocol import RationaleGenerator
from pdss_fl.llm.servicer import SERVICE, RationaleServicer
from pdss_fl.llm.tls import ServerTls, is_loopback

_CLOSE_SECONDS = 2.0
_REFLECTION_THREADS = 2
_SHORT_CALLS = 1000  # refused, health and reflection calls at a time; a flood of them is turned away unread


@dataclass(frozen=True)
class ServiceSecurity:
    """Who may call, and under which lock.

    Parameters
    ----------
    tls : ServerTls | None (default: None)
        Plain text if not given.
    token_key : bytes | None (default: None)
        If given, only callers with a token signed with it are answered; see ``pdss_fl.llm.tokens``.
    token_leeway : float (default: 60.0)
        Seconds by which other machines' clocks may differ.
    insecure : bool (default: False)
        Allow plain text, or callers that prove nothing, outside loopback.
    reflection : bool | None (default: None)
        Whether the server describes its services; by default on loopback only.
    """

    tls: ServerTls | None = None
    token_key: bytes | None = None
    token_leeway: float = 60.0
    insecure: bool = False
    reflection: bool | None = None

    def check(self, host: str) -> None:
        """Refuse to listen on an address with less than it needs.

        Raises
        ------
        SettingError
            If ``host`` is not loopback and the channel is plain text, or anybody could call.
        """
        if is_loopback(host):
            return
        if self.tls is None and self.token_key is not None:
            raise SettingError(
                f"--host = {host!r} would send tokens over the network in plain text; give --tls-certificate and "
                "--tls-key"
            )
        if self.insecure:
            return
        if self.tls is None:
            raise SettingError(
                f"--host = {host!r} would send prompts over the network in plain text; give --tls-certificate and "
                "--tls-key, listen on 127.0.0.1, or allow it with --insecure"
            )
        if self.token_key is None and self.tls.client_ca is None:
            raise SettingError(
                f"--host = {host!r} would answer anybody; give --token-key or --client-ca, or allow it with --insecure"
            )


@dataclass(frozen=True)
class RunningServer:
    """A server that has started; it answers once it has a generator.

    Parameters
    ----------
    address : str
        ``host:port`` with the real port, for ``RemoteGenerator``.
    """

    address: str
    _server: grpc.Server
    _servicer: RationaleServicer
    _health: Health

    @property
    def metrics(self) -> ServiceMetrics:
        """What the server has counted."""
        return self._servicer.metrics

    @property
    def in_flight(self) -> int:
        """Requests under way or waiting."""
        return len(self._servicer.calls)

    def ready(self, generator: RationaleGenerator) -> None:
        """Answer with this generator from now on, and say so to whoever asks for the server's health."""
        self._servicer.use(generator)
        self._health.set(serving=True)

    def wait(self) -> None:
        """Return when the server has been stopped."""
        self._server.wait_for_termination()

    def stop(self, grace: float) -> None:
        """Accept nothing new, give calls under way ``grace`` seconds, end what is left, and return.

        Meanwhile the server's health is not-serving. What a call has been answered by then has been sent; it
        ends with a hint to ask again, and a ``RemoteGenerator`` asks the next server for the rest.
        """
        self._health.set(serving=False)
        self._servicer.calls.drain(grace)
        self._health.close()
        self._server.stop(min(grace, _CLOSE_SECONDS)).wait()
        self._servicer.close()


def serve(
    generator: RationaleGenerator | None,
    *,
    host: str = "127.0.0.1",
    port: int = 50061,
    limits: ServiceLimits | None = None,
    security: ServiceSecurity | None = None,
) -> RunningServer:
    """Start a server with the rationale and health services.

    Parameters
    ----------
    generator : RationaleGenerator | None
        Called from many threads. ``None``: the server is not serving until ``RunningServer.ready``.
    host : str (default: "127.0.0.1")
        Name or address to listen on.
    port : int (default: 50061)
        0 takes a free one.
    limits : ServiceLimits | None (default: None)
        The defaults of ``ServiceLimits`` if not given.
    security : ServiceSecurity | None (default: None)
        The defaults of ``ServiceSecurity`` if not given: plain text and anybody, on loopback.

    Raises
    ------
    SettingError
        See ``ServiceSecurity.check``; or if the address cannot be used, or a certificate.
    """
    limits, security = limits or ServiceLimits(), security or ServiceSecurity()
    security.check(host)
    credentials = security.tls.credentials() if security.tls else None
    server = grpc.server(
        futures.ThreadPoolExecutor(limits.max_requests + 8),  # beside waiting requests, room for short calls
        options=_options(limits),
        maximum_concurrent_rpcs=limits.max_requests + _SHORT_CALLS,
    )
    servicer = RationaleServicer(limits, security.token_key, security.token_leeway, not is_loopback(host))
    status = Health(("", SERVICE))
    server.add_generic_rpc_handlers((servicer.handlers(), status.handlers()))
    if security.reflection or (security.reflection is None and is_loopback(host)):
        _add_reflection(server)
    check_address(host, port)
    shown = f"[{host}]" if ":" in host else host
    target = f"{shown}:{port}"
    try:
        bound = server.add_secure_port(target, credentials) if credentials else server.add_insecure_port(target)
    except RuntimeError:
        raise SettingError(f"gRPC cannot listen on --host = {host!r}, --port = {port}; choose another port") from None
    server.start()
    running = RunningServer(f"{shown}:{bound}", server, servicer, status)
    if generator is not None:
        running.ready(generator)
    return running


def check_address(host: str, port: int) -> None:
    """Try an address with plain sockets, which tell what is wrong with it; gRPC does not.

    Raises
    ------
    SettingError
        If the name is unknown, the address is another machine's, or the port is in use or reserved.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise SettingError(f"--host = {host!r} is not a name or address that this machine knows; correct it") from None
    failed = [error for family, _, _, _, address in found if (error := _bind(family, address))]
    codes = {error.errno for error in failed}
    if errno.EADDRINUSE in codes:
        raise SettingError(f"--port = {port} on --host = {host!r} is in use; choose another, or 0 for a free one")
    if len(failed) < len(found):
        return  # a name may stand for addresses of which only some are there
    if errno.EACCES in codes:
        raise SettingError(f"--port = {port} is not open to this user; choose one from 1024 on, or 0 for a free one")
    if errno.EADDRNOTAVAIL in codes:
        raise SettingError(f"--host = {host!r} is not an address of this machine; give one, or 0.0.0.0 for all")
    raise SettingError(f"--host = {host!r}, --port = {port} cannot be listened on; choose others", str(failed[0]))


def _bind(family: int, address: Any) -> OSError | None:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC: a port just left is free
            probe.bind(address)
    except OSError as error:
        return error
    return None


def _options(limits: ServiceLimits) -> list[tuple[str, Any]]:
    keepalive = int(limits.keepalive_seconds * 1000)
    return [
        ("grpc.so_reuseport", 0),  # else two servers share a port without a word
        ("grpc.max_receive_message_length", limits.max_request_bytes),
        ("grpc.max_metadata_size", 16 * 2**10),
        # A client that vanished without a word frees its place ...
        ("grpc.keepalive_time_ms", keepalive),
        ("grpc.keepalive_timeout_ms", keepalive),
        ("grpc.http2.ping_timeout_ms", keepalive),  # what gRPC really waits for: a minute otherwise
        ("grpc.http2.max_pings_without_data", 0),
        # ... and so does one that asks for nothing any more, or that opens a connection and never speaks.
        ("grpc.max_connection_idle_ms", int(limits.idle_seconds * 1000)),
        ("grpc.server_handshake_timeout_ms", int(limits.stall_seconds * 1000)),
        ("grpc.max_allowed_incoming_connections", limits.max_connections),
        ("grpc.max_concurrent_streams", limits.max_streams),
        # A client may find out about a server that did.
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ]


def _add_reflection(server: grpc.Server) -> None:
    servicer = reflection.ReflectionServicer((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME))
    pool = futures.ThreadPoolExecutor(_REFLECTION_THREADS)
    servicer.ServerReflectionInfo = apart(servicer.ServerReflectionInfo, pool)  # type: ignore[method-assign]
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
