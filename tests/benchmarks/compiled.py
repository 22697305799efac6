"""Decoding steps of ``torch.compile`` with a static cache beside the scheduler's, if the compiler works here at all.

A process of its own compiles, since a compiler cannot be interrupted: after ``LIMIT`` seconds it is ended. The batch is
as large as the scheduler's. The static cache has room for every row's prompt with the instruction, as ``transformers``
would hold it; its steps begin with an empty one, since they take as long: they always go over all of its room.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch
from transformers import StaticCache
from transformers.utils import logging

from pdss_fl.llm.scheduler import BATCH_SIZE, Scheduler
from tests.benchmarks.peers import PROMPTS, THREE_SHOTS, alone, batch_of, peer

LIMIT = 60.0
"""Seconds that compiling one step may take."""
STEPS = 8


def compare_compiled() -> None:
    """Print how a compiled step compares with ours, or that the compiler brings nothing within ``LIMIT``."""
    context = get_context("spawn")
    near, far = context.Pipe()
    process = context.Process(target=measure_apart, args=(far,), daemon=True)
    process.start()
    far.close()
    try:
        dtype = near.recv()  # what comes before compiling has no limit
        if not near.poll(LIMIT):
            print(f"torch.compile with a static cache: not compiled within {LIMIT:.0f} s on this machine")
            return
        print(f"torch.compile with a static cache, {dtype}: compiled in {near.recv():.0f} s")
        ours, compiled, plain = near.recv()
        print(f"seconds a step, compiled / ours: {compiled / ours:.2f}, not compiled / ours: {plain / ours:.2f}")
    except EOFError:
        print("torch.compile with a static cache: does not work on this machine (its message is above)")
    finally:
        process.kill()
        process.join()


def measure_apart(connection: Connection) -> None:
    """Send the number format, the seconds of the first compiled step, and those of a step of ours and of the others."""
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    ours = Scheduler.load("smollm2-135m-instruct", instruction=THREE_SHOTS, batch_size=BATCH_SIZE)
    prompts = ours._scribe.read(batch_of(PROMPTS[:BATCH_SIZE]).prompts, 2 * STEPS)
    dtype, width = ours.info.dtype, max(map(len, prompts))
    connection.send(dtype)

    def compiled_steps() -> float:
        model, _ = peer(dtype)
        model.forward = torch.compile(model.forward)
        steps = static_steps(model, width)
        started = time.perf_counter()
        steps(2)  # the second one may be compiled anew
        connection.send(time.perf_counter() - started)
        return steps(STEPS)

    def own_steps() -> float:
        batch = ours._decoder.start(prompts)
        return median_seconds(batch.advance, STEPS)

    compiled = alone(compiled_steps)
    connection.send((alone(own_steps), compiled, alone(lambda: static_steps(peer(dtype)[0], width)(STEPS))))


def static_steps(model: Any, width: int) -> Callable[[int], float]:
    """Return what does so many steps in a static cache of ``width`` tokens, and says how long one takes."""
    cache = StaticCache(config=model.config, max_cache_len=width + 4 * STEPS)
    token, place = torch.full((BATCH_SIZE, 1), 77), torch.zeros(1, 1, dtype=torch.long)

    def steps(count: int) -> float:
        def step() -> None:
            output = model(input_ids=token, position_ids=place, past_key_values=cache, logits_to_keep=1)
            token.copy_(output.logits[:, -1].argmax(-1, keepdim=True))
            place.add_(1)

        with torch.inference_mode():
            return median_seconds(step, count)

    return steps


def median_seconds(step: Callable[[], None], count: int) -> float:
    """Return the median seconds of so many steps."""
    found = []
    for _ in range(count):
        started = time.perf_counter()
        step()
        found.append(time.perf_counter() - started)
    return statistics.median(found)
