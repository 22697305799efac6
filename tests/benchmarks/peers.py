"""The prompts of the benchmarks of the LLM, and how a user of ``transformers`` alone would have them answered."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from transformers import AutoModelForCausalLM, AutoTokenizer

from pdss_fl.bundled import bundled_model_path
from pdss_fl.llm.instruction import EVERYDAY, Instruction
from pdss_fl.llm.loading import DTYPES
from pdss_fl.messages import GenerationSettings, PerturbedPrompt, PrivacyStatement, PromptBatch

Result = TypeVar("Result")
QUICK = "--quick" in sys.argv
NEW_TOKENS = 48
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
SPREAD = slice(None, None, 85 if QUICK else 17)
"""About every 16th prompt, with every thing and every pair of question and choices once: a step of 16 would repeat
one pair."""


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


def generate(model: Any, tokenizer: Any, prompts: Sequence[PerturbedPrompt], rows: int) -> list[list[int]]:
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


def counted(written: list[list[int]]) -> int:
    """Return how many tokens were written."""
    return sum(map(len, written))


def alone(work: Callable[[], Result]) -> Result:
    """Do some work in a thread of its own, so that OpenMP's helpers end with it; ``Scheduler.load`` says why."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()
