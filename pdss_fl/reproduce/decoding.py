"""Whether the perturbed rationale contributes, or the client's decoder just answers by itself.

Run ``make reproduce-decoding``. Questions of the built-in private split are released once under a mechanism and
answered once by the LLM. Each decoder then decodes with the rationale that came back, with one that came back for
another question, and with none. What stays of the shares without the right rationale is what the decoder, with the
private question and choices before it, does alone. The private split is read to measure only.

Columns, before any filter: the share of decoded rationales that state the right answer, and the share that name the
right kind of the thing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pdss_fl.bundled import BUNDLED_MODEL, bundled_model_path
from pdss_fl.config import RunSettings
from pdss_fl.data.everyday import Fact, facts, private_examples
from pdss_fl.data.example import Example
from pdss_fl.llm.protocol import RationaleGenerator
from pdss_fl.messages import GenerationSettings, PerturbedPrompt, PromptBatch
from pdss_fl.privacy import BLANK
from pdss_fl.release import Perturber, word_pairs
from pdss_fl.reproduce.quality import is_right, names_kind
from pdss_fl.reproduce.statistics import markdown
from pdss_fl.server_app import load_generator
from pdss_fl.slm.decoder import DecodeRequest, InContextDecoder, align
from pdss_fl.slm.encoder_decoder import TrainedDecoder, load_encoder_decoder
from pdss_fl.slm.model import SlmSettings, create_slm
from pdss_fl.vocabularies import load_perturber

REAL, UNRELATED, NONE = "the one that came back", "another question's", "none"
COLUMNS = ("decoder", "rationale", "right answer", "right kind", "questions")

Asked = Sequence[tuple[Fact, Example]]
Pairs = Sequence[Sequence[tuple[str, str]]]
Decode = Callable[[Sequence[DecodeRequest], Pairs], list[str]]


def choose(count: int) -> Asked:
    """Return ``count`` private questions, spread over the split."""
    everything = list(zip(facts("private"), private_examples(), strict=True))
    return everything[:: max(1, len(everything) // count)][:count]


def ask(asked: Asked, perturber: Perturber, llm: RationaleGenerator, tokens: int) -> tuple[list[DecodeRequest], Pairs]:
    """Release the questions once, have the LLM answer them, and return what each client would decode."""
    examples = [example for _, example in asked]
    payloads = perturber.perturb(examples)
    prompts = tuple(
        PerturbedPrompt(i, " ".join(p["question"]), tuple(" ".join(c) for c in p["choices"]))
        for i, p in enumerate(payloads)
    )
    batch = PromptBatch.parse(PromptBatch(prompts, perturber.statement()).serialize())
    written = sorted(llm.generate(batch, GenerationSettings(tokens)), key=lambda r: r.ordinal)
    requests = [
        DecodeRequest(e, _said(p["question"]), tuple(filter(None, map(_said, p["choices"]))), r.text)
        for e, p, r in zip(examples, payloads, written, strict=True)
    ]
    return requests, [word_pairs(e, p, perturber) for e, p in zip(examples, payloads, strict=True)]


def sources(requests: Sequence[DecodeRequest], asked: Asked) -> dict[str, list[DecodeRequest]]:
    """Return the requests with their own rationale, with one about a thing of another kind, and with none."""
    kinds = [fact.kind for fact, _ in asked]
    order = np.random.default_rng(0).permutation(len(requests)).tolist()
    other = [next((j for j in order[i:] + order[:i] if kinds[j] != kinds[i]), i) for i in range(len(requests))]
    return {
        REAL: list(requests),
        UNRELATED: [replace(r, rationale=requests[j].rationale) for r, j in zip(requests, other, strict=True)],
        NONE: [replace(r, rationale="") for r in requests],
    }


def decoders(model: str, slm: str) -> dict[str, Decode]:
    """Return the trained decoder and alignment, and in-context decoding where a pretrained small model is named."""
    trained = TrainedDecoder(load_encoder_decoder(model))
    found: dict[str, Decode] = {
        "trained": lambda requests, pairs: _aligned(trained.decode(requests), pairs),
        "align": lambda requests, pairs: _aligned([r.rationale for r in requests], pairs),
    }
    if slm:
        folder = str(bundled_model_path()) if slm == BUNDLED_MODEL else slm
        local = InContextDecoder(create_slm(SlmSettings(folder, max_tokens=512), []))
        found["in-context"] = lambda requests, _: local.decode(requests)
    return found


def measure(requests: Sequence[DecodeRequest], pairs: Pairs, asked: Asked, using: Mapping[str, Decode]) -> str:
    """Return one line a decoder and source of its rationale, in Markdown."""
    lines = []
    for name, decode in using.items():
        for source, given in sources(requests, asked).items():
            decoded = decode(given, pairs)
            shares = [sum(column) / len(asked) for column in zip(*map(judge, decoded, asked), strict=True)]
            lines.append([name, source, *(f"{share:.1%}" for share in shares), str(len(asked))])
    return markdown(COLUMNS, lines)


def judge(text: str, asked: tuple[Fact, Example]) -> tuple[bool, bool]:
    """Return whether a decoded rationale states the right answer, and names the right kind before it."""
    fact, example = asked
    return is_right(text, example), names_kind(text, fact)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, and write it below ``--output``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--mechanism", default=RunSettings().privacy.mechanism)
    parser.add_argument("--epsilon", type=float, default=RunSettings().privacy.epsilon)
    parser.add_argument("--model", default=RunSettings().encoder_decoder.model, help="the encoder-decoder")
    parser.add_argument("--slm", default="", help=f"a pretrained model for in-context decoding, e.g. {BUNDLED_MODEL}")
    parser.add_argument("--output", type=Path, default=Path("runs", "reproduce"))
    given = parser.parse_args(arguments)
    settings = RunSettings.from_run_config(
        {
            "privacy.mechanism": given.mechanism, "privacy.epsilon": given.epsilon, "llm.dtype": "float32",
            "encoder-decoder.model": given.model,
        }
    )  # fmt: skip
    asked = choose(given.questions)
    perturber = load_perturber(settings, given.mechanism, 0)
    requests, pairs = ask(asked, perturber, load_generator(settings.llm), settings.llm.max_new_tokens)
    text = measure(requests, pairs, asked, decoders(given.model, given.slm))
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "decoding.md").write_text(text, encoding="utf-8")
    print(f"{given.mechanism}, epsilon {given.epsilon:g} a word\n\n{text}")


def _aligned(texts: Sequence[str], pairs: Pairs) -> list[str]:
    return [align(text, words) for text, words in zip(texts, pairs, strict=True)]


def _said(words: Sequence[str]) -> str:
    return " ".join(word for word in words if word != BLANK)


if __name__ == "__main__":
    main()
