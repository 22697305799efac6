"""The two prompt families in one model: loss, masks, refusal of private data, resumed training, decoding."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import peft
import pytest
import torch

from pdss_fl.data.everyday import private_examples
from pdss_fl.data.example import Example
from pdss_fl.data.public import public_built_in
from pdss_fl.errors import SettingError
from pdss_fl.privacy import BLANK
from pdss_fl.slm.collator import Row, collate
from pdss_fl.slm.decoder import DecodeRequest
from pdss_fl.slm.encoder_decoder import (
    MANIFEST,
    TEMPLATE_WORDS,
    WEIGHTS,
    TrainedDecoder,
    decoder_prompt,
    encoder_prompt,
    file_sha256,
    load_encoder_decoder,
)
from pdss_fl.slm.encoder_decoder_training import (
    DECODER,
    ENCODER,
    EncoderDecoderTraining,
    Lesson,
    Quadruple,
    lesson_rows,
    start_from_embeddings,
    train_encoder_decoder,
)
from pdss_fl.slm.loss import IGNORED, weighted_loss
from pdss_fl.slm.model import SlmSettings, SmallModel, create_slm
from pdss_fl.slm.packing import keeps_texts_apart, pack

PUBLIC = public_built_in()[:4]
WORDS = ("where", "find", BLANK)
QUADRUPLES = [Quadruple(p, WORDS, WORDS, WORDS, ("where find",), str(p.example.rationale), "a") for p in PUBLIC]
TEXTS = [TEMPLATE_WORDS, *(f"where find a {p.example.question} {p.example.rationale}" for p in PUBLIC)]
SETTINGS = EncoderDecoderTraining(steps=6, batch_size=2, learning_rate=0.01, encoder_weight=0.3, checkpoint_every=2)


def lesson_of(quadruple: Quadruple, random: Random) -> Lesson:
    target = tuple(random.choice(("where", "find")) for _ in quadruple.words)
    request = DecodeRequest(quadruple.public.example, quadruple.released[0], (), quadruple.perturbed_rationale)
    return Lesson(quadruple.words, target, request, quadruple.rationale)


def model() -> SmallModel:
    return create_slm(SlmSettings(hidden_size=32, layers=1, max_tokens=96), TEXTS)


def weights(slm: SmallModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in slm.model.state_dict().items()}


def test_the_prompts_hold_what_the_two_sides_may_read() -> None:
    request = DecodeRequest(Example("where is a robin", ("nest", "zoo"), "nest"), "where bird", ("home",), "A bird.")
    assert str(encoder_prompt(["where", "robin", BLANK])) == "rewrite: where robin _ rewritten:"
    assert str(decoder_prompt(request)) == (
        "restore: released: where bird ; home rationale: A bird. question: where is a robin "
        "choices: nest ; zoo restored:"
    )
    hidden = replace(request, example=replace(request.example, answer="zoo", rationale="secret"))
    assert str(decoder_prompt(hidden)) == str(decoder_prompt(request))  # neither answer nor reference


def test_only_completions_are_learned_and_each_by_its_family() -> None:
    slm = model()
    rows = lesson_rows(slm, lesson_of(QUADRUPLES[0], Random(0)))
    batch = collate(rows, slm.tokenizer.eos_token_id)  # padded with what ends a text
    assert batch.task.tolist() == [ENCODER, DECODER]
    for row, labels in zip(rows, batch.labels.tolist(), strict=True):
        assert [label for label in labels if label != IGNORED] == row.completion
        assert row.completion[-1] == slm.tokenizer.eos_token_id
    written = slm.tokenizer.decode(rows[0].completion[:-1]).split()
    assert len(written) == 3
    assert set(written) <= {"where", "find"}


def test_the_mixed_loss_is_that_of_two_separate_passes() -> None:
    slm = model()
    rows = lesson_rows(slm, lesson_of(QUADRUPLES[0], Random(0)))
    packed, encoder, decoder = loss_of(slm, rows, 0.3)
    assert packed.item() == pytest.approx(0.3 * encoder.item() + 0.7 * decoder.item())
    packed.backward()  # type: ignore[no-untyped-call]
    together = [p.grad.clone() for p in slm.model.parameters() if p.grad is not None]
    slm.model.zero_grad()
    alone = [loss_of(slm, [row], 0.3)[1 + row.task] for row in rows]
    assert torch.stack([encoder, decoder]).tolist() == pytest.approx([loss.item() for loss in alone], rel=1e-4)
    (0.3 * alone[0] + 0.7 * alone[1]).backward()
    apart = [p.grad for p in slm.model.parameters() if p.grad is not None]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(together, apart, strict=True))


def loss_of(slm: SmallModel, rows: Sequence[Row], weight: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return weighted_loss(*pack(slm, [rows], keeps_texts_apart(slm)).token_losses(slm.model), 1 - weight)


def test_the_weight_is_the_encoders() -> None:
    slm = model()
    rows = lesson_rows(slm, lesson_of(QUADRUPLES[0], Random(0)))
    loss, encoder, _ = loss_of(slm, rows, 1.0)
    assert loss.item() == pytest.approx(encoder.item())
    with pytest.raises(SettingError, match=r"--encoder-weight = 0.*\(0, 1\]"):
        EncoderDecoderTraining(steps=1, encoder_weight=0.0)


def test_private_examples_cannot_be_trained_on() -> None:
    private = private_examples()[0]
    with pytest.raises(TypeError, match="PublicExample only, and this is a Example"):
        Quadruple(private, ("a",), ("a",), ("a",), ("a",), "r", "r")  # type: ignore[arg-type]
    smuggled = replace(QUADRUPLES[0])
    object.__setattr__(smuggled, "public", private)
    before = weights(slm := model())
    with pytest.raises(TypeError, match="PublicExample only"):
        train_encoder_decoder(slm, [smuggled], lesson_of, SETTINGS)
    with pytest.raises(TypeError, match="Quadruple only, not on Example"):
        train_encoder_decoder(slm, [private], lesson_of, SETTINGS)  # type: ignore[list-item]
    assert all(torch.equal(before[name], value) for name, value in slm.model.state_dict().items())


def test_a_resumed_training_makes_the_same_weights_as_an_uninterrupted_one(tmp_path: Path) -> None:
    losses = train_encoder_decoder(whole := model(), QUADRUPLES, lesson_of, SETTINGS)

    def killed(step: int, _encoder: float, _decoder: float) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_encoder_decoder(model(), QUADRUPLES, lesson_of, SETTINGS, tmp_path / "c.pt", killed)
    steps: list[int] = []
    resumed = model()
    again = train_encoder_decoder(
        resumed, QUADRUPLES, lesson_of, SETTINGS, tmp_path / "c.pt", lambda step, *_: steps.append(step)
    )
    assert steps == [5, 6]
    assert again == losses
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])


def test_training_learns_both_and_another_seed_learns_otherwise() -> None:
    settings = replace(SETTINGS, steps=60, learning_rate=0.02)
    first: list[tuple[float, float]] = []
    slm = model()
    last = train_encoder_decoder(slm, QUADRUPLES, lesson_of, settings, on_step=lambda _, *e: first.append(e))
    assert last[0] < first[0][0]
    assert first[-1][1] < first[0][1] / 2
    train_encoder_decoder(other := model(), QUADRUPLES, lesson_of, replace(settings, seed=1))
    assert any(not torch.equal(value, other.model.state_dict()[name]) for name, value in weights(slm).items())


def test_words_start_where_their_public_embeddings_are() -> None:
    slm = model()
    embeddings = torch.tensor([[1.0, 0.0, 0.1], [1.0, 0.1, 0.0], [-1.0, 0.5, 0.2]])
    start_from_embeddings(slm, ["where", "find", "gold"], embeddings)
    table = slm.model.get_input_embeddings().weight  # type: ignore[operator]
    near, other, far = (table[slm.encode_next(word)[0]] for word in ("where", "find", "gold"))
    assert torch.cosine_similarity(near, other, dim=0) > 0.9 > torch.cosine_similarity(near, far, dim=0)


def test_the_decoder_writes_one_line_for_every_request(make_pretrained: Callable[..., Path]) -> None:
    request = DecodeRequest(PUBLIC[0].example, "where find", (), "word " * 200)  # longer than the model
    for slm in (model(), create_slm(SlmSettings(str(make_pretrained("gpt2")), max_tokens=96), [])):
        texts = TrainedDecoder(slm, max_new_tokens=8).decode([request, replace(request, rationale="")])
        assert len(texts) == 2
        assert all(isinstance(text, str) and "\n" not in text for text in texts)


def test_an_adapter_beside_the_described_weights_is_refused(tmp_path: Path) -> None:
    """The hash is that of the weights without it, and transformers would load it silently."""
    slm = model()
    slm.save(tmp_path)
    (tmp_path / MANIFEST).write_text(json.dumps({"weights-sha256": file_sha256(tmp_path / WEIGHTS)}))
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    peft.get_peft_model(load_encoder_decoder(str(tmp_path)).model, config).save_pretrained(str(tmp_path))
    with pytest.raises(SettingError, match="its weights are not those"):
        load_encoder_decoder(str(tmp_path))


def test_only_what_the_command_wrote_is_loaded(tmp_path: Path) -> None:
    slm = model()
    slm.save(tmp_path)  # as a client saves its private student
    with pytest.raises(SettingError, match=rf"no encoder-decoder.*{MANIFEST}"):
        load_encoder_decoder(str(tmp_path))
    manifest = tmp_path / MANIFEST
    manifest.write_text(json.dumps({"weights-sha256": file_sha256(tmp_path / WEIGHTS)}))
    assert load_encoder_decoder(str(tmp_path)).max_tokens == 96
    manifest.write_text(json.dumps({"weights-sha256": "0" * 64}))
    with pytest.raises(SettingError, match="its weights are not those"):
        load_encoder_decoder(str(tmp_path))
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(SettingError, match="its weights are not those"):
        load_encoder_decoder(str(tmp_path))
    with pytest.raises(SettingError, match=r"encoder-decoder\.model = 'nobody/nothing'"):
        load_encoder_decoder("nobody/nothing")
