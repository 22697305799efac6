"""Hugging Face models as attackers, against the models asked one text at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertForMaskedLM, BertTokenizer

from pdss_fl.errors import SettingError
from pdss_fl.privacy import Vocabulary, create_mechanism
from pdss_fl.privacy.attacks import Document, Releases, run_attacks
from pdss_fl.slm.attackers import completer, masked_scores, sequence_score

WORDS = ("robin", "feathers", "violin", "zebra", "strings", "saucepans", "_")
TEXTS = ["a robin has feathers", "a violin has strings", "zebra", "a robin has a violin and a zebra"]


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a tiny random BERT that spells ``feathers`` in two pieces and does not know ``saucepans``."""
    directory = tmp_path_factory.mktemp("bert")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "has", "robin", "feather", "##s", "violin", "zebra"]
    (directory / "vocab.txt").write_text("\n".join([*pieces, "string"]))
    tokenizer = BertTokenizer(str(directory / "vocab.txt"), model_max_length=32)
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, initializer_range=1.0,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(directory)
    return directory


def test_words_are_scored_in_the_place_of_the_mask(bert: Path) -> None:
    found = masked_scores(str(bert), WORDS)([["a", "robin", "has", "feathers"], ["zebra"]], [1, 0])
    model, tokenizer = BertForMaskedLM.from_pretrained(bert).eval(), BertTokenizer.from_pretrained(bert)
    for row, (before, after) in enumerate([("a", "has feathers"), ("", "")]):
        for column, pieces in ((0, ["robin"]), (1, ["feather", "##s"]), (3, ["zebra"]), (4, ["string", "##s"])):
            batch = tokenizer(f"{before} {'[MASK] ' * len(pieces)}{after}", return_tensors="pt")
            with torch.no_grad():
                log_prob = model(**batch).logits[0].log_softmax(-1)
            places = (batch.input_ids[0] == tokenizer.mask_token_id).nonzero()[:, 0]
            ids = torch.tensor(tokenizer.convert_tokens_to_ids(pieces))
            assert float(found[row, column]) == pytest.approx(float(log_prob[places, ids].sum()), abs=1e-4)
    assert found[:, 5:].isneginf().all(), "what the model cannot spell, and filling words, are never guessed"


def test_a_text_beyond_what_the_model_reads_leaves_nothing_to_guess(bert: Path) -> None:
    scores = masked_scores(str(bert), WORDS)([["a"] * 60, ["a"] * 60], [59, 3])
    assert scores[0].isneginf().all()
    assert not scores[1, 0].isneginf()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_texts_are_scored_as_one_by_one(family: str, make_pretrained: Callable[..., Path]) -> None:
    directory = make_pretrained(family)
    found = sequence_score(str(directory))(TEXTS * 10)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(directory).eval(), AutoTokenizer.from_pretrained(directory)
    for place, text in enumerate(TEXTS):
        ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(" " + text, add_special_tokens=False).input_ids]])
        with torch.no_grad():
            log_prob = model(ids).logits[0, :-1].double().log_softmax(-1)
        alone = float(log_prob.gather(1, ids[0, 1:, None]).sum())
        assert float(found[place + 4]) == pytest.approx(alone, abs=1e-3)
    assert found.dtype == torch.float64


def test_prompts_are_continued_greedily(make_pretrained: Callable[..., Path]) -> None:
    directory = make_pretrained("llama")
    written = completer(str(directory), max_new_tokens=5)([TEXTS[0], TEXTS[1], "a robin " * 600])
    model, tokenizer = AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    for text, found in zip(TEXTS, written[:2], strict=False):
        ids = tokenizer(text, return_tensors="pt").input_ids
        out = model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=tokenizer.eos_token_id)
        assert tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True) == found
    assert len(written) == 3


def test_all_attacks_run_with_real_models(bert: Path, make_pretrained: Callable[..., Path]) -> None:
    words = Vocabulary(WORDS[:6], torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), blanks=1)
    mechanism = create_mechanism("staircase", words, epsilon=1.0, neighbours=2)
    raw = [Document(torch.tensor([0, 1, i % 6])) for i in range(12)]
    released = [Document(mechanism.perturb(document.ids)) for document in raw]
    causal = str(make_pretrained("llama"))
    results = run_attacks(
        Releases(mechanism, raw, released, shadow=raw[:4]),
        masked=masked_scores(str(bert), words.tokens),
        score=sequence_score(causal),
        complete=completer(causal, max_new_tokens=4),
    )
    assert [result.name for result in results] == [
        "optimal context-free Bayes, exact",
        "context-free Bayes, public word frequencies",
        "context-free Bayes, the data's own frequencies",
        "contextual Bayes over 7 candidates",
        "embedding inversion at 1",
        "embedding inversion at 5",
        "masked language model",
        "generative reconstruction",
    ]
    assert all(result.exact.total in (1, 36) for result in results)


@pytest.mark.parametrize("adapter", [lambda m: masked_scores(m, WORDS), sequence_score, completer])
def test_a_missing_model_is_named(adapter: Callable[[str], object], tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"audit\.(masked|language)-model = .*missing.*safetensors"):
        adapter(str(tmp_path / "missing"))


def test_the_setting_of_the_caller_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="--attacker = "):
        completer(str(tmp_path / "missing"), setting="--attacker")


def test_a_causal_model_is_no_masked_one(make_pretrained: Callable[..., Path]) -> None:
    with pytest.raises(SettingError, match=r"audit\.masked-model"):
        masked_scores(str(make_pretrained("gpt2")), WORDS)


def test_only_safetensors_are_read(bert: Path, tmp_path: Path) -> None:
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((bert / file).read_bytes())
    torch.save(BertForMaskedLM.from_pretrained(bert).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(SettingError, match="safetensors"):
        masked_scores(str(tmp_path), WORDS)
