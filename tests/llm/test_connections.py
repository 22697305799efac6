"""Connections and health calls of peers that say nothing, read nothing or never leave: nobody else notices."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import suppress

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pdss_fl.llm.calls import ServiceLimits
from pdss_fl.llm.remote import RemoteGenerator
from pdss_fl.llm.service import RunningServer, serve
from pdss_fl.messages import GenerationSettings
from tests.harness import EchoGenerator
from tests.llm.helpers import make_batch
from tests.llm.network import Proxy

HEALTH = "/grpc.health.v1.Health"
SERVING = health_pb2.HealthCheckResponse.SERVING
PREFACE, SETTINGS_FRAME, WINDOW = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 4, 4


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not come about within a minute"
        time.sleep(0.01)


def checked(address: str) -> int:
    with grpc.insecure_channel(address) as channel:
        asked = health_pb2.HealthCheckRequest()
        return int(health_pb2_grpc.HealthStub(channel).Check(asked, timeout=30).status)


def answered(address: str) -> int:
    remote = RemoteGenerator(address, 30.0, retries=0)
    try:
        return len(list(remote.generate(make_batch(3), GenerationSettings(5))))
    finally:
        remote.close()


def connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=60)


@pytest.mark.parametrize("method", ["Check", "Watch"])
def test_health_calls_that_send_nothing_hold_up_no_other(method: str) -> None:
    server = serve(EchoGenerator(), port=0)
    over = threading.Event()

    def nothing() -> Iterator[bytes]:
        over.wait()
        yield b""

    with grpc.insecure_channel(server.address) as channel:
        calls = [channel.stream_stream(f"{HEALTH}/{method}", bytes, bytes)(nothing()) for _ in range(60)]
        time.sleep(0.2)  # they have arrived
        assert checked(server.address) == SERVING
        assert answered(server.address) == 3
        for call in calls:  # and each loses its place after a while
            with pytest.raises(grpc.RpcError) as caught:
                next(call)
            assert caught.value.code() == grpc.StatusCode.CANCELLED
        over.set()
    server.stop(grace=0)


def watching_without_a_window(address: str) -> bytes:
    """Return what a client sends that asks to watch, its window for answers changed to nothing."""
    proxy = Proxy(address)
    with grpc.insecure_channel(proxy.address) as channel:
        assert next(health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())).status == SERVING
        sent = bytearray(proxy.sent)
    proxy.close()
    at = len(PREFACE)
    length = int.from_bytes(sent[at : at + 3], "big")
    assert sent.startswith(PREFACE)
    assert sent[at + 3] == SETTINGS_FRAME
    for entry in range(at + 9, at + 9 + length, 6):
        if int.from_bytes(sent[entry : entry + 2], "big") == WINDOW:
            sent[entry + 2 : entry + 6] = struct.pack(">I", 0)
            return bytes(sent)
    raise AssertionError("the client names no window")


def test_watchers_that_never_read_hold_up_neither_others_nor_a_stop() -> None:
    server = serve(EchoGenerator(), port=0)
    sent = watching_without_a_window(server.address)
    unread = [connect(server.address) for _ in range(5)]
    for connection in unread:
        connection.sendall(sent)
    time.sleep(0.2)  # they have arrived
    assert checked(server.address) == SERVING
    with grpc.insecure_channel(server.address) as channel:
        watched = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=30)
        assert next(watched).status == SERVING
        with futures.ThreadPoolExecutor() as pool:
            stopped = pool.submit(server.stop, 5.0)
            assert next(watched).status == health_pb2.HealthCheckResponse.NOT_SERVING
            stopped.result(timeout=30)
    for connection in unread:
        connection.close()


def test_a_connection_that_asks_for_nothing_any_more_is_closed() -> None:
    server = serve(EchoGenerator(), port=0, limits=ServiceLimits(idle_seconds=0.3))
    states: list[grpc.ChannelConnectivity] = []
    with grpc.insecure_channel(server.address) as channel:
        channel.subscribe(states.append)
        asked = health_pb2.HealthCheckRequest()
        assert health_pb2_grpc.HealthStub(channel).Check(asked).status == SERVING
        wait_until(lambda: states[-1:] == [grpc.ChannelConnectivity.IDLE] and len(states) > 2)
        assert health_pb2_grpc.HealthStub(channel).Check(asked).status == SERVING, "it opens another"
    server.stop(grace=0)


def test_connections_are_bounded() -> None:
    server: RunningServer = serve(EchoGenerator(), port=0, limits=ServiceLimits(max_connections=3))
    kept = [connect(server.address) for _ in range(3)]
    for connection in kept:
        connection.sendall(PREFACE + b"\0\0\0\4\0\0\0\0\0")
        assert connection.recv(9)  # the server's own settings
    with connect(server.address) as one_more:
        one_more.sendall(PREFACE + b"\0\0\0\4\0\0\0\0\0")
        with suppress(ConnectionError):  # the other way to hang up
            assert one_more.recv(9) == b""
    for connection in kept:
        connection.close()
    wait_until(lambda: _can_ask(server.address))
    server.stop(grace=0)


def test_more_calls_on_one_connection_than_it_may_have_wait_at_the_client() -> None:
    server = serve(EchoGenerator(), port=0, limits=ServiceLimits(max_streams=2))
    asked, own = health_pb2.HealthCheckRequest(), [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(server.address, own) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watching = [stub.Watch(asked) for _ in range(2)]
        assert [next(watch).status for watch in watching] == [SERVING] * 2
        with pytest.raises(grpc.RpcError) as refused:
            stub.Check(asked, timeout=1)
        assert refused.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert answered(server.address) == 3, "other connections have calls of their own"
        watching[0].cancel()
        assert stub.Check(asked, timeout=30).status == SERVING
        watching[1].cancel()
    server.stop(0)


def _can_ask(address: str) -> bool:
    try:
        return checked(address) == SERVING
    except grpc.RpcError:
        return False
