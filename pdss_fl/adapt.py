"""Train the LLM's LoRA adapter for the built-in set, on its public split only.

The LLM's operator runs this once, before any client exists, so it costs nobody any privacy. The LLM
learns to write rationales in the form that the set uses, also for prompts whose words were replaced:
it is shown public questions as clients would send them, clean and perturbed, in the words of the
served prompt. What it is to write keeps what is true of the original thing and names the thing and
the answer by the words that were released for them, since those are what a client can put its own
words back into (``pdss_fl.slm.alignment``). The words that replace others come from the public vocabulary, which
knows every thing of the domain, so names of things that the private split asks about occur as noise.

Run ``python -m pdss_fl.adapt pdss_fl/llm/adapters/everyday`` to make the built-in adapter again; it prints
the seconds left (the committed one took 900 s with two threads of a loaded machine).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase, get_linear_schedule_with_warmup

from pdss_fl.bundled import BUNDLED_MODEL
from pdss_fl.config import IDENTITY, RunSettings
from pdss_fl.data.everyday import facts, public_examples
from pdss_fl.data.example import Example
from pdss_fl.llm.decode import common_length
from pdss_fl.llm.instruction import ADAPTED, Instruction
from pdss_fl.llm.loading import load_causal_lm
from pdss_fl.messages import PerturbedPrompt
from pdss_fl.privacy import create_mechanism
from pdss_fl.release import Perturber, word_pairs
from pdss_fl.slm.alignment import align
from pdss_fl.slm.loss import IGNORED
from pdss_fl.vocabularies import load_perturber

_CLOSING = " So the answer is "


@dataclass(frozen=True)
class AdapterSettings:
    """How an adapter is trained.

    Parameters
    ----------
    rank : int (default: 8)
        Of every low-rank update, 1 or more; all linear layers of the transformer's blocks get one.
    steps, batch_size : int
        Optimizer steps, and questions in each.
    learning_rate : float (default: 1e-3)
        Of AdamW after warming up; it falls linearly to zero.
    dials : tuple[tuple[float, int], ...]
        (epsilon per token in nats, neighbours) of the staircases; an eighth of the questions stays clean.
    shapes : tuple[tuple[str, int, int], ...]
        (``privacy.words``, words of the question, choices) of what clients may send.
    seed : int (default: 0)
        Of the initial weights, the order of the questions and the noise.
    """

    rank: int = 8
    steps: int = 500
    batch_size: int = 8
    learning_rate: float = 1e-3
    dials: tuple[tuple[float, int], ...] = ((5.0, 8), (6.0, 4), (6.0, 6), (7.0, 6), (8.0, 3), (8.0, 5), (10.0, 3))
    shapes: tuple[tuple[str, int, int], ...] = (
        ("content", 3, 4), ("content", 2, 4), ("content", 3, 0), ("content", 2, 0), ("all", 12, 4),
    )  # fmt: skip
    seed: int = 0


@dataclass(frozen=True)
class Pair:
    """A prompt as the LLM is asked it, and the rationale that it is to write."""

    prompt: PerturbedPrompt
    rationale: str


def train_adapter(
    output: Path,
    *,
    model: str = BUNDLED_MODEL,
    settings: AdapterSettings | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> None:
    """Train a LoRA adapter on the public split and save it in the format of ``peft``, in bfloat16.

    Parameters
    ----------
    output : Path
        Folder for ``adapter_model.safetensors`` and ``adapter_config.json``.
    model : str
        What the adapter is for; as in ``load_causal_lm``, whose errors it raises.
    settings : AdapterSettings | None
        ``None`` for the defaults.
    on_step : Callable[[int, float], None] | None
        Called after every step with its number, from 1, and its loss in nats per token.
    """
    settings = settings or AdapterSettings()
    loaded, tokenizer = load_causal_lm(model, "bfloat16", "cpu")
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        config = LoraConfig(
            r=settings.rank, lora_alpha=2 * settings.rank, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        adapted = get_peft_model(loaded, config)
    trained = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(  # type: ignore[no-untyped-call]
        optimizer, settings.steps // 20, settings.steps
    )
    batches = _batches(training_pairs(settings), settings.batch_size)
    for step in range(1, settings.steps + 1):
        loss = rationale_loss(loaded, *encode(next(batches), tokenizer, ADAPTED))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if on_step:
            on_step(step, loss.item())
    written: Any = adapted.peft_config["default"]
    written.base_model_name_or_path = model  # not the path of this machine's cache
    written.target_modules = sorted(written.target_modules)  # a set, whose order would differ in every process
    adapted.to(torch.bfloat16).save_pretrained(str(output), save_embedding_layers=False)
    (output / "README.md").unlink(missing_ok=True)


def training_pairs(settings: AdapterSettings) -> Iterator[Pair]:
    """Yield pairs without end, pass by pass over the public questions, each time in another order.

    Every question is perturbed anew in every pass, by one of the mechanisms that ``settings`` names.
    """
    random = Random(settings.seed)
    perturbers = _perturbers(settings)
    asked = list(zip(facts("public"), public_examples(), strict=True))
    while True:
        random.shuffle(asked)
        for fact, example in asked:
            yield _pair(example, fact.thing, random.choice(perturbers))


def _perturbers(settings: AdapterSettings) -> list[Perturber]:
    perturbers = []
    for words, question_words, choices in settings.shapes:
        run = RunSettings()
        shape = replace(run.privacy, length="bucket", words=words, question_words=question_words, choices=choices)
        base = load_perturber(replace(run, privacy=shape), shape.mechanism, settings.seed)
        perturbers.append(replace(base, mechanism=create_mechanism(IDENTITY, base.vocabulary)))
        for epsilon, neighbours in settings.dials:
            dial = replace(shape, epsilon=epsilon, neighbours=neighbours)
            perturbers.append(load_perturber(replace(run, privacy=dial), dial.mechanism, settings.seed))
    return perturbers


def _pair(example: Example, thing: str, perturber: Perturber) -> Pair:
    (payload,) = perturber.perturb([example])
    choices = tuple(" ".join(words) for words in payload["choices"])
    prompt = PerturbedPrompt(0, " ".join(payload["question"]), choices)
    return Pair(prompt, target(example, thing, word_pairs(example, payload, perturber)))


def target(example: Example, thing: str, pairs: Sequence[tuple[str, str]]) -> str:
    """Return the rationale to learn: the reference, its thing and its answer as they were released.

    Parameters
    ----------
    example : Example
        With a reference rationale in the form of the built-in set.
    thing : str
        What the question is about, one word.
    pairs : Sequence[tuple[str, str]]
        (released word, private word) for each position of the prompt.
    """
    why, answer = str(example.rationale).rsplit(_CLOSING, 1)
    released = [(private, out) for out, private in pairs]
    named = align(why, [pair for pair in released if pair[0] == thing])
    return f"{named}{_CLOSING}{align(answer, released)}"


def _batches(pairs: Iterator[Pair], size: int) -> Iterator[list[Pair]]:
    while True:
        yield [next(pairs) for _ in range(size)]


def encode(
    pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, instruction: Instruction
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the token ids of a batch, split after what all its prompts begin with.

    Returns
    -------
    tuple[Tensor, Tensor, Tensor]
        The shared beginning (1, p); the rest of each prompt with its rationale and the end token,
        filled up on the right (n, t); and the labels of the latter (n, t), ``IGNORED`` wherever
        there is nothing to learn: in the prompt and after the end.
    """
    special = tokenizer.chat_template is None  # a chat template writes the special tokens itself
    texts = [instruction.render(tokenizer, pair.prompt) for pair in pairs]
    prompts: list[list[int]] = tokenizer(texts, add_special_tokens=special)["input_ids"]
    rationales = [tokenizer(pair.rationale, add_special_tokens=False)["input_ids"] for pair in pairs]
    shared = min(common_length(prompts[0], p) for p in prompts)
    shared = min(shared, *(len(p) - 1 for p in prompts))
    rests = [p[shared:] for p in prompts]
    answers = [[*r, tokenizer.eos_token_id] for r in rationales]
    ids = [torch.tensor(p + a) for p, a in zip(rests, answers, strict=True)]
    labels = [torch.tensor([IGNORED] * len(p) + a) for p, a in zip(rests, answers, strict=True)]
    pad: Any = torch.nn.utils.rnn.pad_sequence
    return torch.tensor([prompts[0][:shared]]), pad(ids, True, 0), pad(labels, True, IGNORED)


def rationale_loss(model: PreTrainedModel, shared: Tensor, ids: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of the tokens to learn, in nats; shapes as ``encode`` returns them.

    The shared beginning goes through the model once a batch, and only what is learned meets the
    vocabulary, which together cost less than half of whole prompts.
    """
    backbone = model.base_model
    cache = DynamicCache(config=model.config)
    backbone(input_ids=shared, past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(len(ids))
    # What fills a row up stands behind everything that is learned, so causal attention needs no mask.
    hidden = backbone(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state[:, :-1]
    learned = labels[:, 1:] != IGNORED
    logits: Tensor = model.get_output_embeddings()(hidden[learned])  # type: ignore[no-untyped-call]
    return F.cross_entropy(logits.float(), labels[:, 1:][learned])


def main() -> None:
    """Train the built-in adapter from the command line and show the progress."""
    parser = argparse.ArgumentParser(description="Train the LoRA adapter of the bundled LLM.")
    parser.add_argument("output", type=Path, help="folder for the adapter")
    parser.add_argument("--steps", type=int, default=AdapterSettings.steps)
    arguments = parser.parse_args()
    settings = AdapterSettings(steps=arguments.steps)
    start = time.monotonic()

    def show(step: int, loss: float) -> None:
        if step % 10 == 0 or step == settings.steps:
            left = (time.monotonic() - start) / step * (settings.steps - step)
            print(f"step {step} of {settings.steps}, loss {loss:.3f}, {left:.0f} seconds left", flush=True)

    train_adapter(arguments.output, settings=settings, on_step=show)


if __name__ == "__main__":
    main()
