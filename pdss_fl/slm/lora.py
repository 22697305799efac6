"""Low-rank training of a small model: a way to train, not another kind of model."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import transformers


@contextmanager
def low_rank(model: transformers.PreTrainedModel, rank: int, seed: int) -> Iterator[None]:
    """Let only low-rank updates of a model's linear layers be trained, and add them to its weights at the end.

    Outside of it the model is what it was, with other weights, so it is saved, loaded and asked as always.

    Parameters
    ----------
    model : PreTrainedModel
        Changed in place. Its output layer and embeddings stay as they are.
    rank : int
        Of every update (LoRA, arXiv 2106.09685), whose factors are float32 and scaled by 2; 0 trains all weights.
    seed : int
        Decides where the first factors begin; the second ones are 0. The caller's random state is left as it was.
    """
    if rank == 0:
        yield
        return
    from peft import LoraConfig, get_peft_model  # takes its time, and most runs do without

    kind = "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type=kind)
    with _seeded(seed), warnings.catch_warnings():  # of peft about the layers of GPT-2, which it then treats rightly
        warnings.simplefilter("ignore")
        adapted = get_peft_model(model, config)
    try:
        yield
    finally:
        adapted.merge_and_unload()  # type: ignore[operator]
        model.requires_grad_(True)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield
