"""What a server tells Prometheus, read over HTTP as Prometheus does."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pdss_fl.errors import LLMUnavailable, SettingError
from pdss_fl.llm.counters import Counters
from pdss_fl.llm.instruction import EVERYDAY
from pdss_fl.llm.metrics import MAX_TENANTS, ServiceMetrics, serve_metrics, short_hash
from pdss_fl.llm.remote import RemoteGenerator
from pdss_fl.llm.scheduler import Scheduler
from pdss_fl.llm.service import ServiceSecurity, serve
from pdss_fl.llm.tokens import TokenIssuer
from pdss_fl.messages import GenerationSettings
from tests.harness import EchoGenerator
from tests.llm.helpers import Gate, make_batch, make_llama, make_tokenizer

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


def ask(address: str, prompts: int, timeout: float = 30.0, **options: Any) -> Iterator[Any]:
    return RemoteGenerator(address, timeout, **options).generate(make_batch(prompts), SETTINGS)


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


def test_a_schedulers_own_numbers_are_told_as_they_are(port: int) -> None:
    """Five prompts in a batch of two, looked at while the second token is written and when all are there."""
    model, held = make_llama(), Gate()
    scheduler = Scheduler(model, make_tokenizer(), name="tiny", instruction=EVERYDAY, batch_size=2, max_queued=5)
    server = serve(scheduler, port=0, security=ServiceSecurity(token_key=KEY))
    stop = serve_metrics(server.metrics, port)
    token = TokenIssuer(KEY, 3, 60).token
    held.close_at(model, step=2)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(list, ask(server.address, 5, token=lambda: token(1)))
        assert held.reached.wait(30)
        found = scrape(port)
        assert found["pdss_generator_running", ()] == 2
        assert found["pdss_generator_queued", ()] == 3
        with pytest.raises(LLMUnavailable, match=r"busy|in time"):
            list(ask(server.address, 3, token=lambda: token(2), retries=0, timeout=1.0))
        held.open.set()
        answers = first.result()
    again = list(ask(server.address, 5, token=lambda: token(1)))
    found = scrape(port)
    assert [r.text for r in sorted(again, key=lambda r: r.ordinal)] == [
        r.text for r in sorted(answers, key=lambda r: r.ordinal)
    ]
    tokens = sum(r.tokens for r in answers)
    assert found["pdss_generator_queued", ()] == found["pdss_generator_running", ()] == 0
    assert found["pdss_generator_cache_hits_total", ()] == 5
    assert found["pdss_generator_rejected_total", ()] >= 3
    assert 1 < found["pdss_generator_mean_batch", ()] <= 2
    assert found["pdss_generator_tokens_per_second", ()] > 0
    waits = [value for (name, _), value in found.items() if name == "pdss_generator_first_token_seconds_bucket"]
    assert waits == sorted(waits), "each group holds those below it"
    assert waits[-1] == found["pdss_generator_first_token_seconds_count", ()] == 5, "those found again waited for none"
    assert found["pdss_generator_first_token_seconds_sum", ()] > 0
    assert scheduler.stats().per_tenant == {"3/1": tokens}
    assert found["pdss_tenant_tokens_total", (short_hash("3/1"),)] == 2 * tokens, "those found again count as given"
    stop()
    server.stop(grace=0)


def test_the_wait_for_the_first_token_is_told_in_groups_as_a_dashboard_reads_it(port: int) -> None:
    counters, metrics = Counters(), ServiceMetrics()
    metrics.watch_generator(lambda: counters.snapshot(0, 0))
    stop = serve_metrics(metrics, port)
    assert scrape(port)["pdss_generator_first_token_seconds_count", ()] == 0
    for seconds in (0.01, 0.05, 0.4, 0.4, 7.0, 4000.0):
        counters.first_token(seconds)
    found = scrape(port)
    groups = {"0.05": 2, "0.25": 2, "0.5": 4, "5.0": 4, "10.0": 5, "1800.0": 5, "+Inf": 6}
    for bound, count in groups.items():
        assert found["pdss_generator_first_token_seconds_bucket", (bound,)] == count
    assert found["pdss_generator_first_token_seconds_sum", ()] == pytest.approx(4007.86)
    stop()


def test_tenants_are_hashed_and_only_those_served_last_are_shown(port: int) -> None:
    metrics = ServiceMetrics()
    stop = serve_metrics(metrics, port)
    for tenant in range(3 * MAX_TENANTS):
        metrics.answered(f"hospital-{tenant}", 2)
        metrics.answered("hospital-0", 3)  # always there
    found = scrape(port)
    shares = {labels[0]: value for (name, labels), value in found.items() if name == "pdss_tenant_tokens_total"}
    last = {short_hash(f"hospital-{tenant}"): 2 for tenant in range(2 * MAX_TENANTS + 1, 3 * MAX_TENANTS)}
    assert shares == {**last, short_hash("hospital-0"): 2 + 3 * 3 * MAX_TENANTS}
    assert found["pdss_tokens_total", ()] == 5 * 3 * MAX_TENANTS, "what is forgotten of a tenant counts in the sum"
    metrics.answered("hospital-1", 7)
    assert scrape(port)["pdss_tenant_tokens_total", (short_hash("hospital-1"),)] == 7, "one that came back is shown"
    with pytest.raises(SettingError, match="--metrics-port"):
        serve_metrics(ServiceMetrics(), port)
    stop()


def test_metrics_are_told_on_loopback_only(port: int) -> None:
    stop = serve_metrics(ServiceMetrics(), port)
    with socket.socket() as other, pytest.raises(OSError, match="refused"):
        other.connect(("127.0.0.2", port))
    stop()
