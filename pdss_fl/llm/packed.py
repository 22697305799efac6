"""Weights in the order in which the processor's matrix kernels read them, arranged once instead of at every product.

In bfloat16 on a processor, oneDNN rearranges a weight each time it is used, which for the few rows of a decoding
step takes nearly as long as the product. In float32 nothing is changed: there a token must not depend on this.
"""

from __future__ import annotations

import logging

import psutil
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

ROWS = 64
"""Rows for which the order is chosen; it is good for any number."""
_PROBE = 4
_TOLERANCE = 0.1  # bfloat16 rounds by a few per cent; a layer that went wrong is far off

logger = logging.getLogger("pdss_fl.llm")


class PackedLinear(nn.Module):
    """A linear layer without gradients whose weight only the kernel can read."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(plain.weight.detach(), ROWS)
        self._bias = None if plain.bias is None else plain.bias.detach()

    def forward(self, states: Tensor) -> Tensor:
        """Return the products of (..., inputs) as (..., outputs)."""
        found: Tensor = torch.ops.mkldnn._linear_pointwise(states, self._weight, self._bias, "none", [], "")
        return found


@torch.inference_mode()
def pack(model: PreTrainedModel) -> bool:
    """Rearrange a model's linear layers in place, where that helps; say whether it was done.

    Left alone are models in another number format than bfloat16 or elsewhere than on the processor, processors
    without bfloat16, layers of other classes than ``nn.Linear``, and a model that would not fit into the memory
    twice, which it does for a moment. One that then raises, or writes something else, is put back.
    """
    plain = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear
    ]
    if not plain or not _is_worth_it(model):
        return False
    ids = torch.arange(1, 1 + _PROBE).unsqueeze(0) % model.config.get_text_config().vocab_size
    expected = model(input_ids=ids, use_cache=False).logits.float()
    try:
        for parent, name, child in plain:
            setattr(parent, name, PackedLinear(child))
        found = model(input_ids=ids, use_cache=False).logits.float()
        if bool((found - expected).norm() <= _TOLERANCE * expected.norm()):
            return True
    except Exception as error:  # whatever a model raises that looks into its layers
        logger.debug("weights stay as they are (%s)", type(error).__name__)
    for parent, name, child in plain:
        setattr(parent, name, child)
    return False


def _is_worth_it(model: PreTrainedModel) -> bool:
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    return (
        {p.device.type for p in model.parameters()} == {"cpu"}
        and model.dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        and psutil.virtual_memory().available > 2 * size
    )
