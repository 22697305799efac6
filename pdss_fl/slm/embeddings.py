"""Word embeddings of a public model, for the vocabulary that prompts are perturbed in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file

from pdss_fl.errors import SettingError
from pdss_fl.slm.model import word_space

# What the architectures call their input embeddings: Llama and its kin, GPT-2, GPT-NeoX, T5, BERT.
_NAMES = (
    "embed_tokens.weight", "wte.weight", "embed_in.weight", "shared.weight", "word_embeddings.weight",
)  # fmt: skip


def word_embeddings(model: str, words: Sequence[str]) -> Tensor:
    """Return the mean input embedding of each word's tokens.

    A word is tokenised as it stands inside a sentence, with a space in front.

    Parameters
    ----------
    model : str
        Id or local path of any Hugging Face model with safetensors weights. Of its weights the
        embedding matrix alone is read where its name is known.
    words : Sequence[str]
        At least one, none of them empty.

    Returns
    -------
    Tensor
        Shape (len(words), d), float32.

    Raises
    ------
    SettingError
        If the model cannot be read; the message names ``privacy.embeddings``.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        matrix = _embedding_matrix(model)
    except Exception as err:  # transformers has no common base for what a wrong id or folder can raise
        raise SettingError(
            f"privacy.embeddings = {model!r} cannot be read ({type(err).__name__}): give the id or folder of "
            "a Hugging Face model with safetensors weights",
            str(err),
        ) from None
    space = word_space(tokenizer)
    ids = tokenizer([space + word for word in words], add_special_tokens=False).input_ids
    flat = torch.tensor([i for word in ids for i in word])
    offsets = torch.tensor([0, *accumulate(len(word) for word in ids)][:-1])
    return F.embedding_bag(flat, matrix.float(), offsets, mode="mean")


def _embedding_matrix(model: str) -> Tensor:
    """Return the (V, d) input embeddings."""
    found = _find_tensor(model)
    if found is None:
        whole = AutoModel.from_pretrained(model, use_safetensors=True, trust_remote_code=False)
        weight: Tensor = whole.get_input_embeddings().weight
        return weight.detach()
    name, file = found
    with safe_open(file, framework="pt") as weights:
        tensor: Tensor = weights.get_tensor(name)
        return tensor


def _find_tensor(model: str) -> tuple[str, str] | None:
    """Return the name and the file of the embedding matrix, or ``None`` if its name is not a known one."""
    try:
        files = _shards(cached_file(model, SAFE_WEIGHTS_INDEX_NAME))
    except OSError:  # the weights are in one file
        with safe_open(cached_file(model, SAFE_WEIGHTS_NAME), framework="pt") as weights:
            files = dict.fromkeys(weights.keys(), SAFE_WEIGHTS_NAME)
    name = next((key for key in files if key.endswith(_NAMES)), None)
    return None if name is None else (name, str(cached_file(model, files[name])))


def _shards(index: str | None) -> dict[str, str]:
    """Return which file holds each tensor."""
    weight_map: dict[str, str] = json.loads(Path(str(index)).read_text(encoding="utf-8"))["weight_map"]
    return weight_map
