"""A network and a server that fail in the middle: nothing is lost, and nothing is answered twice."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pdss_fl.errors import LLMUnavailable
from pdss_fl.llm.calls import ServiceLimits
from pdss_fl.llm.generator import load_local_generator
from pdss_fl.llm.protocol import never
from pdss_fl.llm.remote import RemoteGenerator
from pdss_fl.llm.service import RunningServer, serve
from pdss_fl.messages import Finish, GenerationSettings, PromptBatch, Rationale, ServerInfo
from tests.harness import EchoGenerator
from tests.llm.helpers import make_batch
from tests.llm.network import Proxy
from tests.llm.test_hostile import Patient, wait_until

ROOT = Path(__file__).parents[2]
SETTINGS = GenerationSettings(8)


def echoed(batch: PromptBatch) -> dict[int, str]:
    return {p.ordinal: " ".join((p.question, *p.choices)) for p in batch.prompts}


class Halting:
    """Answers ``after`` prompts of its first request, then waits until it is let go or the call is over."""

    info = ServerInfo("halting", "0", "none")

    def __init__(self, after: int) -> None:
        self.after, self.go = after, threading.Event()
        self.sizes: list[int] = []

    def generate(
        self,
        batch: PromptBatch,
        settings: GenerationSettings,
        is_cancelled: Callable[[], bool] = never,
        tenant: str = "",
    ) -> Iterator[Rationale]:
        self.sizes.append(len(batch.prompts))
        first = len(self.sizes) == 1
        for i, prompt in enumerate(reversed(batch.prompts)):
            while first and i == self.after and not (is_cancelled() or self.go.wait(0.01)):
                pass
            yield Rationale(prompt.ordinal, echoed(batch)[prompt.ordinal], Finish.STOP, 1)


def collected(
    remote: RemoteGenerator, batch: PromptBatch, on_each: Callable[[int], None] = lambda _: None
) -> list[Rationale]:
    found = []
    for rationale in remote.generate(batch, SETTINGS):
        found.append(rationale)
        on_each(len(found))
    return found


def assert_each_once(found: list[Rationale], batch: PromptBatch) -> None:
    assert sorted(r.ordinal for r in found) == list(range(len(batch.prompts)))
    assert {r.ordinal: r.text for r in found} == echoed(batch)


def test_a_connection_that_is_cut_costs_nothing_and_answers_nothing_twice() -> None:
    generator, batch = Halting(after=30), make_batch(100)
    server = serve(generator, port=0)
    proxy = Proxy(server.address)
    remote = RemoteGenerator(proxy.address, 60.0, backoff=0.01)
    found = collected(remote, batch, lambda n: proxy.cut() if n == 30 else None)
    assert_each_once(found, batch)
    assert generator.sizes == [100, 70], "asked again for what was unanswered, and for no more"
    assert proxy.connections >= 2
    proxy.close()
    server.stop(grace=0)


@pytest.mark.parametrize("cut_after", [1_000, 3_000, 6_000])
def test_a_cut_in_the_middle_of_a_frame_costs_nothing_either(cut_after: int) -> None:
    batch = make_batch(100)
    server = serve(EchoGenerator(), port=0)
    proxy = Proxy(server.address, cut_after)
    assert_each_once(collected(RemoteGenerator(proxy.address, 60.0, backoff=0.01), batch), batch)
    assert proxy.connections == 2
    proxy.close()
    server.stop(grace=0)


def test_a_connection_that_always_breaks_is_given_up() -> None:
    batch, generator = make_batch(10), Patient()
    server = serve(generator, port=0)
    proxy = Proxy(server.address)
    remote = RemoteGenerator(proxy.address, 60.0, retries=3, backoff=0.01)
    assert remote.info.model == "patient"
    with futures.ThreadPoolExecutor() as pool:
        lost = pool.submit(collected, remote, batch)
        for attempt in range(1, 5):
            wait_until(lambda attempt=attempt: generator.under_way == attempt)  # type: ignore[misc]
            proxy.cut()
        assert isinstance(lost.exception(), LLMUnavailable)
    assert generator.under_way == 4, "the first attempt and three more"
    proxy.close()
    server.stop(grace=0)


def test_a_stopping_server_finishes_what_is_under_way_and_says_that_it_stops() -> None:
    generator, batch = Halting(after=5), make_batch(20)
    server = serve(generator, port=0)
    remote = RemoteGenerator(server.address, 60.0)
    halfway = threading.Event()
    with futures.ThreadPoolExecutor() as pool, grpc.insecure_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        watched = health.Watch(health_pb2.HealthCheckRequest())
        assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
        answers = pool.submit(collected, remote, batch, lambda n: halfway.set() if n == 5 else None)
        assert halfway.wait(30)
        stopped = pool.submit(server.stop, 30.0)
        assert next(watched).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(LLMUnavailable):
            collected(RemoteGenerator(server.address, 1.0), make_batch(1))
        generator.go.set()
        assert_each_once(answers.result(), batch)
        stopped.result()
    assert generator.sizes == [20]


def test_what_a_stopping_server_cannot_finish_the_next_one_does() -> None:
    first, second, batch = Halting(after=5), EchoGenerator(), make_batch(20)
    server = serve(first, port=0)
    port = int(server.address.rpartition(":")[2])
    started: list[RunningServer] = []

    def replace_server(answered: int) -> None:
        if answered == 5:
            server.stop(grace=0.1)
            started.append(serve(second, port=port))

    remote = RemoteGenerator(server.address, 60.0, backoff=0.05)
    assert_each_once(collected(remote, batch, replace_server), batch)
    assert [len(b.prompts) for b in second.seen] == [15]
    started[0].stop(grace=0)


def test_a_server_is_not_serving_while_it_loads_and_clients_wait_for_it() -> None:
    server = serve(None, port=0)
    batch = make_batch(4)
    with futures.ThreadPoolExecutor() as pool, grpc.insecure_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        asked = health_pb2.HealthCheckRequest()
        assert health.Check(asked).status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/pdss.v1.RationaleService/GetServerInfo", bytes, bytes)(b"")
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        early = pool.submit(collected, RemoteGenerator(server.address, 60.0, retries=0), batch)
        server.ready(EchoGenerator())
        assert health.Check(asked).status == health_pb2.HealthCheckResponse.SERVING
        assert_each_once(early.result(), batch)
    server.stop(grace=0)


def test_a_busy_server_is_asked_until_the_timeout_and_an_oversized_request_gets_no_hint_to_retry() -> None:
    held = Patient()
    server = serve(held, port=0, limits=ServiceLimits(max_requests=1, max_request_bytes=5_000))
    with futures.ThreadPoolExecutor() as pool:
        pool.submit(collected, RemoteGenerator(server.address, 60.0), make_batch(1))
        wait_until(lambda: server.in_flight == 1)
        with pytest.raises(LLMUnavailable, match=r"busy|in time"):
            collected(RemoteGenerator(server.address, 2.5, retries=0), make_batch(1))
        held.go.set()
        wait_until(lambda: server.in_flight == 0)
        with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
            next(channel.unary_stream("/pdss.v1.RationaleService/GenerateRationales", bytes, bytes)(b"x" * 5_001))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "grpc-retry-pushback-ms" not in dict(caught.value.trailing_metadata() or ())
    server.stop(grace=0)


# Real processes: `pdss serve` with a tiny model, killed and started again.


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_server(tiny: Path, port: int, metrics: int) -> subprocess.Popen[str]:
    command = [
        sys.executable, "-m", "pdss_fl.cli", "serve", "--model", str(tiny), "--dtype", "float32",
        "--port", str(port), "--metrics-port", str(metrics), "--batch-size", "8",
    ]  # fmt: skip
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def counted(metrics: int, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(name + " ")))


def test_a_server_that_is_killed_and_started_again_in_the_middle_is_asked_for_the_rest(tiny: Path) -> None:
    port, metrics, batch = free_port(), free_port(), make_batch(150)
    settings = GenerationSettings(12, ())
    expected = {
        r.ordinal: r for r in load_local_generator(str(tiny), dtype="float32", batch_size=8).generate(batch, settings)
    }
    processes = [start_server(tiny, port, metrics)]
    assert "serving" in (processes[0].stdout.readline() if processes[0].stdout else "")
    remote, found = RemoteGenerator(f"127.0.0.1:{port}", 200.0, retries=100, backoff=0.1), []
    try:
        for rationale in remote.generate(batch, settings):
            found.append(rationale)
            if len(found) == 40:
                processes[0].kill()
                processes[0].wait()
                processes.append(start_server(tiny, port, metrics))
        after = counted(metrics, "pdss_prompts_total")
        assert {r.ordinal: r for r in found} == expected
        assert len(found) == 150, "none twice"
        # Some answers of the first server were on their way when it was killed; the second was asked for the others.
        assert 0 < after <= 110
        assert counted(metrics, "pdss_rationales_total") == after
        processes[1].send_signal(signal.SIGTERM)
        assert processes[1].wait(timeout=30) == 0
    finally:
        for process in processes:
            process.kill()
            process.wait()
