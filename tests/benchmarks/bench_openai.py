"""``llm.backend = "openai"`` against llama.cpp's own server with the bundled LLM: findings and speed.

Run it as ``python tests/benchmarks/bench_openai.py [--quick] [--check] [--server PATH] [--questions 256] [--rounds 2]
[--parallel 4] [--threads N]``. Without ``--server``, a ``llama-server`` program built for this machine, llama.cpp's
server comes from the wheel ``xllamacpp``, which is built for any processor and slower. Ways of writing take turns
in every round, so that what else the machine does falls on all of them; ratios are of the medians. The questions
are those of the built-in set, unperturbed, with three demonstrations; both sides read the same weights, llama.cpp
as 4-bit GGUF, this project in the number format that is fastest here.

All questions are timed, in two rounds rather than three since llama.cpp takes minutes for each; how far answers agree
is found out on the first ``FINDINGS`` of them. ``--quick`` takes few questions and one round, to show that all works.
With ``--check`` the program ends with 1 if this project writes less than 2 times the tokens a second of llama.cpp one
at a time with its prefix reused.
"""

from __future__ import annotations

import argparse
import os
import secrets
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from pdss_fl.data.everyday import private_examples
from pdss_fl.llm.budget import Budget
from pdss_fl.llm.endpoint import Endpoint
from pdss_fl.llm.instruction import EVERYDAY, Instruction
from pdss_fl.llm.openai import OpenAIGenerator
from pdss_fl.llm.protocol import RationaleGenerator
from pdss_fl.llm.scheduler import Scheduler
from pdss_fl.messages import GenerationSettings, PerturbedPrompt, PrivacyStatement, PromptBatch, Rationale
from tests.benchmarks.bars import Bars
from tests.benchmarks.peers import QUICK

ROOT = Path(__file__).parents[2]
KEY = "sk-check"
SETTINGS = GenerationSettings(max_new_tokens=48)
THREE_SHOT = Instruction(EVERYDAY.system, EVERYDAY.demonstrations[:3])
STATEMENT = PrivacyStatement("identity", "none", float("inf"), float("inf"), 0.0, 8, "none", 1.0, "", "")
WAIT_SECONDS = 120.0
FINDINGS = 8 if QUICK else 64
ONE_AT_A_TIME = "llama.cpp, one at a time, prefix reused"

_WHEEL = """
import sys, threading, xllamacpp
model, port, parallel, threads, key = sys.argv[1:]
settings = xllamacpp.CommonParams()
settings.model.path, settings.api_keys, settings.port = model, [key], int(port)
settings.hostnames, settings.n_parallel, settings.n_ctx = ["127.0.0.1"], int(parallel), 1024 * int(parallel)
settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = int(threads)
server = xllamacpp.Server(settings)
threading.Event().wait()
"""


def questions(count: int) -> PromptBatch:
    """Return questions of the built-in set, evenly spaced."""
    examples = private_examples()
    chosen = examples[:: max(len(examples) // count, 1)][:count]
    return PromptBatch(
        tuple(PerturbedPrompt(i, e.question.lower(), e.choices) for i, e in enumerate(chosen)), STATEMENT
    )


@contextmanager
def llama_cpp(program: str, parallel: int, threads: int) -> Iterator[str]:
    """Run llama.cpp's server with so many slots of 1,024 tokens, and yield its base URL once it is ready."""
    from pdss_fl.bundled import _GGUF, _wheel_folder

    model = str(_wheel_folder() / _GGUF)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    numbers = [port, str(parallel), str(threads)]
    command = [sys.executable, "-c", _WHEEL, model, *numbers, KEY]
    if program:
        command = [program, "-m", model, "--host", "127.0.0.1", "--port", port, "-np", str(parallel), "-t", numbers[2]]
        command += ["-c", str(1024 * parallel), "--api-key", KEY]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until_ready(f"http://127.0.0.1:{port}/health", process)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.kill()


def wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    """Return once a server says that its model is loaded."""
    started = time.monotonic()
    while process.poll() is None and time.monotonic() - started < WAIT_SECONDS:
        try:
            if httpx.get(url, trust_env=False).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise SystemExit("llama.cpp's server did not start")


def ask(generator: RationaleGenerator, batch: PromptBatch) -> list[Rationale]:
    """Return the rationales in the order of the prompts, as a new tenant: what another asked is not remembered."""
    found = sorted(generator.generate(batch, SETTINGS, tenant=secrets.token_hex(4)), key=lambda r: r.ordinal)
    assert [r.ordinal for r in found] == list(range(len(batch.prompts)))
    return found


def endpoint(url: str, concurrency: int, form: str = "chat", budget: Budget | None = None) -> OpenAIGenerator:
    """Return a generator that remembers nothing yet."""
    reached = Endpoint(url, concurrency, environment={"PDSS_LLM_API_KEY": KEY, "PDSS_LLM_BASE_URL": url})
    return OpenAIGenerator(
        reached, model="smollm2", instruction=THREE_SHOT, form=form, concurrency=concurrency, budget=budget
    )


def findings(url: str, parallel: int, batch: PromptBatch, local: RationaleGenerator) -> None:
    """Print how far the ways of asking agree."""
    texts: dict[str, list[str]] = {"local": [r.text for r in ask(local, batch)]}
    for form in ("chat", "completion"):
        for requests in (1, parallel):
            budget = Budget()
            generator = endpoint(url, requests, form, budget)
            found = ask(generator, batch)
            generator.close()
            assert budget.written == sum(r.tokens for r in found)
            texts[f"{form}, {requests} at a time"] = [r.text for r in found]
            empty = sum(not r.text for r in found)
            print(f"{form:10} {requests} at a time: {len(found)} answers, {empty} empty; {budget}")
    pairs = [
        ("chat, 1 at a time", f"chat, {parallel} at a time"),
        ("completion, 1 at a time", f"completion, {parallel} at a time"),
        ("chat, 1 at a time", "completion, 1 at a time"),
        ("chat, 1 at a time", "local"),
    ]
    for one, other in pairs:
        same = sum(a == b for a, b in zip(texts[one], texts[other], strict=True))
        print(f"equal texts, {one} and {other}: {same} of {len(batch.prompts)}")


def speeds(ways: dict[str, Callable[[], list[Rationale]]], rounds: int) -> dict[str, float]:
    """Print tokens a second of each way, and the ratio to the first; return the ratios."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, write in ways.items():
            started = time.perf_counter()
            tokens = sum(r.tokens for r in write())
            found[name].append(tokens / (time.perf_counter() - started))
            print(f"  {name}: {found[name][-1]:.1f} tokens/s", flush=True)
    first = statistics.median(next(iter(found.values())))
    for name, values in found.items():
        median = statistics.median(values)
        print(f"{name:44}{median:8.1f} tokens/s {median / first:6.2f}x   rounds: {[round(v) for v in values]}")
    return {name: statistics.median(values) / first for name, values in found.items()}


def main() -> None:
    """Start the servers, print speeds, then findings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", default="", help="a llama-server program; the wheel xllamacpp if not given")
    parser.add_argument("--questions", type=int, default=16 if QUICK else 256)
    parser.add_argument("--rounds", type=int, default=1 if QUICK else 2)
    parser.add_argument("--parallel", type=int, default=4, help="slots of the second server")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="few questions, one round")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a bar is missed")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    batch = questions(options.questions)
    local = Scheduler.load("smollm2-135m-instruct", instruction=THREE_SHOT)
    with (
        llama_cpp(options.server, 1, options.threads) as single,
        llama_cpp(options.server, options.parallel, options.threads) as several,
    ):
        print(f"{len(batch.prompts)} questions, {options.threads} threads, server: {options.server or 'xllamacpp'}")

        def asked(url: str, concurrency: int, form: str) -> Callable[[], list[Rationale]]:
            def write() -> list[Rationale]:
                generator = endpoint(url, concurrency, form)  # a fresh one: answers are remembered
                try:
                    return ask(generator, batch)
                finally:
                    generator.close()

            return write

        own = f"this project, {local.info.dtype}, scheduler"
        ways = {
            ONE_AT_A_TIME: asked(single, 1, "chat"),
            "llama.cpp, one at a time, completion form": asked(single, 1, "completion"),
            f"llama.cpp, {options.parallel} at a time": asked(several, options.parallel, "chat"),
            own: lambda: ask(local, batch),
        }
        ratios = speeds(ways, options.rounds)
        findings(several, options.parallel, PromptBatch(batch.prompts[:FINDINGS], batch.privacy), local)
    bars = Bars()
    bars.at_least(f"{own} / {ONE_AT_A_TIME}", ratios[own] / ratios[ONE_AT_A_TIME], 2)
    bars.verdict()


if __name__ == "__main__":
    main()
