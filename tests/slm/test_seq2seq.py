"""Encoder-decoders as small models: a tiny T5 (pad token = start token, no begin token) and a tiny BART."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
)
from typer.testing import CliRunner

from pdss_fl.cli import app
from pdss_fl.data.example import Example
from pdss_fl.errors import SettingError
from pdss_fl.slm.collator import Row, batch_of, encode_row
from pdss_fl.slm.decoder import DecodeRequest, InContextDecoder
from pdss_fl.slm.evaluate import evaluate, log_likelihoods, predict
from pdss_fl.slm.generation import generate
from pdss_fl.slm.loss import IGNORED, LABEL, RATIONALE
from pdss_fl.slm.model import SlmSettings, SmallModel, create_slm
from pdss_fl.slm.prompts import label_prompt
from pdss_fl.slm.trainer import TrainingItem, TrainSettings, train
from tests.slm.seq2seq import FAMILIES, save_seq2seq


@pytest.fixture(scope="module", params=FAMILIES)
def pretrained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_seq2seq(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture
def seq2seq(pretrained: str) -> SmallModel:
    return create_slm(SlmSettings(pretrained, max_tokens=128), [])


def test_prompts_and_completions_are_what_the_tokenizer_makes_of_texts(seq2seq: SmallModel) -> None:
    example = Example("what does a robin have", ("tulip", "trout"), "tulip")
    row = encode_row(seq2seq, label_prompt(example), example.answer, LABEL)
    assert row.prompt == seq2seq.tokenizer(str(label_prompt(example))).input_ids
    assert row.completion == seq2seq.tokenizer("tulip").input_ids
    assert encode_row(seq2seq, label_prompt(example), " ", LABEL).completion == []


def test_rows_are_padded_on_the_right_and_the_decoder_reads_what_it_wrote(seq2seq: SmallModel) -> None:
    pad, end, start = seq2seq.tokenizer.pad_token_id, seq2seq.tokenizer.eos_token_id, seq2seq.model.config
    begin = start.decoder_start_token_id
    batch = batch_of(seq2seq, [Row([5, pad, 6], [7, pad, end], LABEL, False), Row([8], [end], RATIONALE, False)])
    assert batch.input_ids.tolist() == [[5, pad, 6], [8, pad, pad]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.decoder_input_ids is not None
    assert batch.decoder_input_ids.tolist() == [[begin, 7, pad, end], [begin, end, pad, pad]]
    assert batch.labels.tolist() == [[IGNORED, 7, pad, end], [IGNORED, end, IGNORED, IGNORED]]


def test_the_likelihood_is_that_of_the_model_with_labels(seq2seq: SmallModel) -> None:
    texts = [("robin", "tulip"), ("what does a trout have", "robin robin trout"), ("a", "what does a robin have")]
    rows = [Row(seq2seq.tokenizer(q).input_ids, seq2seq.tokenizer(a).input_ids, LABEL, False) for q, a in texts]
    for row, found in zip(rows, log_likelihoods(seq2seq, rows, batch_size=2), strict=True):
        with torch.no_grad():
            loss = seq2seq.model(torch.tensor([row.prompt]), labels=torch.tensor([row.completion])).loss
        assert found == pytest.approx(-loss.item() * len(row.completion), rel=1e-5)


def test_writing_is_greedy_whatever_the_model_is_used_to(pretrained: str, seq2seq: SmallModel) -> None:
    prompts = [seq2seq.tokenizer(text).input_ids for text in ("robin", "what does a trout have", "tulip tulip")]
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(pretrained).eval(), seq2seq.tokenizer
    for prompt, found in zip(prompts, generate(seq2seq, prompts, 6, batch_size=2), strict=True):
        written = [model.config.decoder_start_token_id]
        for _ in range(6 + len(seq2seq.start_ids)):
            with torch.no_grad():
                logits = model(torch.tensor([prompt]), decoder_input_ids=torch.tensor([written])).logits
            written.append(int(logits[0, -1].argmax()))
            if written[-1] == tokenizer.eos_token_id:
                break
        assert found == tokenizer.decode(written, skip_special_tokens=True)


def test_it_learns_to_answer_and_is_saved_as_it_is(seq2seq: SmallModel, tmp_path: Path) -> None:
    choices = ("robin", "trout", "tulip")
    closed = [Example(f"what does a {c} have", choices, c, rationale=f"a {c} has {c}") for c in choices]
    opened = [Example(f"explain {c}", (), c) for c in choices]
    losses: list[float] = []
    items = [TrainingItem(e, e.rationale) for e in closed + opened]
    settings = TrainSettings(steps=150, batch_size=6, learning_rate=3e-3, rationale_weight=0.3, warmup=5)
    result = train(seq2seq, items, settings, lambda step, loss: losses.append(loss))
    assert losses[-1] < losses[0] / 5
    assert result.rationale_loss > 0
    assert evaluate(seq2seq, closed + opened).correct == 6
    seq2seq.save(tmp_path)
    loaded = SmallModel.load(tmp_path)
    assert (loaded.encoder_decoder, loaded.max_tokens) == (True, 128)
    assert predict(loaded, closed + opened) == predict(seq2seq, closed + opened)
    ids = AutoTokenizer.from_pretrained(tmp_path)("robin", return_tensors="pt").input_ids
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    begin = torch.tensor([[model.config.decoder_start_token_id]])
    expected = seq2seq.model(ids, decoder_input_ids=begin).logits
    assert torch.equal(model(ids, decoder_input_ids=begin).logits, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_training_repeats_also_with_dropout(family: str, tmp_path: Path) -> None:
    folder = save_seq2seq(tmp_path, family, dropout=0.2)
    items = [TrainingItem(Example("robin", ("a", "b"), "a"), "a robin has tulip")]
    runs = []
    for _ in range(2):
        slm = create_slm(SlmSettings(folder, max_tokens=128), [])
        train(slm, items, TrainSettings(steps=3, batch_size=2, learning_rate=1e-3, rationale_weight=0.5))
        runs.append(torch.nn.utils.parameters_to_vector(slm.model.parameters()))
    assert torch.equal(*runs)


def test_it_decodes_in_context_or_says_what_to_do(seq2seq: SmallModel) -> None:
    requests = [DecodeRequest(Example(f"what has a {c}", ("a", "b"), "a"), "what", ("a", "b"), "so") for c in "xy"]
    decoder = InContextDecoder(seq2seq, max_new_tokens=4)
    assert len(decoder.decode(requests)) == 2
    assert decoder._encode(requests[0]) == seq2seq.tokenizer(decoder.prompt(requests[0])).input_ids
    if "max_position_embeddings" in seq2seq.model.config.to_dict():  # T5 has no such limit
        with pytest.raises(SettingError, match=r"slm\.model: it takes 512 tokens.*distill\.decoder to 'align'"):
            InContextDecoder(seq2seq, max_new_tokens=500).decode(requests)


def test_the_command_line_answers_with_it(seq2seq: SmallModel, tmp_path: Path) -> None:
    seq2seq.save(tmp_path / "slm")
    asked = [Example("what does a robin have", ("tulip", "trout"), "tulip"), Example("robin", ("a", "trout"), "a")]
    lines = [json.dumps({"question": e.question, "choices": e.choices}) for e in asked]
    (tmp_path / "questions.jsonl").write_text("\n".join(lines))
    result = CliRunner().invoke(app, ["predict", str(tmp_path / "slm"), str(tmp_path / "questions.jsonl")])
    assert [json.loads(line)["prediction"] for line in result.stdout.splitlines()] == predict(seq2seq, asked)


def test_a_cut_completion_has_no_end_and_trains_nothing_beyond(seq2seq: SmallModel) -> None:
    example = Example("robin", ("a", "b"), "a")
    row = encode_row(seq2seq, label_prompt(example), "robin trout tulip " * 40, LABEL)
    assert row.truncated
    assert len(row.completion) == seq2seq.max_tokens // 2
    assert seq2seq.tokenizer.eos_token_id not in row.completion
    assert row.tokens <= seq2seq.max_tokens


def test_rows_longer_than_its_positions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"slm\.max-tokens = 513.*512"):
        create_slm(SlmSettings(save_seq2seq(tmp_path / "bart", "bart"), max_tokens=513), [])
    assert create_slm(SlmSettings(save_seq2seq(tmp_path / "t5", "t5"), max_tokens=513), []).max_tokens == 513


def test_one_without_a_start_token_is_refused(tmp_path: Path) -> None:
    model = AutoModelForSeq2SeqLM.from_pretrained(save_seq2seq(tmp_path, "t5"))
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = None
    model.save_pretrained(tmp_path)
    with pytest.raises(SettingError, match=r"slm\.model.*decoder_start_token_id"):
        create_slm(SlmSettings(str(tmp_path)), [])
