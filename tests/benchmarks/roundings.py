"""Where the tokens of a scheduler whose rows join and leave first differ from those of ``generate``, one at a time."""

from __future__ import annotations

from functools import partial
from math import inf
from typing import Any

import torch
from torch import Tensor

from pdss_fl.llm.admission import Job
from pdss_fl.llm.decode import common_length
from pdss_fl.llm.scheduler import BATCH_SIZE, Scheduler
from pdss_fl.llm.writing import Written
from pdss_fl.messages import PerturbedPrompt, PromptBatch
from tests.benchmarks.bars import Bars
from tests.benchmarks.peers import NEW_TOKENS, PROMPTS, QUICK, SETTINGS, SPREAD, THREE_SHOTS, alone, batch_of, peer

MARGIN = 0.25
"""Two logits no further apart than this may change places in bfloat16. It has 8 bits of mantissa, so that numbers from
16 to 32, around which the highest logits here lie (the range and the middle are printed), are 0.125 apart: a sum that
falls to the other side of a rounding moves a logit by that much, and two logits towards each other by 0.25. Above 32,
one such step is 0.25 already."""


def compare_tokens(dtype: str, bars: Bars) -> None:
    """Print in how many rows another token comes first, and how close the two were for ``generate``.

    The scheduler writes all prompts at once (with ``--quick`` every other one and those that are compared), in
    batches of ``BATCH_SIZE`` that rows join and leave, with its weights packed. ``generate`` writes those of
    ``SPREAD`` one at a time from the weights as they are. The gap is that of ``generate``'s own logits at the first
    difference: from the token that it chose to the one that the scheduler wrote, which is no less than from the
    highest to the second.
    """
    ours = Scheduler.load("smollm2-135m-instruct", instruction=THREE_SHOTS, dtype=dtype, batch_size=BATCH_SIZE)
    compared = range(len(PROMPTS))[SPREAD]
    asked = sorted({*range(0, len(PROMPTS), 2), *compared}) if QUICK else range(len(PROMPTS))
    batch = batch_of([PROMPTS[i] for i in asked])
    written = tokens_of(ours, batch)
    chosen = [prompt for i, prompt in zip(asked, batch.prompts, strict=True) if i in compared]
    model, tokenizer = alone(partial(peer, dtype))
    gaps, highest = [], []
    for prompt in chosen:
        tokens, logits = alone(partial(with_logits, model, tokenizer, prompt))
        highest += logits.max(-1).values.tolist()
        found = written[prompt.ordinal]
        if found != tokens:
            gaps.append(gap_between(found, tokens, logits))
    above = sum(gap > MARGIN for gap in gaps)
    print(
        f"{dtype}: {len(gaps)} of {len(chosen)} differ first, {above} of them above MARGIN = {MARGIN} (largest gap "
        f"{max(gaps, default=0.0):.3f}; the highest logits lie between {min(highest):.1f} and {max(highest):.1f}, "
        f"half of them above {sorted(highest)[len(highest) // 2]:.1f})"
    )
    if dtype == "float32":
        bars.at_most("rows that differ from generate in float32", len(gaps), 0)
    bars.at_most(f"rows whose first difference in {dtype} is above MARGIN", above, 0)


def tokens_of(scheduler: Scheduler, batch: PromptBatch) -> dict[int, list[int]]:
    """Return the tokens that a scheduler writes for each prompt, by ordinal, the last one included."""
    runner, written = scheduler._runner, {}
    judge = runner._judge

    def note(job: Job) -> Written | None:
        verdict = judge(job)
        if verdict is not None:
            written.update({ordinal: list(job.written) for _, ordinal in job.waiters})
        return verdict

    runner._judge = note
    try:
        answered = {r.ordinal: r.tokens for r in scheduler.generate(batch, SETTINGS, tenant="compared")}
    finally:
        runner._judge = judge
    assert {ordinal: len(tokens) for ordinal, tokens in written.items()} == answered
    return written


def with_logits(model: Any, tokenizer: Any, prompt: PerturbedPrompt) -> tuple[list[int], Tensor]:
    """Return what ``model.generate`` writes for one prompt, and the logits from which it chose, (tokens, words)."""
    text = THREE_SHOTS.render(tokenizer, prompt)
    inputs = tokenizer([text], add_special_tokens=False, return_tensors="pt")
    output = model.generate(
        **inputs, max_new_tokens=NEW_TOKENS, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    return output.sequences[0, inputs["input_ids"].shape[1] :].tolist(), torch.cat(output.logits)


def gap_between(found: list[int], wanted: list[int], logits: Tensor) -> float:
    """Return how far below the highest logit the first other token was; infinity where one text only ends earlier."""
    at = common_length(found, wanted)
    if at == min(len(found), len(wanted)):
        return inf
    return float(logits[at].max() - logits[at, found[at]])
