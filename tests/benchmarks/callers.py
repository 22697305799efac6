"""Many callers of one server, each with a token and a connection of its own: who waits how long, and what stays behind.

Callers and server are one process, on loopback: gRPC, its pools and the server's limits are in it as they are by
default (64 requests at a time, exactly as many as there are callers), and the memory is that of both sides.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import psutil

from pdss_fl.llm.remote import RemoteGenerator
from pdss_fl.llm.scheduler import Scheduler
from pdss_fl.llm.service import RunningServer, ServiceSecurity, serve
from pdss_fl.llm.tokens import TokenIssuer
from pdss_fl.messages import GenerationSettings
from tests.benchmarks.bars import Bars
from tests.benchmarks.peers import PROMPTS, QUICK, SETTINGS, THREE_SHOTS, alone, batch_of
from tests.llm.helpers import make_llama, make_tokenizer

KEY = b"a key of the benchmark, long enough. "
TOKENS = TokenIssuer(KEY, run=1, seconds=36_000)
ONE = 1_000_000
"""The node of the caller that asks for everything."""


@contextmanager
def server_of(generator: Scheduler) -> Iterator[RunningServer]:
    """Run a server with the default limits that lets in whoever has a token."""
    server = serve(generator, port=0, security=ServiceSecurity(token_key=KEY))
    try:
        yield server
    finally:
        server.stop(grace=0)


def ask(
    server: RunningServer, node: int, prompts: list[tuple[str, tuple[str, ...]]], settings: GenerationSettings
) -> tuple[int, float]:
    """Connect as a node; return how many prompts were answered, and the seconds from connecting to the last answer."""
    started = time.perf_counter()
    remote = RemoteGenerator(server.address, 36_000.0, token=lambda: TOKENS.token(node))
    try:
        answered = len({r.ordinal for r in remote.generate(batch_of(prompts), settings)})
    finally:
        remote.close()
    return answered, time.perf_counter() - started


def compare_callers(ours: Scheduler, bars: Bars) -> None:
    """Print how long the slowest of 64 callers waits, against one caller with all the prompts."""
    callers, each = (8, 4) if QUICK else (64, 16)
    prompts = [(f"{q} on day {i}", c) for i in range(8) for q, c in PROMPTS][: callers * each]
    with server_of(ours) as server, ThreadPoolExecutor(callers) as pool:
        processor = time.process_time()
        wanted, whole = ask(server, ONE, prompts, SETTINGS)
        between = time.process_time()
        shares = [prompts[i * each : (i + 1) * each] for i in range(callers)]
        found = list(pool.map(lambda i: ask(server, i + 1, shares[i], SETTINGS), range(callers)))
        work = (time.process_time() - between) / (between - processor)
    answered, slowest = sum(n for n, _ in found), max(seconds for _, seconds in found) / whole
    print(
        f"{callers} callers with {each} prompts each, through gRPC: {answered} of {len(prompts)} answered (one caller: "
        f"{wanted}), the slowest after {slowest:.2f} of the time that one caller takes with all (all of them "
        f"{work:.2f} of its processor time)"
    )
    bars.at_least(f"answers to {callers} callers", answered, len(prompts))
    bars.at_most(f"slowest of {callers} callers, in the time of one caller with all", slowest, 2)


def compare_memory(bars: Bars) -> None:
    """Print by how much the process grows from 1,000 to 10,000 requests to a tiny model.

    Seven nodes take turns; each visit is a connection of ten requests of one prompt each.
    """
    tiny = alone(lambda: Scheduler(make_llama(), make_tokenizer(), name="tiny", instruction=THREE_SHOTS))
    with server_of(tiny) as server:
        sizes = alone(partial(memory_over, server, 2_000 if QUICK else 10_000))
    print("resident MiB after requests, through gRPC: " + ", ".join(f"{n}: {size:.0f}" for n, size in sizes.items()))
    bars.at_most(f"memory after {max(sizes)} requests / after 1,000", sizes[max(sizes)] / sizes[1_000], 1.1)


def memory_over(server: RunningServer, requests: int) -> dict[int, float]:
    """Return the resident MiB of this process after 1,000, half and all of the requests."""
    process, sizes = psutil.Process(), {}
    for start in range(0, requests, 10):
        node = start // 10 % 7
        remote = RemoteGenerator(server.address, token=lambda node=node: TOKENS.token(node))  # type: ignore[misc]
        for n in range(start + 1, start + 11):
            question = f"what does robin {n % 5_000} have"
            assert len(list(remote.generate(batch_of([(question, ())]), GenerationSettings(2)))) == 1
            if n in (1_000, requests // 2, requests):
                sizes[n] = process.memory_info().rss / 2**20
        remote.close()
    return sizes
