"""What a server tells Prometheus, read over HTTP as Prometheus does."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pdss_fl.errors import SettingError
from pdss_fl.llm.metrics import MAX_TENANTS, ServiceMetrics, serve_metrics, short_hash
from pdss_fl.llm.remote import RemoteGenerator
from pdss_fl.llm.service import ServiceSecurity, serve
from pdss_fl.llm.tokens import TokenIssuer
from pdss_fl.messages import GenerationSettings
from tests.harness import EchoGenerator
from tests.llm.helpers import make_batch

KEY = b"a key of the test, long enough. " * 2
SETTINGS = GenerationSettings(8)
Samples = dict[tuple[str, tuple[str, ...]], float]


def scrape(port: int) -> Samples:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    families = text_string_to_metric_families(text)
    return {(s.name, tuple(s.labels.values())): s.value for family in families for s in family.samples}


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Stats:
    queued: int = 4
    running: int = 3
    tokens_per_second: float = 120.5
    mean_batch: float = 2.5
    cache_hits_total: int = 7
    rejected_total: int = 1
    per_tenant: dict[str, int] = field(default_factory=dict)
    seconds_to_first_token: tuple[float, ...] = (0.1, 0.3, 0.2)


class Telling(EchoGenerator):
    """An echo with a queue of its own that it tells of."""

    def stats(self) -> Stats:
        return Stats()


def ask(address: str, prompts: int, **options: Any) -> Iterator[Any]:
    return RemoteGenerator(address, 30.0, **options).generate(make_batch(prompts), SETTINGS)


def test_counts_are_those_of_what_was_asked_and_answered(port: int) -> None:
    server = serve(EchoGenerator(), port=0, security=ServiceSecurity(token_key=KEY))
    stop = serve_metrics(server.metrics, port)
    answers = {n: list(ask(server.address, n, token=lambda n=n: TokenIssuer(KEY, 3, 60).token(n))) for n in (2, 5)}  # type: ignore[misc]
    tokens = {n: sum(r.tokens for r in found) for n, found in answers.items()}
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError):
        list(channel.unary_stream("/pdss.v1.RationaleService/GenerateRationales", bytes, bytes)(b""))
    server.stop(grace=5)
    found = scrape(port)
    assert found["pdss_prompts_total", ()] == found["pdss_rationales_total", ()] == 7
    assert found["pdss_tokens_total", ()] == sum(tokens.values()) > 0
    for node, count in tokens.items():
        assert found["pdss_tenant_tokens_total", (short_hash(f"3/{node}"),)] == count
    assert found["pdss_requests_total", ("OK",)] == 2
    assert found["pdss_requests_total", ("UNAUTHENTICATED",)] == 1
    assert found["pdss_first_rationale_seconds_count", ()] == 2
    assert found["pdss_requests_in_flight", ()] == 0
    assert not any("generator" in name for name, _ in found), "this one tells nothing of itself"
    stop()


def test_a_generator_with_a_queue_is_asked_for_it(port: int) -> None:
    server = serve(Telling(), port=0)
    stop = serve_metrics(server.metrics, port)
    found = scrape(port)
    expected = {
        "pdss_generator_queued": 4, "pdss_generator_running": 3, "pdss_generator_tokens_per_second": 120.5,
        "pdss_generator_mean_batch": 2.5, "pdss_generator_cache_hits_total": 7, "pdss_generator_rejected_total": 1,
        "pdss_generator_median_seconds_to_first_token": 0.2,
    }  # fmt: skip
    assert {name: found[name, ()] for name in expected} == expected
    stop()
    server.stop(grace=0)


def test_tenants_are_hashed_and_their_number_is_bounded(port: int) -> None:
    metrics = ServiceMetrics()
    stop = serve_metrics(metrics, port)
    for tenant in range(3 * MAX_TENANTS):
        metrics.answered(f"hospital-{tenant}", 2)
    shares = {labels[0]: value for (name, labels), value in scrape(port).items() if name == "pdss_tenant_tokens_total"}
    assert len(shares) == MAX_TENANTS + 1
    assert shares["other"] == 2 * 2 * MAX_TENANTS
    assert not any("hospital" in label for label in shares)
    with pytest.raises(SettingError, match="--metrics-port"):
        serve_metrics(ServiceMetrics(), port)
    stop()


def test_metrics_are_told_on_loopback_only(port: int) -> None:
    stop = serve_metrics(ServiceMetrics(), port)
    with socket.socket() as other, pytest.raises(OSError, match="refused"):
        other.connect(("127.0.0.2", port))
    stop()
