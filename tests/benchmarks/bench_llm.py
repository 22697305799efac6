"""Tokens per second of the bundled LLM: ``generate`` against ``TransformersGenerator``, interleaved.

Run from the repository's root: ``python tests/benchmarks/bench_llm.py``. Each way of writing takes
its turn in every round, so that what else the machine does falls on all of them; the ratios are of
the medians. ``generate`` answers every sixteenth prompt one at a time, and half of them in one batch,
since it takes so long.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers.utils import logging

from pdss_fl.llm.generator import TransformersGenerator
from pdss_fl.llm.instruction import EVERYDAY
from pdss_fl.llm.loading import load_causal_lm
from pdss_fl.messages import GenerationSettings, PerturbedPrompt, PrivacyStatement, PromptBatch

ROUNDS = 3
NEW_TOKENS = 48
THINGS = "robin truck rose violin salmon wolf apple oak sofa whale kettle jacket maple pear bicycle shark"
QUESTIONS = (
    "what does a {} have",
    "where do you find a {}",
    "what is a {} used for by most people",
    "what can a {} often do in the old town",
)
CHOICES = ("feathers", "wheels", "petals", "strings")
PROMPTS = [q.format(thing) for thing in THINGS.split() for q in QUESTIONS]
BATCH = PromptBatch(
    tuple(PerturbedPrompt(i, question, CHOICES) for i, question in enumerate(PROMPTS)),
    PrivacyStatement("identity", "none", float("inf"), float("inf"), 0.0, 8, "none", 1.0, "", ""),
)


def generate_in_batches(model: Any, tokenizer: Any, prompts: tuple[PerturbedPrompt, ...], rows: int) -> int:
    """Write with ``model.generate`` on whole prompts and return the number of new tokens."""
    tokenizer.padding_side = "left"
    tokens = 0
    for start in range(0, len(prompts), rows):
        texts = [EVERYDAY.render(tokenizer, prompt) for prompt in prompts[start : start + rows]]
        inputs = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
        output = model.generate(
            **inputs, max_new_tokens=NEW_TOKENS, do_sample=False, stop_strings=["\n"], tokenizer=tokenizer
        )
        written = output[:, inputs["input_ids"].shape[1] :]
        # Rows that ended early are filled up with the padding token, which is also the end token here.
        tokens += int(((written != tokenizer.pad_token_id).sum(1) + 1).clamp(max=written.shape[1]).sum())
    return tokens


def ways(dtype: str) -> dict[str, Callable[[], int]]:
    """Return the ways of writing in one number format, each returning its number of new tokens."""
    model, tokenizer = load_causal_lm("smollm2-135m-instruct", dtype)
    ours = TransformersGenerator(model, tokenizer, name="bundled", instruction=EVERYDAY)
    settings = GenerationSettings(NEW_TOKENS)
    return {
        f"{dtype} generate, one at a time": lambda: generate_in_batches(model, tokenizer, BATCH.prompts[::16], 1),
        f"{dtype} generate, batches of 32": lambda: generate_in_batches(model, tokenizer, BATCH.prompts[::2], 32),
        f"{dtype} TransformersGenerator": lambda: sum(r.tokens for r in ours.generate(BATCH, settings)),
    }


def main() -> None:
    """Measure all ways in turns and print a table."""
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    everything = ways("float32") | ways("bfloat16")
    speeds: dict[str, list[float]] = {name: [] for name in everything}
    for _ in range(ROUNDS):
        for name, write in everything.items():
            started = time.perf_counter()
            tokens = write()
            speeds[name].append(tokens / (time.perf_counter() - started))
    print(f"{len(PROMPTS)} prompts, at most {NEW_TOKENS} new tokens, {torch.get_num_threads()} threads")
    slowest = statistics.median(speeds["float32 generate, one at a time"])
    for name, found in speeds.items():
        median = statistics.median(found)
        print(f"{name:36}{median:8.1f} tokens/s{median / slowest:7.1f}x   rounds: {[round(s) for s in found]}")


if __name__ == "__main__":
    main()
