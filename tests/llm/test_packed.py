"""Weights in the kernels' own order: the same logits in bfloat16, nothing changed elsewhere, and a way back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from pdss_fl.llm.decode import Decoder
from pdss_fl.llm.packed import PackedLinear, pack
from tests.llm.helpers import make_llama, random_model

IDS = torch.arange(1, 61).reshape(5, 12)


def make_biased() -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=400, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        attention_bias=True, mlp_bias=True, initializer_range=0.3, eos_token_id=0, bos_token_id=None,
    )  # fmt: skip
    model = random_model(LlamaForCausalLM, config, 3)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return model.to(torch.bfloat16)


@torch.inference_mode()
def logits(model: PreTrainedModel) -> Tensor:
    found: Tensor = model(input_ids=IDS).logits.float()
    return found


def kinds(model: PreTrainedModel) -> set[type]:
    return {type(m) for m in model.modules()} & {nn.Linear, PackedLinear}


@pytest.mark.parametrize("make", [lambda: make_llama().to(torch.bfloat16), make_biased])
def test_packed_layers_compute_the_same_where_the_processor_has_bfloat16(make: Any) -> None:
    model, plain = make(), make()
    assert pack(model) == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    exact = logits(make().float())
    assert (logits(model) - exact).norm() <= 1.5 * (logits(plain) - exact).norm(), "no worse than bfloat16 is"
    assert len(kinds(model)) == 1


def test_a_packed_model_is_decoded_with_a_shared_beginning() -> None:
    model, plain = make_biased(), make_biased()
    pack(model)
    prompts = [[*range(40, 70), i, i + 1] for i in range(7)]
    decoder = Decoder(model, range(40, 70))
    assert decoder.apart
    found = decoder.start(prompts).newest
    with torch.inference_mode():
        narrow, exact = (m(torch.tensor(prompts)).logits[:, -1].float() for m in (plain, make_biased().float()))
    gap = exact.max(dim=-1).values - exact.gather(1, found[:, None])[:, 0]
    assert float(gap.max()) <= 3 * float((narrow - exact).abs().max()), "another token only within the roundings"


def test_float32_is_left_alone() -> None:
    model = make_llama()
    expected = logits(model)
    assert not pack(model)
    assert kinds(model) == {nn.Linear}
    assert torch.equal(logits(model), expected)


def test_a_model_that_looks_into_its_layers_is_put_back() -> None:
    model = make_biased()
    expected = logits(model)
    layer = model.model.layers[1].mlp

    def look(*_: Any) -> None:
        assert layer.gate_proj.weight.dtype == torch.bfloat16

    layer.register_forward_pre_hook(look)
    assert not pack(model)
    assert kinds(model) == {nn.Linear}
    assert torch.equal(logits(model), expected)
