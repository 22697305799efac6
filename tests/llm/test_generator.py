"""The generator of rationales: what it writes, when it stops, and what it refuses to load."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from pdss_fl.errors import LLMUnavailable, MessageError, SettingError
from pdss_fl.llm.generator import load_local_generator
from pdss_fl.llm.instruction import EVERYDAY
from pdss_fl.llm.scheduler import Scheduler
from pdss_fl.messages import (
    MAX_RATIONALE_CHARS,
    Finish,
    GenerationSettings,
    PerturbedPrompt,
    PromptBatch,
    Rationale,
)
from tests.llm.helpers import STATEMENT, make_batch, make_generator, make_llama, make_tokenizer

SETTINGS = GenerationSettings(max_new_tokens=20, stop=())


def texts(generator: Scheduler, batch: PromptBatch, settings: GenerationSettings = SETTINGS) -> list[str]:
    written = sorted(generator.generate(batch, settings), key=lambda r: r.ordinal)
    assert [r.ordinal for r in written] == list(range(len(batch.prompts)))
    return [r.text for r in written]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_writes_what_generate_writes(chat: bool, seed: int) -> None:
    batch, tokenizer = make_batch(11, seed), make_tokenizer(chat)
    model: Any = make_llama(seed)
    expected = []
    for prompt in batch.prompts:
        text = EVERYDAY.render(tokenizer, prompt)
        ids = tokenizer(text, add_special_tokens=not chat, return_tensors="pt")["input_ids"]
        output = model.generate(ids, max_new_tokens=20, do_sample=False, pad_token_id=0)
        expected.append(str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)).strip())
    assert texts(make_generator(seed, chat=chat, batch_size=4), batch) == expected
    assert len(set(expected)) > 5


def test_the_batch_a_prompt_is_in_does_not_matter() -> None:
    batch = make_batch(10)
    together = texts(make_generator(), batch)
    assert texts(make_generator(batch_size=3), batch) == together
    reverse = tuple(PerturbedPrompt(i, p.question, p.choices) for i, p in enumerate(batch.prompts[::-1]))
    assert texts(make_generator(), PromptBatch(reverse, STATEMENT))[::-1] == together


def test_stop_texts_cut_and_end_a_rationale() -> None:
    generator, batch = make_generator(), make_batch(6)
    for whole in generator.generate(batch, SETTINGS):
        assert (whole.finish, whole.tokens) == (Finish.LENGTH, 20)
        stop = whole.text[12:14]
        settings = GenerationSettings(20, ("never seen", stop))
        cut = next(r for r in generator.generate(batch, settings) if r.ordinal == whole.ordinal)
        assert cut.text == whole.text[: whole.text.index(stop)].rstrip()
        assert cut.finish is Finish.STOP
        assert cut.tokens < 20


def test_an_empty_stop_text_stops_nothing() -> None:
    generator, batch = make_generator(), make_batch(2)
    assert texts(generator, batch, GenerationSettings(20, ("",))) == texts(generator, batch)


def test_tokens_are_capped_by_the_generator() -> None:
    generator = make_generator()
    (rationale,) = generator.generate(make_batch(1), GenerationSettings(10**6, ()))
    assert rationale.tokens <= generator.info.max_new_tokens == 512


def test_characters_are_capped() -> None:
    words = {f"{i:03d}" + "x" * 200: i for i in range(400)}
    inner = Tokenizer(models.WordLevel(words, unk_token=min(words)))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)  # type: ignore[no-untyped-call]
    generator = Scheduler(make_llama(), tokenizer, name="tiny", instruction=EVERYDAY)
    (rationale,) = generator.generate(make_batch(1), GenerationSettings(100, ()))
    assert len(rationale.text) <= MAX_RATIONALE_CHARS
    assert rationale.finish is Finish.LENGTH
    assert rationale.tokens < 12


def test_filling_words_and_white_space_never_reach_the_llm() -> None:
    plain = PerturbedPrompt(0, "what does a robin have", ("old truck",))
    filled = PerturbedPrompt(0, "what _ does a\n\nrobin  have _ _", ("_ old truck _",))
    generator = make_generator()
    assert texts(generator, PromptBatch((plain,), STATEMENT)) == texts(generator, PromptBatch((filled,), STATEMENT))


def test_a_prompt_beyond_the_context_is_refused_by_ordinal_before_anything_is_written() -> None:
    prompts = (PerturbedPrompt(0, "robin"), PerturbedPrompt(1, "kettle " * 2000))
    with pytest.raises(MessageError, match=r"ordinals 1\).*context of 2048") as caught:
        make_generator().generate(PromptBatch(prompts, STATEMENT), SETTINGS)
    assert "kettle" not in caught.value.local


def test_nothing_more_is_written_once_cancelled() -> None:
    written: list[Rationale] = []
    for rationale in make_generator(batch_size=2).generate(make_batch(8), SETTINGS, lambda: len(written) >= 2):
        written.append(rationale)
    assert len(written) == 2


def test_an_llm_that_fails_is_unavailable() -> None:
    model = make_llama()
    generator = Scheduler(model, make_tokenizer(), name="tiny", instruction=EVERYDAY)

    def run_out(*_: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate 8 GiB")

    model.register_forward_pre_hook(run_out)
    with pytest.raises(LLMUnavailable, match=r"OutOfMemoryError.*llm\.model"):
        texts(generator, make_batch(2))


def test_a_model_that_accelerate_keeps_in_several_places_writes_the_same(tmp_path: Path) -> None:
    """Half of it on disk, by the hooks that also carry states from one GPU to the next."""
    whole = dict.fromkeys(["model.embed_tokens", "model.rotary_emb", "model.layers.0", "model.norm"], "cpu")
    places = {**whole, "model.layers.1": "disk", "lm_head": "disk"}
    model = dispatch_model(make_llama(), places, main_device="cpu", offload_dir=tmp_path)
    generator = Scheduler(model, make_tokenizer(), name="tiny", instruction=EVERYDAY, batch_size=4)
    assert texts(generator, make_batch(6)) == texts(make_generator(batch_size=4), make_batch(6))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "my-llm"
    make_llama().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def test_loads_a_folder_and_tells_its_name_only(saved: Path) -> None:
    generator = load_local_generator(str(saved), dtype="float32", batch_size=4)
    assert (generator.info.model, generator.info.dtype) == ("my-llm", "float32")
    batch = make_batch(3)
    assert texts(generator, batch) == texts(make_generator(), batch)


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_other_number_formats(saved: Path, dtype: str) -> None:
    generator = load_local_generator(str(saved), dtype=dtype)
    assert generator.info.dtype in ({"float32", "bfloat16"} if dtype == "auto" else {dtype})
    assert len(texts(generator, make_batch(5))) == 5


@pytest.mark.parametrize("model", ["nobody/no-such-model", "/no/such/folder", "not an id", ""])
def test_a_missing_model_is_one_clear_error(model: str) -> None:
    with pytest.raises(LLMUnavailable) as caught:
        load_local_generator(model)
    assert f"llm.model = {model!r} cannot be loaded" in caught.value.public
    assert ("no folder is there" if model.startswith("/") else "local folder") in caught.value.public
    assert "\n" not in caught.value.local


def test_weights_that_are_pickles_are_refused(saved: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((saved / name).read_bytes())
    torch.save(make_llama().state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(LLMUnavailable, match="safetensors"):
        load_local_generator(str(tmp_path))


def test_code_that_comes_with_a_model_is_not_run(saved: Path, tmp_path: Path) -> None:
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    marker = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    config = json.loads((saved / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(LLMUnavailable):
        load_local_generator(str(tmp_path))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("setting", "value", "named"),
    [("dtype", "int8", r"llm\.dtype"), ("device", "abacus", "^device"), ("batch_size", 0, r"llm\.batch-size")],
)
def test_settings_out_of_range_are_named(saved: Path, setting: str, value: str | int, named: str) -> None:
    with pytest.raises(SettingError, match=rf"{named} = '?{value}"):
        Scheduler.load(str(saved), instruction=EVERYDAY, **{setting: value})  # type: ignore[arg-type]


def test_a_long_request_leaves_the_tokenizer_to_others_in_between() -> None:
    tokenizer, sizes, started = make_tokenizer(), [], threading.Event()

    class Busy(type(tokenizer)):  # type: ignore[misc]
        def __call__(self, texts: list[str], **options: Any) -> Any:
            sizes.append(len(texts))
            if started.is_set() or len(texts) > 1:
                started.set()
                time.sleep(0.01)
            return super().__call__(texts, **options)

    generator = Scheduler(make_llama(), tokenizer, name="tiny", instruction=EVERYDAY)
    tokenizer.__class__ = Busy
    with ThreadPoolExecutor() as pool:
        long = pool.submit(lambda: generator.generate(make_batch(2_000), SETTINGS))
        assert started.wait(30)
        assert len(generator.count_tokens(make_batch(1).prompts)) == 1
        long.result()
    assert 1 in sizes[:-1], "the short one was read before the long one was done"
    assert sum(sizes) == 2_001
