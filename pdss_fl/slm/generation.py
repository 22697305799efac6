"""Greedy writing with a small model, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from pdss_fl.slm.collator import Row, collate
from pdss_fl.slm.loss import LABEL
from pdss_fl.slm.model import SmallModel


@torch.no_grad()
def generate(slm: SmallModel, prompts: Sequence[list[int]], max_new_tokens: int, batch_size: int) -> list[str]:
    """Return the most likely continuation of each prompt, token by token, up to the end token.

    Parameters
    ----------
    slm : SmallModel
        Writes on the device where it is.
    prompts : Sequence[list[int]]
        Token ids, special tokens included; prompts of like length are batched together.
    max_new_tokens : int
        Longest continuation in tokens.
    batch_size : int
        Prompts at a time.

    Returns
    -------
    list[str]
        In the order of the prompts, without special tokens.
    """
    pad_id = slm.tokenizer.pad_token_id
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=pad_id,
        eos_token_id=slm.tokenizer.eos_token_id,
    )
    writer: Any = slm.model  # the declared type of models lacks generate
    texts = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        rows = [Row(prompts[i], [], LABEL, False) for i in chosen]
        batch = collate(rows, pad_id, slm.model.device)
        output = writer.generate(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, generation_config=config
        )
        written = slm.tokenizer.batch_decode(output[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
        for i, text in zip(chosen, written, strict=True):
            texts[i] = text
    return texts
