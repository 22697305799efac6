"""Word embeddings of a public model, for the nearest sets of the vocabulary that prompts are perturbed in.

A word's embedding is what the model is about to say of it: the state of the last but one layer after
``Q: What is robin? A: robin is a``. Words of one kind lie closer together there than in the table of input
embeddings, above all words of several tokens; ``tests/benchmarks/bench_neighbours.py`` prints by how much.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import transformers
from torch import Tensor

from pdss_fl.errors import SettingError

TEMPLATE = "Q: What is {word}? A: {word} is a"
_BATCH = 64


def word_embeddings(model: str, words: Sequence[str], on_progress: Callable[[int], None] | None = None) -> Tensor:
    """Return one embedding a word from a causal model's hidden states.

    Parameters
    ----------
    model : str
        Id or local path of a Hugging Face model with safetensors weights; public, like the words.
    words : Sequence[str]
        At least one, none of them empty.
    on_progress : Callable[[int], None] | None (default: None)
        Called with the number of words done after each batch.

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
        tokenizer = transformers.AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        loaded = transformers.AutoModel.from_pretrained(
            model, use_safetensors=True, trust_remote_code=False, dtype=torch.float32
        ).eval()
    except Exception as err:  # transformers has no common base for what a wrong id or folder can raise
        raise SettingError(
            f"privacy.embeddings = {model!r} cannot be read ({type(err).__name__}): give the id or folder of "
            "a Hugging Face model with safetensors weights",
            str(err),
        ) from None
    prompts = [tokenizer(TEMPLATE.format(word=word)).input_ids for word in words]
    # Prompts of equal length go together, so that nothing is padded and a model needs no padding token.
    by_length = sorted(range(len(words)), key=lambda i: len(prompts[i]))
    rows: dict[int, Tensor] = {}
    for batch in _equal_lengths(by_length, prompts):
        with torch.inference_mode():
            states = loaded(torch.tensor([prompts[i] for i in batch]), output_hidden_states=True).hidden_states
        rows |= dict(zip(batch, states[-2][:, -1].float(), strict=True))
        if on_progress is not None:
            on_progress(len(rows))
    return torch.stack([rows[i] for i in range(len(words))])


def _equal_lengths(order: Sequence[int], prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    batches: list[list[int]] = []
    for i in order:
        same = batches and len(batches[-1]) < _BATCH and len(prompts[batches[-1][0]]) == len(prompts[i])
        if same:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
