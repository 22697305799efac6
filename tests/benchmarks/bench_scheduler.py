"""The scheduler beside its peers: ``generate`` as transformers does it, and the bare model. Prints ratios.

Run from the repository's root: ``python tests/benchmarks/bench_scheduler.py [--quick]``. All ways take
turns in every round, so that what else the machine does falls on all of them, each in a thread of its own; ratios are
of medians.
``generate`` answers a sixteenth of the prompts one at a time, and a batch of each size. The bare model is one whole
batch that neither grows nor shrinks, its prompts read before; the scheduler's own forward passes are all that it does
for the prompts, reading included. Then come what bfloat16 changes, 64 callers at a time, and the memory of 10,000
requests to a tiny model.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parents[2]))

from pdss_fl.bundled import bundled_model_path
from pdss_fl.llm.instruction import EVERYDAY, Instruction
from pdss_fl.llm.loading import DTYPES
from pdss_fl.llm.scheduler import BATCH_SIZE, Scheduler
from pdss_fl.messages import GenerationSettings, PerturbedPrompt, PrivacyStatement, PromptBatch
from tests.benchmarks.replay import record, replay
from tests.llm.helpers import make_llama, make_tokenizer

Result = TypeVar("Result")
QUICK = "--quick" in sys.argv
ROUNDS = 1 if QUICK else 3
NEW_TOKENS = 48
STATIC_ROWS = (32,) if QUICK else (32, 64, 128)
SETTINGS = GenerationSettings(NEW_TOKENS)
STATEMENT = PrivacyStatement("identity", "none", float("inf"), float("inf"), 0.0, 8, "none", 1.0, "", "")
THREE_SHOTS = Instruction(EVERYDAY.system, EVERYDAY.demonstrations[:3])
THINGS = "robin truck rose violin salmon wolf apple oak sofa whale kettle jacket maple pear bicycle shark"
QUESTIONS = (
    "what does a {} have",
    "where do you find a {}",
    "what is a {} used for by most people",
    "what can a {} often do in the old town",
)
CHOICES = (
    ("feathers", "wheels", "petals", "strings"),
    ("zoo", "garage", "garden", "kitchen"),
    ("milk", "music", "bread", "fuel"),
    ("swim", "drive", "sing", "grow"),
)
PROMPTS = [(q.format(thing), c) for thing in THINGS.split() for q in QUESTIONS for c in CHOICES]


def batch_of(prompts: Sequence[tuple[str, tuple[str, ...]]]) -> PromptBatch:
    """Return a batch of questions with choices."""
    return PromptBatch(tuple(PerturbedPrompt(i, q, c) for i, (q, c) in enumerate(prompts)), STATEMENT)


def peer(dtype: str) -> tuple[Any, Any]:
    """Load the LLM as a user of transformers would; what holds a line break ends a text, as ours does."""
    folder = bundled_model_path()
    model = AutoModelForCausalLM.from_pretrained(folder, **({"dtype": DTYPES[dtype]} if dtype else {}))
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    # The same as stop_strings=["\n"], whose table of the vocabulary would be looked up at every call.
    lines = [token for token in range(len(tokenizer)) if "\n" in tokenizer.decode([token])]
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *lines]
    return model, tokenizer


def generate(model: Any, tokenizer: Any, prompts: tuple[PerturbedPrompt, ...], rows: int) -> list[list[int]]:
    """Write with ``model.generate`` on whole prompts; return the new tokens of each, the end token included."""
    written, ends = [], set(model.generation_config.eos_token_id)
    for start in range(0, len(prompts), rows):
        texts = [THREE_SHOTS.render(tokenizer, prompt) for prompt in prompts[start : start + rows]]
        inputs = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        for row in output[:, inputs["input_ids"].shape[1] :].tolist():
            end = next((i for i, token in enumerate(row) if token in ends), len(row))
            written.append(row[: end + 1])
    return written


def alone(work: Callable[[], Result]) -> Result:
    """Do some work in a thread of its own, so that OpenMP's helpers end with it; ``Scheduler.load`` says why."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def counted(written: list[list[int]]) -> int:
    """Return how many tokens were written."""
    return sum(map(len, written))


def bare(model: Any, context: int) -> Callable[[], int]:
    """Return a loop over the model alone: a full batch with its keys and values, and nothing else to do."""
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


def compare_speed() -> Scheduler:
    """Print how many times as fast as its peers the scheduler is."""
    ours = Scheduler.load("smollm2-135m-instruct", instruction=THREE_SHOTS)
    dtype, batch = ours.info.dtype, batch_of(PROMPTS)
    (default, tokenizer), (same, _), (other, _) = (alone(partial(peer, name)) for name in ("", dtype, dtype))
    unpacked = alone(lambda: Scheduler(other, tokenizer, name="as it is", instruction=THREE_SHOTS))
    tenants = iter(range(1_000))  # a new one each time, else the answers are found again
    ways: dict[str, Callable[[], int]] = {
        "scheduler": lambda: sum(r.tokens for r in ours.generate(batch, SETTINGS, tenant=str(next(tenants)))),
        "its own forward passes, nothing beside": again(ours, batch),
        "scheduler, weights as they are": lambda: sum(
            r.tokens for r in unpacked.generate(batch, SETTINGS, tenant=str(next(tenants)))
        ),
        f"bare model, {BATCH_SIZE} rows": bare(same, 280),
        "generate, default dtype, one at a time": lambda: counted(
            generate(default, tokenizer, batch.prompts[::64] if QUICK else batch.prompts[::16], 1)
        ),
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
    return ours


def compare_tokens(dtype: str) -> None:
    """Print where the scheduler's tokens first differ from ``generate``'s, and how close the choice was there."""
    model, tokenizer = peer(dtype)
    ours = Scheduler.load("smollm2-135m-instruct", instruction=THREE_SHOTS, dtype=dtype)
    prompts = batch_of(PROMPTS[:: 64 if QUICK else 16])
    expected = generate(model, tokenizer, prompts.prompts, 1)
    jobs = ours._scribe.read(prompts.prompts, NEW_TOKENS)
    running = ours._decoder.start(jobs)
    found = [running.newest.tolist()]
    for _ in range(NEW_TOKENS - 1):
        running.advance()
        found.append(running.newest.tolist())
    gaps = []
    for prompt, tokens, wanted in zip(jobs, zip(*found, strict=True), expected, strict=True):
        at = next((i for i, (a, b) in enumerate(zip(tokens, wanted, strict=False)) if a != b), None)
        if at is not None:
            with torch.inference_mode():
                logits = model(torch.tensor([[*prompt, *wanted[:at]]])).logits[0, -1].float()
            gaps.append(float(logits.max() - logits[tokens[at]]))
    print(
        f"{dtype}: {len(expected) - len(gaps)} of {len(expected)} equal to generate, one at a time; the largest "
        f"gap to the highest logit where another token was written: {max(gaps, default=0.0):.3f}"
    )


def compare_callers(ours: Scheduler) -> None:
    """Print how long the slowest of 64 callers waits, against one caller with all the prompts."""
    callers, each = (8, 4) if QUICK else (64, 16)
    prompts = [(f"{q} on day {i}", c) for i in range(8) for q, c in PROMPTS][: callers * each]
    started, processor = time.perf_counter(), time.process_time()
    wanted = len(list(ours.generate(batch_of(prompts), SETTINGS, tenant="one")))
    whole, whole_processor = time.perf_counter() - started, time.process_time() - processor

    def ask(i: int) -> tuple[int, float]:
        begun = time.perf_counter()
        batch = batch_of(prompts[i * each : (i + 1) * each])
        answered = len({r.ordinal for r in ours.generate(batch, SETTINGS, tenant=f"caller {i}")})
        return answered, time.perf_counter() - begun

    processor = time.process_time()
    with ThreadPoolExecutor(callers) as pool:
        found = list(pool.map(ask, range(callers)))
    processor = time.process_time() - processor
    print(
        f"{callers} callers with {each} prompts each: {sum(n for n, _ in found)} of {wanted} answered, the slowest "
        f"after {max(seconds for _, seconds in found) / whole:.2f} of the time that one caller takes with all "
        f"(all of them {processor / whole_processor:.2f} of its processor time)"
    )


def compare_memory() -> None:
    """Print by how much the process grows from 1,000 to 10,000 requests to a tiny model."""
    tiny = Scheduler(make_llama(), make_tokenizer(), name="tiny", instruction=THREE_SHOTS)
    process, sizes, last = psutil.Process(), {}, 2_000 if QUICK else 10_000
    for n in range(1, last + 1):
        question = f"what does robin {n % 5_000} have"
        list(tiny.generate(batch_of([(question, ())]), GenerationSettings(2), tenant=str(n % 7)))
        if n in (1_000, last // 2, last):
            sizes[n] = process.memory_info().rss / 2**20
    print("resident MiB after requests: " + ", ".join(f"{n}: {size:.0f}" for n, size in sizes.items()))


def main() -> None:
    """Print all comparisons."""
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    alone(compare_memory)
    ours = compare_speed()
    compare_callers(ours)
    for dtype in ("float32", "bfloat16"):
        alone(partial(compare_tokens, dtype))


if __name__ == "__main__":
    main()
