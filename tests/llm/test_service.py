"""The gRPC service on loopback: answers, health, refusals, cancellation, and what it never says."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from hypothesis import given, settings
from hypothesis import strategies as st

from pdss_fl.errors import LLMFailed, LLMUnavailable, SettingError
from pdss_fl.llm.calls import ServiceLimits
from pdss_fl.llm.protocol import never
from pdss_fl.llm.remote import RemoteGenerator
from pdss_fl.llm.service import RunningServer, ServiceSecurity, serve
from pdss_fl.llm.servicer import SERVICE
from pdss_fl.messages import (
    MAX_RATIONALE_CHARS,
    Finish,
    GenerationSettings,
    PromptBatch,
    Rationale,
    ServerInfo,
)
from pdss_fl.proto import distillation_pb2 as pb
from tests.llm.helpers import make_batch, make_generator

SETTINGS = GenerationSettings(8)
GENERATE = f"/{SERVICE}/GenerateRationales"


def request_bytes(batch: PromptBatch | None = None, asked: GenerationSettings = SETTINGS) -> bytes:
    message = pb.GenerateRationalesRequest(batch=(batch or make_batch(2)).to_proto(), settings=asked.to_proto())
    return message.SerializeToString()


def ask(address: str, data: bytes, timeout: float = 30.0) -> list[bytes]:
    """Send bytes as they are and return the bytes of all answers."""
    with grpc.insecure_channel(address) as channel:
        return list(channel.unary_stream(GENERATE, bytes, bytes)(data, timeout=timeout))


def refusal(address: str, data: bytes) -> grpc.Call:
    with pytest.raises(grpc.RpcError) as caught:
        ask(address, data)
    return caught.value  # type: ignore[return-value]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    limits = ServiceLimits(max_prompts=8, max_request_bytes=20_000, max_new_tokens=16, max_prompt_tokens=1810)
    running = serve(make_generator(), port=0, limits=limits)
    yield running
    running.stop(grace=0)


def test_answers_over_the_wire_as_in_process(server: RunningServer) -> None:
    remote, batch = RemoteGenerator(server.address), make_batch(7)
    expected = {r.ordinal: r for r in make_generator().generate(batch, SETTINGS)}
    assert {r.ordinal: r for r in remote.generate(batch, SETTINGS)} == expected
    remote.close()


def test_says_what_it_is_with_its_own_limits(server: RunningServer) -> None:
    info = RemoteGenerator(server.address).info
    assert (info.model, info.dtype) == ("tiny", "float32")
    assert (info.max_prompts, info.max_request_bytes, info.max_new_tokens) == (8, 20_000, 16)


def test_caps_what_is_asked_for(server: RunningServer) -> None:
    remote = RemoteGenerator(server.address)
    assert {r.tokens for r in remote.generate(make_batch(4), GenerationSettings(10**6, ()))} == {16}


def test_health_and_reflection(server: RunningServer) -> None:
    with grpc.insecure_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "pdss.v1.RationaleService"):
            reply = health.Check(health_pb2.HealthCheckRequest(service=name))
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            health.Check(health_pb2.HealthCheckRequest(service="pdss.v1.Other"))
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        listing = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        )
        names = {service.name for service in next(listing).list_services_response.service}
    assert {"pdss.v1.RationaleService", "grpc.health.v1.Health"} <= names


def edited(edit: Callable[[pb.GenerateRationalesRequest], object]) -> bytes:
    message = pb.GenerateRationalesRequest.FromString(request_bytes())
    edit(message)
    return message.SerializeToString()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "carries no prompt batch"),
        (b"\xff" * 40, "truncated or damaged"),
        (request_bytes()[:-3], "truncated or damaged"),
        (edited(lambda m: m.ClearField("batch")), "carries no prompt batch"),
        (edited(lambda m: m.ClearField("settings")), "0 new tokens"),
        (edited(lambda m: m.settings.stop.append("")), "stop texts"),
        (edited(lambda m: m.settings.stop.append("s" * 201)), "stop texts"),
        (edited(lambda m: m.settings.stop.extend("abcdefghijklmnopq")), "stop texts"),
        (edited(lambda m: setattr(m.batch, "schema_version", 7)), "schema version 7"),
        (edited(lambda m: m.batch.ClearField("prompts")), "holds nothing"),
        (edited(lambda m: m.batch.ClearField("privacy")), "no privacy statement"),
        (edited(lambda m: setattr(m.batch.prompts[0], "ordinal", 1)), "ordinals"),
        (edited(lambda m: setattr(m.batch.prompts[1], "ordinal", 5)), "ordinals"),
        (edited(lambda m: setattr(m.batch.prompts[1], "question", "")), "prompt 1 has no question"),
        (edited(lambda m: setattr(m.batch.prompts[1], "question", "q" * 9000)), "9000 characters"),
        (edited(lambda m: setattr(m.batch.prompts[1], "question", "robin kettle " * 600)), "context of 2048"),
        (edited(lambda m: m.batch.prompts[1].choices.extend(["robin kettle " * 600] * 2)), "accepts 1810"),
        (request_bytes(make_batch(9)), "9 prompts"),
    ],
)
def test_refuses_what_is_not_a_request_and_goes_on(server: RunningServer, data: bytes, text: str) -> None:
    error = refusal(server.address, data)
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert text in error.details()
    assert "kettle" not in error.details()
    assert len(ask(server.address, request_bytes())) == 2


def test_refuses_too_many_bytes_and_goes_on(server: RunningServer) -> None:
    error = refusal(server.address, b"\x00" * 20_001)
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len(ask(server.address, request_bytes())) == 2


@given(st.binary(max_size=200))
@settings(max_examples=40, deadline=None)
def test_no_bytes_at_all_make_it_fail(server: RunningServer, data: bytes) -> None:
    assert refusal(server.address, data).code() == grpc.StatusCode.INVALID_ARGUMENT


def test_what_the_server_is_is_told_whatever_is_sent_and_none_of_it_is_read(server: RunningServer) -> None:
    with grpc.insecure_channel(server.address) as channel:
        call = channel.unary_unary(f"/{SERVICE}/GetServerInfo", bytes, bytes)
        assert call(b"\xff\xff") == call(b"")


class Held:
    """A generator that serves one request after the other, the first only when it is released or cancelled."""

    info = ServerInfo("held", "0", "none")

    def __init__(self) -> None:
        self.started, self.released = threading.Event(), threading.Event()
        self.sizes: list[int] = []
        self._turn = threading.Lock()

    def generate(
        self,
        batch: PromptBatch,
        settings: GenerationSettings,
        is_cancelled: Callable[[], bool] = never,
        tenant: str = "",
    ) -> Iterator[Rationale]:
        with self._turn:
            if is_cancelled():
                return
            self.sizes.append(len(batch.prompts))
            self.started.set()
            while len(self.sizes) == 1 and not (is_cancelled() or self.released.wait(0.01)):
                pass
            for prompt in batch.prompts:
                yield Rationale(prompt.ordinal, "x" * MAX_RATIONALE_CHARS, Finish.STOP, 1)


@pytest.fixture
def held() -> Iterator[tuple[Held, RunningServer]]:
    generator = Held()
    running = serve(generator, port=0, limits=ServiceLimits(max_requests=2))
    yield generator, running
    generator.released.set()
    running.stop(grace=0)


def test_cancellation_frees_the_llm(held: tuple[Held, RunningServer]) -> None:
    generator, server = held
    with grpc.insecure_channel(server.address) as channel:
        first = channel.unary_stream(GENERATE, bytes, bytes)(request_bytes())
        assert generator.started.wait(30)
        first.cancel()  # type: ignore[no-untyped-call]
        assert len(ask(server.address, request_bytes())) == 2
    assert generator.sizes == [2, 2]


def deadline_passes(address: str, prompts: int) -> bool:
    """Send a request that is left soon; false if there was no place for it yet."""
    with pytest.raises(grpc.RpcError) as caught:
        ask(address, request_bytes(make_batch(prompts)), timeout=0.1)
    assert caught.value.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)
    return bool(caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED)


def test_waiting_requests_honour_their_deadlines_and_never_start(held: tuple[Held, RunningServer]) -> None:
    generator, server = held
    with futures.ThreadPoolExecutor() as pool:
        first = pool.submit(ask, server.address, request_bytes())
        assert generator.started.wait(30)
        left = 0
        while left < 12:  # more than the server has threads
            left += deadline_passes(server.address, prompts=3)
        RemoteGenerator(server.address).info  # noqa: B018 - answers, so the threads are free
        time.sleep(1)  # the server's clock sees the last deadline a little later
        generator.released.set()
        assert len(first.result()) == 2
        assert len(ask(server.address, request_bytes(make_batch(4)))) == 4
    assert generator.sizes == [2, 4]


def test_more_requests_than_may_wait_are_refused_with_a_hint(held: tuple[Held, RunningServer]) -> None:
    generator, server = held

    def outcome(_: int) -> grpc.Call | int:
        try:
            return len(ask(server.address, request_bytes()))
        except grpc.RpcError as error:
            RemoteGenerator(server.address).info  # noqa: B018 - short calls are still answered
            generator.released.set()
            return error  # type: ignore[return-value]

    with futures.ThreadPoolExecutor() as pool:
        outcomes = list(pool.map(outcome, range(3)))
    assert outcomes.count(2) == 2
    (refused,) = (found for found in outcomes if not isinstance(found, int))
    assert refused.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert dict(refused.trailing_metadata())["grpc-retry-pushback-ms"] == "2000"


def test_a_client_that_does_not_read_holds_nobody_up() -> None:
    generator = Held()
    generator.released.set()
    server = serve(generator, port=0)
    with grpc.insecure_channel(server.address) as channel:
        unread = channel.unary_stream(GENERATE, bytes, bytes)(request_bytes(make_batch(3000)))
        assert generator.started.wait(30)
        assert len(ask(server.address, request_bytes())) == 2
        unread.cancel()  # type: ignore[no-untyped-call]
    server.stop(grace=0)


class Failing:
    """A generator that fails with an error that quotes a prompt."""

    info = ServerInfo("failing", "0", "none")

    def __init__(self, error: Exception) -> None:
        self.error = error

    def generate(
        self,
        batch: PromptBatch,
        settings: GenerationSettings,
        is_cancelled: Callable[[], bool] = never,
        tenant: str = "",
    ) -> Iterator[Rationale]:
        yield Rationale(0, "first", Finish.STOP, 1)
        raise self.error


@pytest.mark.parametrize(
    ("error", "code", "details"),
    [
        (RuntimeError("robin secret"), grpc.StatusCode.INTERNAL, "the LLM failed; see the server's log"),
        (LLMUnavailable("it is gone", "secret"), grpc.StatusCode.UNAVAILABLE, "it is gone"),
        (LLMFailed("it fails", "secret"), grpc.StatusCode.INTERNAL, "it fails"),
    ],
)
def test_a_failing_llm_tells_no_secrets(
    error: Exception, code: grpc.StatusCode, details: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(Failing(error), port=0)
    for _ in range(2):
        found = refusal(server.address, request_bytes())
        assert (found.code(), found.details()) == (code, details)
    server.stop(grace=0)
    assert "secret" not in caplog.text
    assert ("RuntimeError" in caplog.text) == isinstance(error, RuntimeError)


def test_nothing_that_a_client_sends_is_logged(server: RunningServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    ask(server.address, request_bytes())
    refusal(server.address, edited(lambda m: setattr(m.batch.prompts[1], "question", "kettle " * 2000)))
    for told in ("OK: 2 rationales", "INVALID_ARGUMENT: 0 rationales"):
        assert told in caplog.text, "what the server does log is seen here"
    assert "kettle" not in caplog.text
    assert "robin" not in caplog.text


def test_a_stopped_server_is_gone() -> None:
    server = serve(make_generator(), port=0)
    server.stop(grace=0)
    server.wait()
    with pytest.raises(LLMUnavailable):
        RemoteGenerator(server.address).info  # noqa: B018


def test_a_port_in_use_is_named(server: RunningServer) -> None:
    port = int(server.address.rpartition(":")[2])
    with pytest.raises(SettingError, match=rf"--port = {port} .* in use"):
        serve(make_generator(), port=port)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "llm.example.org"])
def test_plain_text_outside_loopback_must_be_allowed(host: str) -> None:
    with pytest.raises(SettingError, match="--insecure"):
        ServiceSecurity().check(host)


def test_plain_text_outside_loopback_with_permission_has_no_reflection() -> None:
    server = serve(make_generator(), host="0.0.0.0", port=0, security=ServiceSecurity(insecure=True))
    with grpc.insecure_channel(server.address.replace("0.0.0.0", "127.0.0.1")) as channel:
        listing = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        )
        with pytest.raises(grpc.RpcError) as caught:
            next(listing)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    server.stop(grace=0)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.8.0.1"])
def test_loopback_needs_no_permission(host: str) -> None:
    ServiceSecurity().check(host)
