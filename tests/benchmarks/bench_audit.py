"""How long the exact audit of a mechanism takes, and in how much memory.

Run: ``python tests/benchmarks/bench_audit.py``; smaller, for example: ``... --size 1000 --large 3000``.

The staircase and the graded mechanism, at a given scale, over clustered embeddings, each in a process of its own;
then the staircase over a large vocabulary, whose matrix (20 GB for 50,000 words) is never held. Stated are the
audit's seconds on the wall and of the processors, and the peak memory of the whole process, its libraries and
embeddings included.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import torch

from pdss_fl.privacy import PrivacyMechanism, Vocabulary, create_mechanism
from pdss_fl.privacy.audit import audit

EPSILON, NEIGHBOURS, SCALE, WIDTH = 6.0, 5, 6.0, 64


def mechanism(name: str, size: int) -> PrivacyMechanism:
    """Return a mechanism over words that are about 20 around each of many centres."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(max(2, size // 20), WIDTH, generator=generator)
    rows = centres[torch.randint(len(centres), (size - 8,), generator=generator)]
    rows += torch.randn(size - 8, WIDTH, generator=generator)
    vocabulary = Vocabulary([f"w{i}" for i in range(size - 8)], rows)
    if name == "exponential":
        return create_mechanism(name, vocabulary, scale=SCALE)
    return create_mechanism(name, vocabulary, epsilon=EPSILON, neighbours=NEIGHBOURS)


def measure(name: str, size: int) -> None:
    """Audit one mechanism and print what it took as JSON."""
    made = mechanism(name, size)
    claim = made.guarantee.epsilon  # the graded one makes a pass over all rows for it
    wall, cpu = time.perf_counter(), time.process_time()
    found = audit(made)
    print(
        json.dumps(
            {
                "mechanism": name,
                "words": size,
                "seconds": time.perf_counter() - wall,
                "cpu_seconds": time.process_time() - cpu,
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "claim": claim,
                "epsilon": found.epsilon,
                "bounded_range": found.bounded_range,
                "exact": found.bounded_range_exact,
                "holds": found.holds,
            }
        )
    )


def main() -> None:
    """Run every part in a process of its own and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=10_000)
    parser.add_argument("--large", type=int, default=50_000)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        measure(options.only, options.size)
        return
    for name, size in (("staircase", options.size), ("exponential", options.size), ("staircase", options.large)):
        command = [sys.executable, __file__, "--only", name, "--size", str(size)]
        line = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        kind = "exact" if line["exact"] else "an upper bound"
        print(
            f"{name:12} {size:6} words: {line['seconds']:7.1f} s ({line['cpu_seconds']:.1f} s of processors), peak "
            f"{line['peak_mb']:.0f} MB; claims {line['claim']:.4g}, has {line['epsilon']:.4f}, bounded range "
            f"{line['bounded_range']:.4f} ({kind}), holds: {line['holds']}",
            flush=True,
        )


if __name__ == "__main__":
    main()
