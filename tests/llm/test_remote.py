"""The gRPC client against servers that are absent, wrong, hostile or busy."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from inspect import signature
from itertools import pairwise
from pathlib import Path

import grpc
import pytest

from pdss_fl.config import RunSettings
from pdss_fl.errors import LLMUnavailable, MessageError
from pdss_fl.llm.openai import OpenAIGenerator
from pdss_fl.llm.remote import RemoteGenerator
from pdss_fl.messages import MAX_RATIONALE_CHARS, Finish, GenerationSettings, Rationale
from pdss_fl.proto import distillation_pb2 as pb
from pdss_fl.proto.distillation_pb2_grpc import (
    RationaleServiceServicer,
    add_RationaleServiceServicer_to_server,
)
from tests.llm.helpers import make_batch

SETTINGS = GenerationSettings(8)
Answer = Callable[[grpc.ServicerContext], Iterator[pb.Rationale]]


class Scripted(RationaleServiceServicer):
    """A real server that answers as a test says."""

    def __init__(self, answer: Answer, info: pb.ServerInfo) -> None:
        self.answer, self.info = answer, info

    def GetServerInfo(self, request: pb.GetServerInfoRequest, context: grpc.ServicerContext) -> pb.ServerInfo:
        return self.info

    def GenerateRationales(
        self, request: pb.GenerateRationalesRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.GenerateRationalesResponse]:
        for rationale in self.answer(context):
            yield pb.GenerateRationalesResponse(rationale=rationale)


Connect = Callable[..., RemoteGenerator]


@pytest.fixture
def connect() -> Iterator[Connect]:
    servers: list[grpc.Server] = []

    def start(answer: Answer, timeout: float = 30.0, retries: int = 8, **info: object) -> RemoteGenerator:
        told = {"schema_version": 1, "model": "m", "max_prompts": 10, "max_request_bytes": 4000} | info
        server = grpc.server(futures.ThreadPoolExecutor(4))
        add_RationaleServiceServicer_to_server(Scripted(answer, pb.ServerInfo(**told)), server)  # type: ignore[arg-type, no-untyped-call]
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return RemoteGenerator(f"127.0.0.1:{port}", timeout, retries=retries, backoff=0.01)

    yield start
    for server in servers:
        server.stop(0).wait()


def ordinals(*numbers: int) -> Answer:
    return lambda _: iter([pb.Rationale(ordinal=n, text="text", tokens=1) for n in numbers])


def run(remote: RemoteGenerator, prompts: int = 3) -> list[Rationale]:
    return list(remote.generate(make_batch(prompts), SETTINGS))


def test_any_order_is_accepted(connect: Connect) -> None:
    assert [r.ordinal for r in run(connect(ordinals(2, 0, 1)))] == [2, 0, 1]


@pytest.mark.parametrize(
    ("sent", "problem"),
    [
        ((0, 1), "left 1 of 3 prompts"),
        ((), "left 3 of 3 prompts"),
        ((0, 1, 1, 2), "ordinal 1, which was answered before"),
        ((0, 1, 2, 3), "ordinal 3, which"),
        ((0, 1, 2, 2**32 - 1), "ordinal 4294967295, which"),
    ],
)
def test_wrong_ordinals_are_refused(connect: Connect, sent: tuple[int, ...], problem: str) -> None:
    with pytest.raises(MessageError, match=problem):
        run(connect(ordinals(*sent)))


def test_an_endless_answer_is_cut_off(connect: Connect) -> None:
    def endless(context: grpc.ServicerContext) -> Iterator[pb.Rationale]:
        while context.is_active():
            yield pb.Rationale(ordinal=0)

    with pytest.raises(MessageError, match="ordinal 0"):
        run(connect(endless))


def test_text_is_capped_and_cleaned(connect: Connect) -> None:
    hostile = pb.Rationale(ordinal=0, text="\x1b[31mred\n\u202e" + "x" * 10_000, finish_reason=99, tokens=3)  # type: ignore[arg-type]
    (rationale,) = run(connect(lambda _: iter([hostile])), prompts=1)
    assert rationale.text.startswith(" [31mred  x")
    assert rationale.text.isprintable()
    assert len(rationale.text) == MAX_RATIONALE_CHARS
    assert (rationale.finish, rationale.tokens) == (Finish.STOP, 3)


def test_another_schema_version_is_refused(connect: Connect) -> None:
    with pytest.raises(MessageError, match="schema version 2; this side speaks 1"):
        run(connect(ordinals(0), schema_version=2), prompts=1)


def test_the_servers_name_is_capped_and_cleaned(connect: Connect) -> None:
    info = connect(ordinals(), model="\x1b[2J" + "m" * 1000).info
    assert info.model.isprintable()
    assert len(info.model) == 200


def test_the_servers_limits_are_kept_before_anything_is_sent(connect: Connect) -> None:
    remote = connect(ordinals(0))
    with pytest.raises(MessageError, match="batch of 11 prompts"):
        remote.generate(make_batch(11), SETTINGS)
    with pytest.raises(MessageError, match="limits of 10 prompts and 4000 bytes"):
        remote.generate(make_batch(1), GenerationSettings(8, ("s" * 4000,)))


def abort(code: grpc.StatusCode, details: str = "secret\nof the server") -> Answer:
    def answer(context: grpc.ServicerContext) -> Iterator[pb.Rationale]:
        yield pb.Rationale(ordinal=0)
        context.abort(code, details)

    return answer


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        (grpc.StatusCode.INTERNAL, "failed with INTERNAL"),
        (grpc.StatusCode.UNAUTHENTICATED, "does not accept the token"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "busy"),
        (grpc.StatusCode.UNIMPLEMENTED, "not an LLM server"),
    ],
)
def test_a_failing_server_is_named_without_its_words(connect: Connect, code: grpc.StatusCode, problem: str) -> None:
    with pytest.raises(LLMUnavailable, match=problem) as caught:
        run(connect(abort(code)))
    assert caught.value.public.startswith("llm.address = '127.0.0.1:")
    assert "secret" not in caught.value.public
    assert caught.value.private == "secret of the server"


def test_a_refused_batch_is_a_message_error(connect: Connect) -> None:
    with pytest.raises(MessageError, match="refused the request"):
        run(connect(abort(grpc.StatusCode.INVALID_ARGUMENT)))


def test_a_slow_server_is_left_at_the_timeout(connect: Connect) -> None:
    def slow(context: grpc.ServicerContext) -> Iterator[pb.Rationale]:
        over = threading.Event()
        context.add_callback(over.set)
        over.wait()
        yield pb.Rationale()

    with pytest.raises(LLMUnavailable, match=r"did not answer in time; raise llm\.timeout"):
        run(connect(slow, timeout=0.5))


def test_a_busy_server_is_asked_again_after_its_hint(connect: Connect) -> None:
    """The client's own pause is 10 ms at first; what the server asks for is what the server sees."""
    calls: list[float] = []

    def busy_twice(context: grpc.ServicerContext) -> Iterator[pb.Rationale]:
        calls.append(time.monotonic())
        if len(calls) < 3:
            context.set_trailing_metadata((("grpc-retry-pushback-ms", "500"),))
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "later")
        yield pb.Rationale(ordinal=0)

    assert len(run(connect(busy_twice), prompts=1)) == 1
    assert len(calls) == 3
    assert all(later - earlier >= 0.5 for earlier, later in pairwise(calls))


@pytest.mark.parametrize(("hint", "most"), [("60000", 1), ("0", 11)])
def test_no_hint_makes_it_ask_in_a_rush_or_wait_beyond_the_timeout(connect: Connect, hint: str, most: int) -> None:
    calls: list[float] = []

    def busy(context: grpc.ServicerContext) -> Iterator[pb.Rationale]:
        calls.append(time.monotonic())
        context.set_trailing_metadata((("grpc-retry-pushback-ms", hint),))
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "later")
        yield pb.Rationale()

    remote = connect(busy, timeout=1.0)
    assert remote.info.model == "m"
    with pytest.raises(LLMUnavailable, match=r"is busy|in time" if hint == "0" else "is busy"):
        run(remote, prompts=1)
    assert 0 < len(calls) <= most


def test_leaving_early_ends_the_call(connect: Connect) -> None:
    ended = threading.Semaphore(0)

    def patient(context: grpc.ServicerContext) -> Iterator[pb.Rationale]:
        over = threading.Event()
        context.add_callback(over.set)
        context.add_callback(ended.release)
        yield pb.Rationale(ordinal=0)
        over.wait()

    remote = connect(patient)
    assert list(remote.generate(make_batch(2), SETTINGS, is_cancelled=lambda: True)) == []
    assert ended.acquire(timeout=20)
    answers = remote.generate(make_batch(2), SETTINGS)
    assert next(answers).ordinal == 0
    answers.close()  # type: ignore[attr-defined]
    assert ended.acquire(timeout=20)


def test_nobody_at_the_address() -> None:
    remote = RemoteGenerator("127.0.0.1:1", timeout=20.0)
    with pytest.raises(LLMUnavailable, match=r"llm\.address = '127\.0\.0\.1:1' does not answer; start `pdss serve`"):
        run(remote)


def test_another_kind_of_server() -> None:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with pytest.raises(LLMUnavailable, match="is not an LLM server of pdss-fl"):
        run(RemoteGenerator(f"127.0.0.1:{port}"))
    server.stop(0).wait()


def test_a_client_needs_no_model_library() -> None:
    program = (
        "import sys, pdss_fl.llm.remote; "
        "print({'torch', 'transformers', 'pdss_fl.llm.service', 'pdss_fl.llm.servicer'} & set(sys.modules))"
    )
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"


def test_one_meaning_of_the_timeout_everywhere() -> None:
    makers = (RemoteGenerator, OpenAIGenerator)
    assert {signature(maker).parameters["timeout"].default for maker in makers} == {RunSettings().llm.timeout}
