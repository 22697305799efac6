"""How often the LLM's rationales of private questions are right, with and without its adapter.

Run it as ``python tests/benchmarks/rationale_quality.py [--questions 200] [--dials 0:0 8:3 8:2 6:2 10:3]
[--adapters off auto] [--vocabulary-size 1200]``; a dial is epsilon:neighbours, and 0:0 leaves the words
as they are. The private split is read to measure only. Columns, after the client put its own words back
and before it corrects the answer: the thing's kind is named, the rationale's first sentences are those
of the reference, the last sentence names the right choice; then new tokens per second.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

from pdss_fl.config import IDENTITY, RunSettings
from pdss_fl.data.everyday import Fact, facts, private_examples
from pdss_fl.data.example import Example
from pdss_fl.llm.generator import load_local_generator
from pdss_fl.llm.scheduler import Scheduler
from pdss_fl.messages import GenerationSettings, PerturbedPrompt, PromptBatch
from pdss_fl.release import Perturber, word_pairs
from pdss_fl.reproduce.quality import names_kind
from pdss_fl.slm.alignment import align
from pdss_fl.vocabularies import load_perturber

_CLOSING = "So the answer is "
SEED = 1


def main() -> None:
    """Print one row for each adapter and dial."""
    arguments = _arguments()
    asked = list(zip(facts("private"), private_examples(), strict=True))
    asked = asked[:: max(1, len(asked) // arguments.questions)][: arguments.questions]
    print(f"{len(asked)} questions, vocabulary of {arguments.vocabulary_size} words")
    print(f"{'adapter':<12}{'dial':>8}{'kind':>8}{'why':>8}{'answer':>8}{'tokens/s':>10}")
    for adapter in arguments.adapters:
        generator = load_local_generator(
            arguments.model, arguments.instruction, adapter="" if adapter == "off" else adapter
        )
        for dial in arguments.dials:
            perturber = _perturber(dial, arguments.vocabulary_size)
            scores, speed = measure(generator, perturber, asked)
            shares = "".join(f"{100 * score:>7.1f}%" for score in scores)
            print(f"{Path(adapter).name:<12}{dial:>8}{shares}{speed:>10.0f}", flush=True)


def measure(generator: Scheduler, perturber: Perturber, asked: list[tuple[Fact, Example]]) -> tuple[list[float], float]:
    """Return the shares of right kinds, reasons and answers, and the new tokens per second."""
    payloads = perturber.perturb([example for _, example in asked])
    prompts = tuple(
        PerturbedPrompt(i, " ".join(p["question"]), tuple(" ".join(words) for words in p["choices"]))
        for i, p in enumerate(payloads)
    )
    start = time.perf_counter()
    written = sorted(
        generator.generate(PromptBatch(prompts, perturber.statement()), GenerationSettings(40)),
        key=lambda rationale: rationale.ordinal,
    )
    speed = sum(rationale.tokens for rationale in written) / (time.perf_counter() - start)
    rows = []
    for (fact, example), payload, rationale in zip(asked, payloads, written, strict=True):
        text = align(rationale.text, word_pairs(example, payload, perturber))
        rows.append(judge(text, fact, example))
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)], speed


def judge(text: str, fact: Fact, example: Example) -> tuple[bool, bool, bool]:
    """Return whether a decoded rationale names the right kind, gives the right reason and the right answer."""
    why, _, answer = text.partition(_CLOSING)
    reference = str(example.rationale).partition(_CLOSING)[0]
    return names_kind(text, fact), why.strip() == reference.strip(), answer.strip(" .").lower() == example.answer


def _perturber(dial: str, vocabulary_size: int) -> Perturber:
    epsilon, neighbours = dial.split(":")
    settings = RunSettings()
    privacy = replace(settings.privacy, vocabulary_size=vocabulary_size)
    if float(epsilon) > 0:
        privacy = replace(privacy, epsilon=float(epsilon), neighbours=int(neighbours))
    mechanism = privacy.mechanism if float(epsilon) > 0 else IDENTITY
    return load_perturber(replace(settings, privacy=privacy), mechanism, SEED)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--dials", nargs="+", default=["0:0", "8:3", "8:2", "6:2", "10:3"])
    parser.add_argument("--adapters", nargs="+", default=["off", "auto"])
    parser.add_argument("--instruction", default="", help="JSON file; the built-in one by default")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--vocabulary-size", type=int, default=RunSettings().privacy.vocabulary_size)
    return parser.parse_args()


if __name__ == "__main__":
    main()
