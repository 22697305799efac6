"""Clients that misbehave on a real connection: each holds its own place at most, and the server goes on answering."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any

import grpc
import pytest

from pdss_fl.errors import LLMUnavailable, MessageError
from pdss_fl.llm.calls import ServiceLimits
from pdss_fl.llm.instruction import EVERYDAY, Instruction
from pdss_fl.llm.protocol import never
from pdss_fl.llm.remote import RemoteGenerator
from pdss_fl.llm.scheduler import Scheduler
from pdss_fl.llm.service import RunningServer, ServiceSecurity, serve
from pdss_fl.llm.servicer import SERVICE
from pdss_fl.llm.tokens import TokenIssuer
from pdss_fl.messages import (
    MAX_RATIONALE_CHARS,
    Finish,
    GenerationSettings,
    PerturbedPrompt,
    PromptBatch,
    Rationale,
    ServerInfo,
)
from pdss_fl.proto import distillation_pb2 as pb
from tests.harness import EchoGenerator
from tests.llm.helpers import Gate, make_batch, make_llama, make_tokenizer
from tests.llm.network import Proxy

GENERATE = f"/{SERVICE}/GenerateRationales"
SETTINGS = GenerationSettings(8)
KEY = b"a key of the test, long enough. " * 2


def request_bytes(prompts: int = 2) -> bytes:
    return pb.GenerateRationalesRequest(
        batch=make_batch(prompts).to_proto(), settings=SETTINGS.to_proto()
    ).SerializeToString()


def ask(address: str, prompts: int = 2, **options: Any) -> int:
    remote = RemoteGenerator(address, 30.0, retries=0, **options)
    try:
        return len(list(remote.generate(make_batch(prompts), SETTINGS)))
    finally:
        remote.close()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not come about within 30 seconds"
        time.sleep(0.01)


class Patient:
    """A generator whose prompts wait until they are let go or nobody wants them any more."""

    info = ServerInfo("patient", "0", "none")

    def __init__(self, length: int = 5) -> None:
        self.text, self.go = "x" * length, threading.Event()
        self.under_way, self.given_up = 0, 0

    def generate(
        self,
        batch: PromptBatch,
        settings: GenerationSettings,
        is_cancelled: Callable[[], bool] = never,
        tenant: str = "",
    ) -> Iterator[Rationale]:
        self.under_way += 1
        while not self.go.wait(0.01):
            if is_cancelled():
                self.given_up += 1
                return
        for prompt in batch.prompts:
            yield Rationale(prompt.ordinal, self.text, Finish.STOP, 1)


@pytest.fixture
def echo() -> Iterator[RunningServer]:
    running = serve(EchoGenerator(), port=0, limits=ServiceLimits(keepalive_seconds=1.0))
    yield running
    running.stop(grace=0)


def frames(address: str) -> bytes:
    """Record what a well-behaved client sends, from the first byte of its connection."""
    proxy = Proxy(address)
    assert ask(proxy.address) == 2
    sent = bytes(proxy.sent)
    proxy.close()
    assert sent.startswith(b"PRI * HTTP/2.0")
    return sent


def damaged(good: bytes, chance: random.Random) -> bytes:
    """Return a connection's bytes with something wrong: flipped, cut, repeated, swapped or invented."""
    data = bytearray(good)
    start = chance.choice([0, 24, chance.randrange(len(data))])  # 24 bytes are the greeting
    kind = chance.randrange(5)
    if kind == 0:
        for _ in range(chance.randrange(1, 20)):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    elif kind == 1:
        del data[start:]
    elif kind == 2:
        data[start:start] = data[start : start + chance.randrange(1, 200)]
    elif kind == 3:
        data[start:] = chance.randbytes(chance.randrange(1, 400))
    else:  # a frame of any type with any flags and a length that is not its own
        data[start:] = chance.randrange(2**24).to_bytes(3, "big") + chance.randbytes(chance.randrange(6, 100))
    return bytes(data)


def test_a_thousand_fuzzed_frames_leave_the_server_answering(echo: RunningServer) -> None:
    good, chance = frames(echo.address), random.Random(6)
    host, _, port = echo.address.rpartition(":")
    for i in range(1000):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            try:
                connection.sendall(damaged(good, chance))
            except OSError:
                continue  # it hung up in the middle, as it may
        if i % 100 == 0:
            assert ask(echo.address) == 2
    assert ask(echo.address) == 2
    wait_until(lambda: echo.in_flight == 0)


def test_half_open_connections_hold_nobody_up(echo: RunningServer) -> None:
    host, _, port = echo.address.rpartition(":")
    good = frames(echo.address)
    waiting = [socket.create_connection((host, int(port))) for _ in range(100)]
    for i, connection in enumerate(waiting):
        connection.sendall(good[: i * len(good) // 100])
    assert ask(echo.address) == 2
    for connection in waiting:
        connection.close()
    wait_until(lambda: echo.in_flight == 0)


@pytest.mark.parametrize(
    "method",
    [
        GENERATE,
        f"/{SERVICE}/GetServerInfo",
        "/grpc.health.v1.Health/Check",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ],
)
def test_calls_that_send_no_request_hold_up_nobody_with_a_token(method: str) -> None:
    limits = ServiceLimits(max_requests=2)
    server = serve(EchoGenerator(), port=0, limits=limits, security=ServiceSecurity(token_key=KEY))
    over = threading.Event()

    def nothing() -> Iterator[bytes]:
        over.wait()
        yield b""

    with grpc.insecure_channel(server.address) as channel:
        calls = [channel.stream_stream(method, bytes, bytes)(nothing(), timeout=20) for _ in range(30)]
        if SERVICE in method:
            for call in calls:
                with pytest.raises(grpc.RpcError) as caught:
                    next(call)
                assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        else:
            time.sleep(0.2)  # they have arrived
        assert ask(server.address, token=lambda: TokenIssuer(KEY, 1, 60).token(2)) == 2
        over.set()
    server.stop(grace=0)


def test_a_caller_that_sends_no_request_loses_its_place_after_a_while() -> None:
    server = serve(EchoGenerator(), port=0, limits=ServiceLimits(max_requests=1, stall_seconds=0.3))
    over = threading.Event()

    def nothing() -> Iterator[bytes]:
        over.wait()
        yield b""

    with grpc.insecure_channel(server.address) as channel:
        call = channel.stream_stream(GENERATE, bytes, bytes)(nothing())
        wait_until(lambda: server.in_flight == 1)
        assert ask(server.address) == 2
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
        over.set()
    assert caught.value.code() == grpc.StatusCode.CANCELLED
    server.stop(grace=0)


def test_a_client_that_vanishes_without_a_word_gives_its_place_back() -> None:
    generator = Patient()
    limits = ServiceLimits(max_requests=1, keepalive_seconds=1.0)
    server = serve(generator, port=0, limits=limits)
    proxy = Proxy(server.address)
    with futures.ThreadPoolExecutor() as pool:
        lost = pool.submit(ask, proxy.address)
        wait_until(lambda: generator.under_way == 1)
        proxy.freeze()
        wait_until(lambda: server.in_flight == 0 and generator.given_up == 1)
        generator.go.set()
        assert ask(server.address) == 2
        proxy.close()
        assert isinstance(lost.exception(), LLMUnavailable)
    server.stop(grace=0)


def test_a_client_that_does_not_read_loses_its_place_after_a_while() -> None:
    generator = Patient(MAX_RATIONALE_CHARS)
    generator.go.set()
    server = serve(generator, port=0, limits=ServiceLimits(max_requests=1, stall_seconds=0.5))
    with grpc.insecure_channel(server.address) as channel:
        unread = channel.unary_stream(GENERATE, bytes, bytes)(request_bytes(3000))
        wait_until(lambda: generator.under_way == 1)
        wait_until(lambda: server.in_flight == 0)
        assert ask(server.address) == 2
        with pytest.raises(grpc.RpcError) as caught:
            list(unread)
    assert caught.value.code() == grpc.StatusCode.CANCELLED
    server.stop(grace=0)


def test_a_request_that_takes_too_long_is_ended() -> None:
    generator = Patient()
    server = serve(generator, port=0, limits=ServiceLimits(max_seconds=0.3))
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
        list(channel.unary_stream(GENERATE, bytes, bytes)(request_bytes()))
    assert caught.value.code() == grpc.StatusCode.CANCELLED
    wait_until(lambda: generator.given_up == 1 and server.in_flight == 0)
    server.stop(grace=0)


def test_a_cancelled_request_stops_the_llm_and_frees_its_place() -> None:
    generator = Patient()
    server = serve(generator, port=0, limits=ServiceLimits(max_requests=1))
    with grpc.insecure_channel(server.address) as channel:
        for i in range(1, 4):
            call = channel.unary_stream(GENERATE, bytes, bytes)(request_bytes())
            wait_until(lambda i=i: generator.under_way == i)  # type: ignore[misc]
            call.cancel()  # type: ignore[no-untyped-call]
            wait_until(lambda i=i: generator.given_up == i and server.in_flight == 0)  # type: ignore[misc]
    server.stop(grace=0)


def test_one_tenant_cannot_take_the_places_of_the_others() -> None:
    generator = Patient()
    limits = ServiceLimits(max_requests=4, max_requests_per_tenant=2)
    server = serve(generator, port=0, limits=limits, security=ServiceSecurity(token_key=KEY))
    greedy, modest = (lambda node=node: TokenIssuer(KEY, 1, 60).token(node) for node in (1, 2))
    with futures.ThreadPoolExecutor() as pool:
        held = [pool.submit(ask, server.address, token=greedy) for _ in range(2)]
        wait_until(lambda: generator.under_way == 2)
        metadata = (("authorization", f"Bearer {greedy()}"),)
        with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
            list(channel.unary_stream(GENERATE, bytes, bytes)(request_bytes(), metadata=metadata))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "of this run and node" in caught.value.details()
        held.append(pool.submit(ask, server.address, token=modest))
        wait_until(lambda: generator.under_way == 3)
        held.append(pool.submit(ask, server.address, token=greedy))  # waits, as it is told, and is answered later
        generator.go.set()
        assert [call.result() for call in held] == [2, 2, 2, 2]
    server.stop(grace=0)


def test_no_more_is_read_of_a_request_once_a_prompt_is_too_long() -> None:
    counted: list[int] = []

    class Counting(EchoGenerator):
        def count_tokens(self, prompts: Sequence[PerturbedPrompt]) -> list[int]:
            counted.append(len(prompts))
            return [5] * len(prompts)

    server = serve(Counting(), port=0, limits=ServiceLimits(max_prompt_tokens=4))
    with pytest.raises(MessageError):
        ask(server.address, 3000)
    assert sum(counted) < 100
    server.stop(grace=0)


def cancel_while_it_is_read(server: RunningServer, reached: threading.Event, go: threading.Event) -> None:
    """Send 3,000 prompts, cancel the call when some of them are read, and let the reading go on."""
    with grpc.insecure_channel(server.address) as channel:
        call = channel.unary_stream(GENERATE, bytes, bytes)(request_bytes(3000))
        assert reached.wait(30)
        call.cancel()  # type: ignore[no-untyped-call]
        wait_until(lambda: server.in_flight == 0)
        go.set()


def test_no_more_is_counted_of_a_request_that_was_cancelled() -> None:
    counted: list[int] = []
    reached, go = threading.Event(), threading.Event()

    class Counting(EchoGenerator):
        def count_tokens(self, prompts: Sequence[PerturbedPrompt]) -> list[int]:
            counted.append(len(prompts))
            reached.set()
            assert go.wait(30)
            return [5] * len(prompts)

    server = serve(Counting(), port=0)
    cancel_while_it_is_read(server, reached, go)
    assert ask(server.address) == 2
    assert counted == [64, 2]
    server.stop(grace=0)


def test_no_more_is_read_of_a_request_that_was_cancelled() -> None:
    """One tenant opens and cancels large requests; threads and tokenizer are soon free for others."""
    rendered: list[int] = []
    reached, go = threading.Event(), threading.Event()

    class Watched(Instruction):
        def render(self, tokenizer: Any, prompt: PerturbedPrompt) -> str:
            rendered.append(prompt.ordinal)
            if len(rendered) == 100:
                reached.set()
                assert go.wait(30)
            return super().render(tokenizer, prompt)

    watched = Watched(EVERYDAY.system, EVERYDAY.demonstrations)
    scheduler = Scheduler(make_llama(), make_tokenizer(), name="tiny", instruction=watched, batch_size=8)
    server = serve(scheduler, port=0)
    rendered.clear()
    cancel_while_it_is_read(server, reached, go)
    assert ask(server.address) == 2
    server.stop(grace=0)
    scheduler.close()
    assert len(rendered) <= 128 + 2
    assert scheduler.stats().tokens_total == 2 * SETTINGS.max_new_tokens, "none of them was written"


def test_requests_of_a_concurrent_generator_do_not_wait_for_each_other() -> None:
    generator = Patient()
    server = serve(generator, port=0)
    with futures.ThreadPoolExecutor() as pool:
        calls = [pool.submit(ask, server.address) for _ in range(5)]
        wait_until(lambda: generator.under_way == 5)
        generator.go.set()
        assert [call.result() for call in calls] == [2] * 5
    server.stop(grace=0)


def test_a_full_queue_of_the_llm_is_told_with_a_hint_that_clients_follow() -> None:
    model, held = make_llama(), Gate()
    scheduler = Scheduler(model, make_tokenizer(), name="tiny", instruction=EVERYDAY, batch_size=1, max_queued=3)
    server = serve(scheduler, port=0)
    held.close_at(model, step=2)
    with futures.ThreadPoolExecutor() as pool, grpc.insecure_channel(server.address) as channel:
        first = pool.submit(ask, server.address, 3)
        assert held.reached.wait(30)  # one prompt is being written, two wait
        with pytest.raises(grpc.RpcError) as caught:
            list(channel.unary_stream(GENERATE, bytes, bytes)(request_bytes(2)))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert dict(caught.value.trailing_metadata())["grpc-retry-pushback-ms"] == "2000"
        second = pool.submit(ask, server.address, 2)
        wait_until(lambda: scheduler.stats().rejected_total == 4)
        held.open.set()
        assert (first.result(), second.result()) == (3, 2)
    server.stop(grace=0)
