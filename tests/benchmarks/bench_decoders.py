"""Which rationale decoder gives the client the truest rationales: alignment, in-context, or none.

Run: ``python tests/benchmarks/bench_decoders.py [--questions 60]``. One release of private questions under the
default mechanism, answered once by the default LLM; each decoder then works on the same answers. The in-context
decoder needs a pretrained local model and gets the bundled one, which is as large as the LLM itself. Printed for
each: the share of decoded rationales that name the thing's right kind and that give the reference's reason, and
seconds a rationale.
"""

from __future__ import annotations

import argparse
import time

from pdss_fl.bundled import bundled_model_path
from pdss_fl.config import RunSettings
from pdss_fl.data.everyday import facts, private_examples
from pdss_fl.llm.generator import load_local_generator
from pdss_fl.messages import GenerationSettings, PerturbedPrompt, PromptBatch
from pdss_fl.privacy import BLANK
from pdss_fl.release import word_pairs
from pdss_fl.slm.decoder import DecodeRequest, InContextDecoder, align
from pdss_fl.slm.model import SlmSettings, create_slm
from pdss_fl.vocabularies import load_perturber


def main() -> None:
    """Print one line a decoder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=60)
    count = parser.parse_args().questions
    settings = RunSettings()
    perturber = load_perturber(settings, settings.privacy.mechanism)
    asked = list(zip(facts("private"), private_examples(), strict=True))[:: len(private_examples()) // count][:count]
    examples = [example for _, example in asked]
    payloads = perturber.perturb(examples)
    prompts = tuple(
        PerturbedPrompt(i, " ".join(p["question"]), tuple(" ".join(c) for c in p["choices"]))
        for i, p in enumerate(payloads)
    )
    llm = load_local_generator(settings.llm.model, adapter=settings.llm.adapter)
    written = llm.generate(PromptBatch(prompts, perturber.statement()), GenerationSettings(settings.llm.max_new_tokens))
    texts = [r.text for r in sorted(written, key=lambda r: r.ordinal)]
    local = InContextDecoder(create_slm(SlmSettings(str(bundled_model_path()), max_tokens=512), []))
    requests = [
        DecodeRequest(e, _said(p["question"]), tuple(map(_said, p["choices"])), text)
        for e, p, text in zip(examples, payloads, texts, strict=True)
    ]
    pairs = [word_pairs(e, p, perturber) for e, p in zip(examples, payloads, strict=True)]
    decoders = {
        "none": lambda: texts,
        "align": lambda: [align(text, words) for text, words in zip(texts, pairs, strict=True)],
        "in-context": lambda: local.decode(requests),
    }
    print(f"{'decoder':<12}{'right kind':>12}{'right reason':>14}{'s/rationale':>13}   ({count} questions)")
    for name, decode in decoders.items():
        started = time.perf_counter()
        decoded = decode()
        seconds = (time.perf_counter() - started) / count
        kinds = [
            fact.kind in text.lower().split("so the answer")[0] for (fact, _), text in zip(asked, decoded, strict=True)
        ]
        reasons = [
            str(e.rationale).split(" So the answer")[0].lower() in text.lower()
            for e, text in zip(examples, decoded, strict=True)
        ]
        print(f"{name:<12}{sum(kinds) / count:>12.1%}{sum(reasons) / count:>14.1%}{seconds:>13.4f}")


def _said(words: list[str]) -> str:
    return " ".join(word for word in words if word != BLANK)


if __name__ == "__main__":
    main()
