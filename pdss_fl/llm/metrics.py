"""What a server counts, for Prometheus and for its own status line: numbers, and tenants as short hashes."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from pdss_fl.errors import SettingError
from pdss_fl.llm.counters import SECONDS, SchedulerStats

MAX_TENANTS = 50


class ServiceMetrics:
    """The counters of one server.

    Attributes
    ----------
    registry : CollectorRegistry
        This server's own, so that several servers of one process do not mix.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        new: dict[str, Any] = {"registry": self.registry}
        self._requests = Counter("pdss_requests", "Requests by the status they ended with.", ["status"], **new)
        self._prompts = Counter("pdss_prompts", "Prompts of accepted requests.", **new)
        self._rationales = Counter("pdss_rationales", "Rationales handed to clients.", **new)
        self._tokens = Counter("pdss_tokens", "Tokens of these rationales.", **new)
        text = f"Tokens by tenant (short hash), of the {MAX_TENANTS} served last; one that comes back starts at 0."
        self._shares = Counter("pdss_tenant_tokens", text, ["tenant"], **new)
        self._open = Gauge("pdss_requests_in_flight", "Requests under way or waiting.", **new)
        self._first = Histogram(
            "pdss_first_rationale_seconds", "From a request's arrival to its first rationale.", buckets=SECONDS, **new
        )
        self._tenants: OrderedDict[str, None] = OrderedDict()  # the one that was idle longest first
        self._lock = threading.Lock()
        self.tokens, self.rationales, self.prompts = 0, 0, 0

    def watch(self, in_flight: Callable[[], int]) -> None:
        """Read the number of calls under way from where it is known."""
        self._open.set_function(in_flight)

    def watch_generator(self, stats: Callable[[], SchedulerStats]) -> None:
        """Read what the generator tells of its queue, whenever somebody asks."""
        self.registry.register(_GeneratorCollector(stats))

    def accepted(self, prompts: int) -> None:
        """Count a request that goes to the LLM."""
        self._prompts.inc(prompts)
        with self._lock:
            self.prompts += prompts

    def answered(self, tenant: str, tokens: int) -> None:
        """Count a rationale."""
        self._rationales.inc()
        self._tokens.inc(tokens)
        with self._lock:
            self._share(short_hash(tenant), tokens)
            self.tokens, self.rationales = self.tokens + tokens, self.rationales + 1

    def first_after(self, since: float) -> None:
        """Note the time since ``since`` (``time.monotonic``) to a request's first rationale."""
        self._first.observe(time.monotonic() - since)

    def ended(self, status: str) -> None:
        """Count a request that is over, by the name of its status."""
        self._requests.labels(status).inc()

    def _share(self, label: str, tokens: int) -> None:
        """Count a tenant's tokens; each label costs memory, so the tenant that was idle longest makes room."""
        if label not in self._tenants and len(self._tenants) >= MAX_TENANTS:
            idle, _ = self._tenants.popitem(last=False)
            self._shares.remove(idle)
        self._tenants[label] = None
        self._tenants.move_to_end(label)
        self._shares.labels(label).inc(tokens)


def short_hash(tenant: str) -> str:
    """Return what logs and metrics call a tenant."""
    return hashlib.sha256(tenant.encode()).hexdigest()[:8] if tenant else "anonymous"


def serve_metrics(metrics: ServiceMetrics, port: int) -> Callable[[], None]:
    """Answer Prometheus on loopback; return what ends it. Raises ``SettingError`` if the port is taken."""
    try:
        server, thread = start_http_server(port, addr="127.0.0.1", registry=metrics.registry)
    except OSError:
        raise SettingError(f"--metrics-port = {port} is in use or not available; choose another") from None

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop


_GAUGES = {
    "queued": "Prompts that wait.",
    "running": "Prompts that are being written.",
    "tokens_per_second": "Tokens a second, as the generator measures it.",
    "mean_batch": "Mean number of rows of a decoding step.",
}
_COUNTERS = {
    "cache_hits_total": "Prompts answered from the cache.",
    "rejected_total": "Prompts that were refused because too many waited.",
}


class _GeneratorCollector(Collector):
    """Turns a generator's ``stats()`` into metrics."""

    def __init__(self, stats: Callable[[], SchedulerStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        """Ask the generator and yield what it says."""
        found = self._stats()
        for name, text in _GAUGES.items():
            yield GaugeMetricFamily(f"pdss_generator_{name}", text, getattr(found, name))
        for name, text in _COUNTERS.items():
            yield CounterMetricFamily(f"pdss_generator_{name.removesuffix('_total')}", text, getattr(found, name))
        bounds = [str(bound) for bound in (*map(float, SECONDS), "+Inf")]
        yield HistogramMetricFamily(
            "pdss_generator_first_token_seconds",
            "From a prompt's submission to its first token.",
            list(zip(bounds, accumulate(found.first_tokens), strict=True)),
            found.first_token_seconds,
        )
