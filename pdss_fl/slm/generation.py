"""Greedy writing with a small model, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pdss_fl.slm.collator import Row, batch_of
from pdss_fl.slm.loss import LABEL
from pdss_fl.slm.model import SmallModel


@torch.no_grad()
def generate(slm: SmallModel, prompts: Sequence[list[int]], max_new_tokens: int, batch_size: int) -> list[str]:
    """Return what is most likely to follow each prompt, token by token, up to the end token.

    The model's own habits of writing (beams, penalties) do not count: see ``SmallModel``.

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
    most = max_new_tokens + (len(slm.start_ids) if slm.encoder_decoder else 0)
    writer: Any = slm.model  # the declared type of models lacks generate
    texts = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        rows = [Row(prompts[i], [], LABEL, False) for i in chosen]
        batch = batch_of(slm, rows)
        output = writer.generate(input_ids=batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=most)
        read = 1 if slm.encoder_decoder else batch.input_ids.shape[1]  # a decoder's output begins with its start token
        written = slm.tokenizer.batch_decode(output[:, read:], skip_special_tokens=True)
        for i, text in zip(chosen, written, strict=True):
            texts[i] = text
    return texts
