"""Training of the adapter: what it reads, what it learns to write, and two real steps on a tiny model."""

from __future__ import annotations

import json
import re
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from pdss_fl.adapt import (
    IGNORED,
    AdapterSettings,
    Pair,
    encode,
    rationale_loss,
    target,
    train_adapter,
    training_pairs,
)
from pdss_fl.data.everyday import facts, public_examples
from pdss_fl.data.example import Example
from pdss_fl.llm.adapter import apply_adapter
from pdss_fl.llm.instruction import ADAPTED, EVERYDAY
from pdss_fl.messages import PerturbedPrompt
from tests.llm.helpers import make_llama, make_tokenizer

TINY = AdapterSettings(rank=2, steps=2, batch_size=3, dials=((8.0, 3),))
REFERENCE = "A robin is a bird. Birds have feathers. So the answer is feathers."
PAIRS = [
    Pair(PerturbedPrompt(0, "what does a robin have", ("fins", "wings")), "A robin is a bird."),
    Pair(PerturbedPrompt(0, "what is red", ("kettle", "a colour", "town")), "Red is like other colours."),
]


def words_of(pair: Pair) -> set[str]:
    text = " ".join((pair.prompt.question, *pair.prompt.choices, pair.rationale))
    return set(re.findall(r"[a-z]+", text.lower()))


def test_every_question_and_rationale_is_public() -> None:
    count = len(public_examples())
    pairs = list(islice(training_pairs(AdapterSettings(dials=())), count))
    assert {pair.rationale for pair in pairs} == {example.rationale for example in public_examples()}
    private = {fact.thing for fact in facts("private")}
    assert not private & set().union(*map(words_of, pairs))


def test_demonstrations_are_public() -> None:
    shown = {(e.question.lower().rstrip("?"), e.choices, e.rationale) for e in public_examples()}
    assert {(d.question, d.choices, d.rationale) for d in EVERYDAY.demonstrations} <= shown


def test_passes_differ_and_seeds_repeat_them() -> None:
    count = len(public_examples())
    first = list(islice(training_pairs(TINY), 2 * count))
    assert first == list(islice(training_pairs(TINY), 2 * count))
    assert set(first[:count]) != set(first[count:])
    clean = set(islice(training_pairs(AdapterSettings(dials=())), count))
    assert 0.3 < sum(pair.rationale in {c.rationale for c in clean} for pair in first) / len(first) < 0.9


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([("robin", "robin"), ("feathers", "feathers")], REFERENCE),
        ([("owl", "robin"), ("fur", "feathers")], "An owl is a bird. Birds have feathers. So the answer is fur."),
        ([("an", "a"), ("tea", "robin")], "A tea is a bird. Birds have feathers. So the answer is feathers."),
    ],
)
def test_thing_and_answer_are_written_as_released(pairs: list[tuple[str, str]], expected: str) -> None:
    example = Example("What does a robin have?", ("feathers", "wheels"), "feathers", rationale=REFERENCE)
    assert target(example, "robin", pairs) == expected


@pytest.mark.parametrize("chat", [False, True])
def test_only_the_rationale_and_its_end_are_learned(chat: bool) -> None:
    tokenizer = make_tokenizer(chat)
    shared, ids, labels = encode(PAIRS, tokenizer, ADAPTED)
    for pair, row, learned in zip(PAIRS, ids, labels, strict=True):
        prompt = tokenizer(ADAPTED.render(tokenizer, pair.prompt), add_special_tokens=not chat)["input_ids"]
        whole = prompt + tokenizer(pair.rationale, add_special_tokens=False)["input_ids"] + [0]
        assert (shared[0].tolist() + row.tolist())[: len(whole)] == whole
        first, end = len(prompt) - shared.shape[1], len(whole) - shared.shape[1]
        assert learned[first:end].tolist() == whole[len(prompt) :]
        assert set(learned[:first].tolist() + learned[end:].tolist()) == {IGNORED}


def test_the_shared_beginning_changes_neither_loss_nor_gradient() -> None:
    tokenizer, model = make_tokenizer(), make_llama()
    shared, ids, labels = encode(PAIRS, tokenizer, ADAPTED)
    assert shared.shape[1] > 10
    loss = rationale_loss(model, shared, ids, labels)
    embeddings = model.get_parameter("model.embed_tokens.weight")
    (gradient,) = torch.autograd.grad(loss, embeddings)
    rows = torch.cat([shared.expand(len(ids), -1), ids], dim=1)
    logits = model(rows).logits[:, shared.shape[1] : -1]
    plain = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
    (expected,) = torch.autograd.grad(plain, embeddings)
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=1e-3)


def test_two_steps_make_an_adapter_that_fits(tmp_path: Path) -> None:
    make_llama().save_pretrained(tmp_path / "llm")
    make_tokenizer().save_pretrained(tmp_path / "llm")
    seen: list[tuple[int, float]] = []
    for run in ("first", "second"):
        train_adapter(
            tmp_path / run, model=str(tmp_path / "llm"), settings=TINY, on_step=lambda *step: seen.append(step)
        )
    assert [step for step, _ in seen] == [1, 2, 1, 2]
    written = {path.name for path in (tmp_path / "first").iterdir()}
    assert written == {"adapter_config.json", "adapter_model.safetensors"}
    first, second = (load_file(tmp_path / run / "adapter_model.safetensors") for run in ("first", "second"))
    assert {tensor.dtype for tensor in first.values()} == {torch.bfloat16}
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert json.loads((tmp_path / "first" / "adapter_config.json").read_text())["r"] == 2
    merged = apply_adapter(make_llama(), str(tmp_path / "first"))
    changed = [name for name, p in make_llama().named_parameters() if not torch.equal(p, merged.get_parameter(name))]
    assert changed
    assert all(re.search(r"layers\.\d\.(self_attn|mlp)\.", name) for name in changed)
