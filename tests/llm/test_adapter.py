"""Adapters merged into a real, tiny model; the rule for `auto`; adapters that are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from pdss_fl.errors import LLMUnavailable
from pdss_fl.llm.adapter import apply_adapter, choose_adapter
from pdss_fl.llm.generator import load_local_generator
from pdss_fl.llm.instruction import ADAPTED
from pdss_fl.llm.scheduler import Scheduler
from pdss_fl.messages import GenerationSettings
from tests.llm.helpers import make_batch, make_llama, make_tokenizer, random_model

RANK, ALPHA = 2, 6
NAME = "model.layers.1.self_attn.q_proj"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """Save an adapter of two kinds of layers with random weights, both factors away from zero."""
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        adapted = get_peft_model(make_llama(), config)
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(weight)
    adapted.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    return tmp_path / "adapter"


def weight_of(model: PreTrainedModel, name: str) -> Tensor:
    weight: Tensor = model.get_parameter(f"{name}.weight").detach().clone()
    return weight


def test_the_weights_are_what_the_formula_says(adapter: Path) -> None:
    factors = load_file(adapter / "adapter_model.safetensors")
    a, b = (factors[f"base_model.model.{NAME}.lora_{factor}.weight"] for factor in "AB")
    expected = weight_of(make_llama(), NAME) + ALPHA / RANK * b @ a
    merged = apply_adapter(make_llama(), str(adapter))
    torch.testing.assert_close(weight_of(merged, NAME), expected)
    untouched = "model.layers.1.self_attn.k_proj"
    assert torch.equal(weight_of(merged, untouched), weight_of(make_llama(), untouched))


def test_what_remains_is_a_plain_model_that_says_other_things(adapter: Path) -> None:
    model = make_llama()
    names = [name for name, _ in model.named_parameters()]
    merged = apply_adapter(model, str(adapter))
    assert type(merged) is LlamaForCausalLM
    assert not merged.training
    assert [name for name, _ in merged.named_parameters()] == names
    tokens = torch.arange(1, 20).unsqueeze(0)
    assert not torch.allclose(merged(tokens).logits, make_llama()(tokens).logits, atol=0.1)


def test_the_merged_weights_keep_their_number_format(adapter: Path) -> None:
    merged = apply_adapter(make_llama().bfloat16(), str(adapter))
    assert {weight.dtype for weight in merged.parameters()} == {torch.bfloat16}


def test_no_adapter_changes_nothing() -> None:
    model = make_llama()
    assert apply_adapter(model, "") is model


def test_a_generator_writes_with_the_adapter(adapter: Path, tmp_path: Path) -> None:
    make_llama().save_pretrained(tmp_path / "llm")
    make_tokenizer().save_pretrained(tmp_path / "llm")

    def written(name: str) -> list[str]:
        generator = load_local_generator(str(tmp_path / "llm"), dtype="float32", adapter=name)
        return [r.text for r in generator.generate(make_batch(4), GenerationSettings(8, ()))]

    assert written("auto") == written("")
    assert written(str(adapter)) != written("")


@pytest.mark.parametrize(
    ("adapter_setting", "model", "chosen"),
    [
        ("auto", "smollm2-135m-instruct", "everyday"),
        ("auto", "HuggingFaceTB/SmolLM2-360M-Instruct", ""),
        ("auto", "/models/smollm2-135m-instruct", ""),
        ("", "smollm2-135m-instruct", ""),
        ("everyday", "/models/other", "everyday"),
        ("/adapters/mine", "smollm2-135m-instruct", "/adapters/mine"),
    ],
)
def test_which_adapter_a_setting_means(adapter_setting: str, model: str, chosen: str) -> None:
    assert choose_adapter(adapter_setting, model) == chosen


@pytest.mark.parametrize("missing", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_missing_file_is_refused(adapter: Path, missing: str) -> None:
    (adapter / missing).unlink()
    (adapter / "adapter_model.bin").write_bytes(b"pickled weights are never read")
    with pytest.raises(LLMUnavailable, match=rf"llm\.adapter = '{adapter}'.*adapter_model\.safetensors"):
        apply_adapter(make_llama(), str(adapter))


def other_llama(hidden: int, layers: int) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=400, hidden_size=hidden, intermediate_size=64, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    return random_model(LlamaForCausalLM, config, 0)


@pytest.mark.parametrize(("hidden", "layers"), [(64, 2), (32, 1), (32, 3)])
def test_an_adapter_for_other_layers_is_refused(adapter: Path, hidden: int, layers: int) -> None:
    with pytest.raises(LLMUnavailable, match=r"llm\.adapter = .* does not fit llm\.model .*trained for this model"):
        apply_adapter(other_llama(hidden, layers), str(adapter))


@pytest.mark.parametrize("damage", ["weights", "config", "numbers"])
def test_a_damaged_adapter_is_refused(adapter: Path, damage: str) -> None:
    weights = adapter / "adapter_model.safetensors"
    if damage == "weights":
        weights.write_bytes(weights.read_bytes()[:200])
    elif damage == "config":
        (adapter / "adapter_config.json").write_text("{}")
    else:
        save_file({k: v * float("nan") for k, v in load_file(weights).items()}, weights, {"format": "pt"})
    with pytest.raises(LLMUnavailable, match=r"llm\.adapter"):
        apply_adapter(make_llama(), str(adapter))


def test_the_built_in_adapter_is_for_the_bundled_llm_only() -> None:
    with pytest.raises(LLMUnavailable, match=r"llm\.adapter = 'everyday' does not fit"):
        apply_adapter(make_llama(), "everyday")


def test_the_built_in_adapter_is_found_from_a_bundle_of_python_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pdss_fl.llm.adapter as module

    copy = tmp_path / "bundle" / "pdss_fl" / "llm" / "adapter.py"
    copy.parent.mkdir(parents=True)
    shutil.copy(module.__file__, copy)
    monkeypatch.setattr(module, "__file__", str(copy))
    with pytest.raises(LLMUnavailable, match="does not fit"):  # found, but not for this model
        apply_adapter(make_llama(), "everyday")
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    with pytest.raises(LLMUnavailable, match=r"llm\.adapter.*not beside the package; install pdss-fl"):
        apply_adapter(make_llama(), "everyday")


def test_the_built_in_adapter_is_small_and_names_no_path() -> None:
    from pdss_fl.llm import adapter as module

    folder = Path(str(module.__file__)).parent / "adapters" / "everyday"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 6_000_000
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "smollm2-135m-instruct"
    assert not ADAPTED.demonstrations


def test_an_unknown_adapter_stops_the_load(tmp_path: Path) -> None:
    make_llama().save_pretrained(tmp_path / "llm")
    make_tokenizer().save_pretrained(tmp_path / "llm")
    with pytest.raises(LLMUnavailable, match=r"llm\.adapter = 'everyda'"):
        Scheduler.load(str(tmp_path / "llm"), instruction=ADAPTED, adapter="everyda")
