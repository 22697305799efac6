"""What it saves to train both tasks in one packed pass instead of two separate ones.

Run: ``python tests/benchmarks/bench_training.py``; ``--rounds N`` for more rounds, ``--data FILE`` for other questions
with rationales (JSONL) than the built-in ones, which are nearly of one length. The small model of the built-in set
(from scratch, width 96, 2 layers) takes training steps of 16 private questions with their reference rationales: rows
to tensors, forward, backward, clipping, AdamW. Four ways, one after the other in every round, each on the same draw:

- packed: as ``pdss_fl.slm.trainer`` does it;
- two passes: label rows and rationale rows go through the model one after the other, each padded to the longest of
  the batch, with logits at all positions and the model's own loss;
- two passes at 128: the same, padded to 128 tokens, the fixed length of the code that PDSS is derived from;
- one padded pass: all rows in one batch, padded to the longest, logits at all positions.

Printed are medians of the processor's time (one thread, so that waiting for other work of the machine does not count)
and of the wall's, and how many times faster the packed way is by either and by the lower quartile of the processor's
time, the rounds that were disturbed least. First, all ways are shown to have the same loss.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pdss_fl.config import RunSettings
from pdss_fl.data.everyday import private_examples
from pdss_fl.data.sources import read_jsonl
from pdss_fl.slm.collator import Batch, Row, batch_of, encode_row
from pdss_fl.slm.loss import LABEL, RATIONALE, multi_task_loss, weighted_loss
from pdss_fl.slm.model import SlmSettings, SmallModel, create_slm
from pdss_fl.slm.packing import keeps_texts_apart, pack
from pdss_fl.slm.prompts import label_prompt, rationale_prompt
from pdss_fl.vocabularies import load_vocabulary

FIXED, MAX_TOKENS = 128, 256
RUN = RunSettings()
WEIGHT = RUN.distill.rationale_weight

Pairs = Sequence[Sequence[Row]]


def load(file: Path | None) -> tuple[SmallModel, list[list[Row]]]:
    """Return a client's small model of the default run and the rows of its training examples, or of a file's."""
    found = [e for e in read_jsonl(file) if e.rationale] if file else private_examples()
    examples = found[: RUN.data.train_examples]
    privacy = RUN.privacy
    name, size = ("english", 4_000) if file else (privacy.vocabulary, privacy.vocabulary_size)
    words = load_vocabulary(name, size, privacy.embeddings).tokens
    own = [" ".join((e.question, *e.choices, e.answer)) for e in examples]
    slm = create_slm(SlmSettings(hidden_size=96, layers=2, max_tokens=MAX_TOKENS), [" ".join(words), *own])
    rows = [
        [
            encode_row(slm, label_prompt(e), e.answer, LABEL),
            encode_row(slm, rationale_prompt(e), str(e.rationale), RATIONALE),
        ]
        for e in examples
    ]
    return slm, rows


def packed(slm: SmallModel, pairs: Pairs) -> Tensor:
    """Return the loss as the trainer computes it."""
    return weighted_loss(*pack(slm, pairs, several=True).token_losses(slm.model), WEIGHT)[0]


def separate(slm: SmallModel, pairs: Pairs, fixed: int = 0) -> Tensor:
    """Return the loss of two forward passes; rows padded to the longest, or to ``fixed`` tokens."""
    label, rationale = (_own_loss(slm, [pair[task] for pair in pairs], fixed) for task in (LABEL, RATIONALE))
    return (1 - WEIGHT) * label + WEIGHT * rationale


def _own_loss(slm: SmallModel, rows: list[Row], fixed: int) -> Tensor:
    filled = [*rows, Row([0] * fixed, [], LABEL, False)] if fixed else rows  # one row more that sets the width
    batch = batch_of(slm, filled)
    n = len(rows)
    loss: Tensor = slm.model(
        input_ids=batch.input_ids[:n], attention_mask=batch.attention_mask[:n], labels=batch.labels[:n]
    ).loss
    return loss


def padded(slm: SmallModel, pairs: Pairs) -> Tensor:
    """Return the loss of one pass over a padded batch of all rows."""
    batch: Batch = batch_of(slm, [row for pair in pairs for row in pair])
    logits = slm.model(**batch.inputs(slm.model)).logits
    return multi_task_loss(logits, batch.labels, batch.task, WEIGHT)[0]


WAYS: dict[str, Callable[[SmallModel, Pairs], Tensor]] = {
    "packed": packed,
    "two passes": separate,
    "two passes at 128": lambda slm, pairs: separate(slm, pairs, FIXED),
    "one padded pass": padded,
}


def main() -> None:
    """Print one line for every way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--data", type=Path)
    given = parser.parse_args()
    rounds = given.rounds
    torch.set_num_threads(1)
    slm, rows = load(given.data)
    assert keeps_texts_apart(slm)
    slm.model.train()
    optimizer = torch.optim.AdamW(slm.model.parameters(), lr=0.0, fused=True)  # no way gets ahead of another
    draws = torch.Generator().manual_seed(0)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
    gaps: list[float] = []
    for _ in range(rounds + 3):
        pairs = [rows[i] for i in torch.randperm(len(rows), generator=draws)[: RUN.distill.batch_size].tolist()]
        losses = []
        for name, way in WAYS.items():
            wall, cpu = time.perf_counter(), time.process_time()
            loss = way(slm, pairs)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(slm.model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            seconds[name].append((time.process_time() - cpu, time.perf_counter() - wall))
            losses.append(loss.item())
        gaps.append(max(losses) - min(losses))
    print(f"largest difference of the losses: {max(gaps):.1e}")
    times = {name: [list(v) for v in zip(*s[3:], strict=True)] for name, s in seconds.items()}
    figures = {
        name: (statistics.median(cpu), statistics.median(wall), statistics.quantiles(cpu, n=4)[0])
        for name, (cpu, wall) in times.items()
    }
    print(f"{'':20}{'cpu ms':>8}{'wall ms':>9}{'packed is faster, by cpu / wall / least disturbed cpu':>56}")
    for name, found in figures.items():
        ratios = " / ".join(f"{mine / best:.2f}" for mine, best in zip(found, figures["packed"], strict=True))
        print(f"{name:20}{found[0] * 1e3:8.1f}{found[1] * 1e3:9.1f}{ratios:>56}")


if __name__ == "__main__":
    main()
