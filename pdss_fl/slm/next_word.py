"""A causal language model as what scores the next word for ``pdss_fl.privacy.contextual``.

It reads released words only and is public, so what it says costs no privacy, whatever it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from pdss_fl.privacy import BLANK
from pdss_fl.privacy.contextual import NextWord
from pdss_fl.slm.attackers import causal_model
from pdss_fl.slm.model import SmallModel

_BATCH = 64
_KEPT = 4096  # prefixes whose scores are kept: all documents begin with the same one


def next_word(model: str, words: Sequence[str], setting: str) -> NextWord:
    """Return a function from the ids released so far to a score for every id, float32 (V,).

    A word's score is the log-probability, in nats, of its first token after the released words, plus that of its
    other tokens after its own first ones, which is computed once. A filling word's is that of the end of the text.
    Released filling words are not read.

    Parameters
    ----------
    model : str
        Folder, or id in the local cache, of a causal language model with safetensors weights.
    words : Sequence[str]
        The text of every id, ``Vocabulary.tokens``.
    setting : str
        What an error names.

    Raises
    ------
    SettingError
        If the model cannot be read, or its tokenizer has no end token.
    """
    slm = causal_model(model, setting)
    end = int(slm.tokenizer.eos_token_id)
    pieces = [[end] if word == BLANK else slm.encode_next(word) for word in words]
    first = torch.tensor([ids[0] for ids in pieces])
    rest = _rest(slm, pieces)

    @lru_cache(maxsize=_KEPT)
    @torch.inference_mode()
    def after(prefix: tuple[int, ...]) -> Tensor:
        read = [piece for i in prefix if words[i] != BLANK for piece in pieces[i]]
        ids = [*(slm.start_ids or [end]), *read[-slm.max_tokens + 1 :]]
        logits: Tensor = slm.model(torch.tensor([ids], device=slm.model.device)).logits[0, -1]
        return logits.float().log_softmax(dim=-1).cpu()[first] + rest

    return lambda prefix: after(tuple(prefix))


@torch.inference_mode()
def _rest(slm: SmallModel, pieces: Sequence[list[int]]) -> Tensor:
    """Return the log-probability of all but the first token of each word, given its first ones; 0 for one token."""
    found = torch.zeros(len(pieces))
    by_length: dict[int, list[int]] = {}
    for i, ids in enumerate(pieces):
        if len(ids) > 1:
            by_length.setdefault(len(ids), []).append(i)
    for chosen in by_length.values():  # of one length, so that nothing is padded
        for some in torch.split(torch.tensor(chosen), _BATCH):
            batch = torch.tensor([pieces[i] for i in some.tolist()], device=slm.model.device)
            log_prob = slm.model(batch).logits[:, :-1].float().log_softmax(dim=-1)
            found[some] = log_prob.gather(2, batch[:, 1:, None]).sum(dim=(1, 2)).cpu()
    return found
