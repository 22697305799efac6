"""The scheduler beside its peers: ``generate`` as transformers does it, and the bare model. Prints ratios.

Run from the repository's root: ``python tests/benchmarks/bench_scheduler.py [--quick] [--check] [--compile]``. All
ways take turns in every round, so that what else the machine does falls on all of them, each in a thread of its own;
ratios are of medians.

- ``generate`` answers about a sixteenth of the prompts one at a time, and a batch of each size.
- "Its own forward passes" are those of the same batch, reading included, as rows joined and left it
  (``replay.py``): the bare decode speed that the scheduler is held against.
- The bare model, in one batch that neither grows nor shrinks, is a rough row: its weights are packed as ours, but its
  keys and values are no prompt's, every row holds the instruction for itself, and nothing is read.
- What bfloat16 changes is in ``roundings.py``; 64 callers and the memory of 10,000 requests, through gRPC, in
  ``callers.py``.
- ``--compile`` adds steps of ``torch.compile`` with a static cache (``compiled.py``), if a minute is enough to compile.

``--check`` ends with 1, and a line for every bar that was missed. The bars, by the clock: 15 times ``generate`` one at
a time, 2 times its best batch, 0.85 of the own forward passes, the slowest of the callers after at most 2 times
what one caller with all the prompts takes and nobody without an answer, memory that grows by at most 10 %, in float32
every token equal to ``generate``'s, and no first difference above ``roundings.MARGIN``. ``--quick`` shows that all
works; its figures are of a few prompts and one round, and mean little.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parents[2]))

from pdss_fl.llm.packed import pack
from pdss_fl.llm.scheduler import BATCH_SIZE, Scheduler
from pdss_fl.messages import PromptBatch
from tests.benchmarks.bars import Bars
from tests.benchmarks.callers import compare_callers, compare_memory
from tests.benchmarks.compiled import compare_compiled
from tests.benchmarks.peers import (
    NEW_TOKENS,
    PROMPTS,
    QUICK,
    SETTINGS,
    SPREAD,
    THREE_SHOTS,
    alone,
    batch_of,
    counted,
    generate,
    peer,
)
from tests.benchmarks.replay import record, replay
from tests.benchmarks.roundings import compare_tokens

ROUNDS = 1 if QUICK else 3
STATIC_ROWS = (32,) if QUICK else (32, 64, 128)
OWN_PASSES = "its own forward passes, nothing beside"
ONE_AT_A_TIME = "generate, default dtype, one at a time"


def bare(model: Any, context: int) -> Callable[[], int]:
    """Return a loop over the model alone, its weights packed: a full batch that never ends, and nothing else to do."""
    alone(partial(pack, model))
    config = model.config
    heads, width = config.num_key_value_heads, config.hidden_size // config.num_attention_heads

    @torch.inference_mode()
    def steps() -> int:
        cache, states = DynamicCache(config=config), torch.zeros(BATCH_SIZE, heads, context, width, dtype=model.dtype)
        for i in range(config.num_hidden_layers):
            cache.update(states, states, i)
        token, count = torch.full((BATCH_SIZE, 1), 77), 4 if QUICK else 12
        mask = torch.ones(BATCH_SIZE, context, dtype=torch.long)
        mask[::2, 0] = 0  # as in any batch of different lengths
        for _ in range(count):
            mask = torch.cat([mask, mask.new_ones(BATCH_SIZE, 1)], 1)
            output = model(input_ids=token, attention_mask=mask, past_key_values=cache, logits_to_keep=1)
            token = output.logits[:, -1].argmax(-1, keepdim=True)
        return count * BATCH_SIZE

    return steps


def again(ours: Scheduler, batch: PromptBatch) -> Callable[[], int]:
    """Return the forward passes that the scheduler makes for the batch, with nothing beside them."""
    steps, tokens = record(ours, lambda: sum(r.tokens for r in ours.generate(batch, SETTINGS, tenant="recorded")))

    def write() -> int:
        replay(ours._decoder, steps)
        return tokens

    return write


def measure(ways: dict[str, Callable[[], int]]) -> dict[str, tuple[float, float]]:
    """Return tokens a second, by the clock and of the processor, of each way: medians of interleaved rounds."""
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, write in ways.items():
            clock, processor = time.perf_counter(), time.process_time()
            tokens = alone(write)
            found = tokens / (time.perf_counter() - clock), tokens / (time.process_time() - processor)
            speeds[name].append(found)
            print(f"  {name:44}{found[0]:8.1f} tokens/s {found[1]:8.1f} tokens a processor second", flush=True)
    return {
        name: (statistics.median(c for c, _ in found), statistics.median(p for _, p in found))
        for name, found in speeds.items()
    }


def compare_speed(bars: Bars) -> Scheduler:
    """Print how many times as fast as its peers the scheduler is."""
    ours = Scheduler.load("smollm2-135m-instruct", instruction=THREE_SHOTS)
    dtype, batch = ours.info.dtype, batch_of(PROMPTS)
    (default, tokenizer), (same, _), (other, _), (packed, _) = (
        alone(partial(peer, name)) for name in ("", dtype, dtype, dtype)
    )
    unpacked = alone(lambda: Scheduler(other, tokenizer, name="as it is", instruction=THREE_SHOTS))
    tenants = iter(range(1_000))  # a new one each time, else the answers are found again
    ways: dict[str, Callable[[], int]] = {
        "scheduler": lambda: sum(r.tokens for r in ours.generate(batch, SETTINGS, tenant=str(next(tenants)))),
        OWN_PASSES: again(ours, batch),
        "scheduler, weights as they are": lambda: sum(
            r.tokens for r in unpacked.generate(batch, SETTINGS, tenant=str(next(tenants)))
        ),
        f"bare model, packed, {BATCH_SIZE} rows (rough)": bare(packed, 280),
        ONE_AT_A_TIME: lambda: counted(generate(default, tokenizer, batch.prompts[SPREAD], 1)),
    }
    for rows in STATIC_ROWS:
        chosen = batch.prompts[::2][:rows]
        ways[f"generate, {dtype}, {rows} at a time"] = lambda rows=rows, chosen=chosen: counted(  # type: ignore[misc]
            generate(same, tokenizer, chosen, rows)
        )
    print(f"{len(PROMPTS)} prompts, {NEW_TOKENS} new tokens at most, {dtype}, {torch.get_num_threads()} threads")
    speed = measure(ways)
    best = max(value for name, value in speed.items() if name.endswith("at a time") and "one at" not in name)
    peers = {name: value for name, value in speed.items() if not name.startswith("generate, " + dtype)}
    ours_clock, ours_processor = peers.pop("scheduler")
    for name, (clock, processor) in (peers | {f"generate, {dtype}, its best batch": best}).items():
        print(
            f"scheduler / {name}: "
            f"{ours_clock / clock:.2f} by the clock, {ours_processor / processor:.2f} by processor time"
        )
    bars.at_least(f"scheduler / {ONE_AT_A_TIME}", ours_clock / peers[ONE_AT_A_TIME][0], 15)
    bars.at_least(f"scheduler / generate, {dtype}, its best batch", ours_clock / best[0], 2)
    bars.at_least(f"scheduler / {OWN_PASSES}", ours_clock / peers[OWN_PASSES][0], 0.85)
    return ours


def main() -> None:
    """Print all comparisons."""
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    bars = Bars()
    compare_memory(bars)
    ours = compare_speed(bars)
    compare_callers(ours, bars)
    for dtype in ("float32", "bfloat16"):
        compare_tokens(dtype, bars)
    if "--compile" in sys.argv:
        compare_compiled()
    bars.verdict()


if __name__ == "__main__":
    main()
