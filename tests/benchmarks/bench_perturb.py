"""How fast and in how much memory tokens are perturbed: this project's mechanisms against RANTEXT's published loop.

Run: ``python tests/benchmarks/bench_perturb.py``; smaller, for example:
``... --tokens 5000 --vocabulary 800 --full-vocabulary 4000 --reference-tokens 50``.

Every part runs in a process of its own with one thread, which prints what it took; ratios are of one run on one
machine. Seconds, and tokens a second, are of the processor's time, so that a busy machine changes little.

- A corpus of word frequencies as in real text (Zipf), tables and calibration included, against RANTEXT: for each
  token a sorted list of all others with their distances, and for each occurrence Laplace noise per dimension, the
  list up to the noise's norm, and the exponential mechanism on it. Its table is built whole, row by row with numpy
  (as published, pair by pair, it takes the time that is printed as extrapolated from 10,000 pairs, which is not
  counted); its loop is timed on ``--reference-tokens`` and extrapolated.
- The graded mechanism at a given scale over a large vocabulary of clustered embeddings: what a distinct token costs
  once, against the bare matrix product, and what tokens cost from then on.

Memory is the peak of the process above what it had before, with its libraries loaded and its embeddings made.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

EPSILON, NEIGHBOURS, SCALE = 8.0, 5, 10.0


def embeddings(size: int, width: int) -> NDArray[np.float32]:
    """Return clustered rows: about 20 words around each of many centres."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((max(2, size // 20), width), dtype=np.float32)
    return centres[rng.integers(len(centres), size=size)] + rng.standard_normal((size, width), dtype=np.float32)


def corpus(size: int, tokens: int) -> NDArray[np.int64]:
    """Return ids of which the r-th most frequent is 1 / r as frequent as the first."""
    rng = np.random.default_rng(1)
    share = 1 / np.arange(1, size + 1)
    return rng.permutation(size)[rng.choice(size, size=tokens, p=share / share.sum())]


def status_mb(field: str) -> float:
    """Return a line of this process's memory status in MB: VmRSS now, VmHWM at its peak."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) / 1024


def rantext(options: argparse.Namespace) -> dict[str, float]:
    """Time the published loop: build its table for all tokens, then perturb some of the corpus."""
    rows, ids = embeddings(options.vocabulary, options.width).astype(np.float64), corpus(options.vocabulary, 10**5)
    before, start = status_mb("VmRSS"), time.process_time()
    words = [f"w{i}" for i in range(len(rows))]
    table = {}
    for i, word in enumerate(words):
        distances = np.sqrt(((rows - rows[i]) ** 2).sum(axis=1))
        table[word] = [(words[j], distances[j]) for j in np.argsort(distances)]
    ranges = np.ptp(rows, axis=0)
    built = time.process_time()
    temperature = 0.016582 * math.log(19.0647 * EPSILON - 38.1294) + 9.31108
    for i in ids[: options.reference_tokens]:
        noise = np.array([np.random.laplace(0, width / temperature) for width in ranges])
        radius = float(np.linalg.norm(noise))
        near = table[words[i]]
        count = int(np.searchsorted(np.array([distance for _, distance in near]), radius))
        candidates = [word for word, _ in near[:count]]
        weights = np.exp(EPSILON / 2 * (1 - np.array([distance for _, distance in near[:count]]) / radius))
        np.random.choice(candidates, p=weights / weights.sum())
    loop = (time.process_time() - built) * options.tokens / options.reference_tokens
    memory, start_pairs = status_mb("VmHWM") - before, time.process_time()
    for i, j in np.random.default_rng(2).integers(len(rows), size=(10**4, 2)):
        float(np.linalg.norm(rows[i].astype(np.longdouble) - rows[j].astype(np.longdouble)))
    pairs = (time.process_time() - start_pairs) / 10**4 * len(rows) * (len(rows) - 1) / 2
    return {
        "seconds": built - start + loop,
        "table": built - start,
        "loop (extrapolated)": loop,
        "pairs (extrapolated)": pairs,
        "mb": memory,
    }


def ours(options: argparse.Namespace, name: str, **parameters: float) -> dict[str, float]:
    """Time a mechanism from the embeddings to the perturbed corpus."""
    import torch

    from pdss_fl.privacy import Vocabulary, create_mechanism, exponential  # noqa: F401

    rows = torch.from_numpy(embeddings(options.vocabulary, options.width))
    ids = torch.from_numpy(corpus(options.vocabulary, options.tokens))
    before, start = status_mb("VmRSS"), time.process_time()
    vocabulary = Vocabulary([f"w{i}" for i in range(len(rows))], rows, blanks=0)
    mechanism = create_mechanism(name, vocabulary, neighbours=NEIGHBOURS, **parameters)
    mechanism.perturb(ids)
    seconds = time.process_time() - start
    start = time.process_time()
    mechanism.perturb(ids)
    again = time.process_time() - start
    return {"seconds": seconds, "tokens/s": len(ids) / again, "mb": status_mb("VmHWM") - before}


def large(options: argparse.Namespace) -> dict[str, float]:
    """Time the graded mechanism at a given scale over the large vocabulary, and the bare matrix product."""
    import torch

    from pdss_fl.privacy import Vocabulary, exponential

    rows = torch.from_numpy(embeddings(options.full_vocabulary, options.width))
    ids = torch.from_numpy(corpus(options.full_vocabulary, options.tokens))
    distinct = ids.unique()
    vocabulary = Vocabulary([f"w{i}" for i in range(len(rows))], rows, blanks=0)
    mechanism = exponential.Exponential(vocabulary, scale=SCALE)
    mechanism.perturb(distinct[:2])  # the vocabulary's rounded directions are made
    some, matrix = distinct[2 : 2 + options.product_rows], rows.numpy()
    start = time.process_time()
    mechanism._prepared(some.numpy())
    prepared = (time.process_time() - start) / len(some)
    start = time.process_time()
    for block in some.numpy()[: len(some) // 128 * 128].reshape(-1, 128):
        matrix[block] @ matrix.T
    product = (time.process_time() - start) / (len(some) // 128 * 128)
    mechanism.perturb(ids)
    start = time.process_time()
    mechanism.perturb(ids)
    again = time.process_time() - start
    return {
        "distinct": len(distinct),
        "prepare ms/token": 1000 * prepared,
        "product ms/token": 1000 * product,
        "tokens/s": len(ids) / again,
        "whole process mb": status_mb("VmHWM"),
    }


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, float]]] = {
    "rantext": rantext,
    "staircase": lambda options: ours(options, "staircase", epsilon=EPSILON),
    "graded, given scale": lambda options: ours(options, "exponential", epsilon=EPSILON, scale=SCALE),
    "graded, calibrated": lambda options: ours(options, "exponential", epsilon=EPSILON),
    "graded, large": large,
}


def main() -> None:
    """Run every part in its own process and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--vocabulary", type=int, default=8000)
    parser.add_argument("--full-vocabulary", type=int, default=49_152)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--reference-tokens", type=int, default=500)
    parser.add_argument("--product-rows", type=int, default=1024, help="prepared for the ratio; at least 128")
    parser.add_argument("--part", choices=PARTS, help="run this one here")
    options = parser.parse_args()
    if options.part:
        print(json.dumps(PARTS[options.part](options)))
        return
    reference: dict[str, float] = {}
    alone = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    for part in PARTS:
        command = [sys.executable, *sys.argv, "--part", part]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=alone).stdout)
        print(f"{part:<20}", *(f"{name} {value:,.4g}" for name, value in found.items()), sep="  ", flush=True)
        reference = reference or found
        if part != "rantext" and "seconds" in found:
            faster, smaller = reference["seconds"] / found["seconds"], reference["mb"] / found["mb"]
            print(f"{'':<20}  {faster:.0f} times as fast as RANTEXT (loop extrapolated), 1/{smaller:.0f} of its memory")
        if part == "graded, large":
            print(
                f"{'':<20}  preparation at {found['product ms/token'] / found['prepare ms/token']:.2f} of the product"
            )


if __name__ == "__main__":
    main()
