"""Hugging Face models as attackers: what ``pdss_fl.privacy.attacks`` takes as callables.

Models are read from a folder or the local cache, never from the network, and never run code of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from accelerate import PartialState
from torch import Tensor
from torch.nn import functional as F

from pdss_fl.errors import SettingError
from pdss_fl.privacy.attacks import Completer, MaskedScores, SequenceScore
from pdss_fl.slm.collator import Row, collate
from pdss_fl.slm.generation import generate
from pdss_fl.slm.loss import IGNORED, LABEL
from pdss_fl.slm.model import SmallModel, word_space

MASKED_SETTING = "audit.masked-model"
CAUSAL_SETTING = "audit.language-model"
_MOST_PIECES = 4
_BATCH = 32
_ROOM = 512


def masked_scores(model: str, words: Sequence[str], setting: str = MASKED_SETTING) -> MaskedScores:
    """Return a masked language model's log-scores of the vocabulary's words at a position of a text.

    A word of several pieces is scored by the sum of its pieces' log-probabilities in as many masks. Words of
    more than four pieces, and filling words, are never guessed.

    Parameters
    ----------
    model : str
        Folder, or id in the local cache, of a masked language model with safetensors weights.
    words : Sequence[str]
        The text of every id, ``Vocabulary.tokens``.
    setting : str (default: MASKED_SETTING)
        What an error names.

    Raises
    ------
    SettingError
        If the model cannot be read, or has no mask.
    """
    loaded, tokenizer = _load(transformers.AutoModelForMaskedLM, model, setting, "masked")
    if tokenizer.mask_token_id is None or tokenizer.pad_token_id is None:
        raise SettingError(
            f"{setting} = {model!r} has a tokenizer without a mask or padding token: choose another model"
        )
    longest = min(tokenizer.model_max_length, getattr(loaded.config, "max_position_embeddings", _ROOM))
    device = PartialState().device
    loaded.to(device).eval()
    by_pieces = _by_pieces(tokenizer, words)

    @torch.inference_mode()
    def scores(texts: Sequence[Sequence[str]], positions: Sequence[int]) -> Tensor:
        found = torch.full((len(texts), len(words)), -torch.inf)
        for pieces, (ids, rows) in by_pieces.items():
            masked = [
                " ".join([*text[:i], *[tokenizer.mask_token] * pieces, *text[i + 1 :]])
                for text, i in zip(texts, positions, strict=True)
            ]
            for start in range(0, len(masked), _BATCH):
                batch = tokenizer(
                    masked[start : start + _BATCH],
                    return_tensors="pt",
                    padding=True,
                    truncation=True,
                    max_length=longest,
                ).to(device)
                log_prob = loaded(**batch).logits.float().log_softmax(dim=-1).cpu()
                hidden = (batch.input_ids == tokenizer.mask_token_id).cpu()
                for row, (values, places) in enumerate(zip(log_prob, hidden, strict=True)):
                    if int(places.sum()) == pieces:  # else the position lies beyond what the model reads
                        at = values[places]  # (pieces, model's vocabulary)
                        found[start + row, ids] = at[torch.arange(pieces), rows].sum(dim=1)
        return found

    return scores


def sequence_score(model: str, setting: str = CAUSAL_SETTING) -> SequenceScore:
    """Return a causal language model's log-likelihood of texts, in nats, up to their last token.

    Parameters
    ----------
    model : str
        Folder, or id in the local cache, of a causal language model with safetensors weights.
    setting : str (default: CAUSAL_SETTING)
        What an error names.

    Raises
    ------
    SettingError
        If the model cannot be read, or its tokenizer has no end token.
    """
    slm = causal_model(model, setting)

    @torch.inference_mode()
    def score(texts: Sequence[str]) -> Tensor:
        # The end token stands in front, so that the first word is scored, too.
        start = slm.start_ids or [int(slm.tokenizer.eos_token_id)]
        rows = [Row(start, slm.encode_next(text)[: slm.max_tokens - 1], LABEL, False) for text in texts]
        found = torch.zeros(len(rows), dtype=torch.float64)
        order = sorted(range(len(rows)), key=lambda i: rows[i].tokens)
        for first in range(0, len(order), _BATCH):
            chosen = order[first : first + _BATCH]
            logits, labels = collate([rows[i] for i in chosen], slm.tokenizer.pad_token_id, slm.model.device).run(
                slm.model
            )
            losses = F.cross_entropy(
                logits[:, :-1].transpose(1, 2).float(), labels[:, 1:], ignore_index=IGNORED, reduction="none"
            )  # (B, T)
            found[chosen] = -losses.sum(dim=1).double().cpu()
        return found

    return score


def completer(model: str, max_new_tokens: int = 48, setting: str = CAUSAL_SETTING) -> Completer:
    """Return a causal language model that continues prompts greedily.

    Parameters
    ----------
    model : str
        As for ``sequence_score``.
    max_new_tokens : int (default: 48)
        Longest continuation in tokens; of a prompt too long for the model the beginning is cut off.
    setting : str (default: CAUSAL_SETTING)
        What an error names.

    Raises
    ------
    SettingError
        As for ``sequence_score``.
    """
    slm = causal_model(model, setting)

    def complete(prompts: Sequence[str]) -> list[str]:
        room = slm.max_tokens - max_new_tokens - len(slm.start_ids)
        return generate(slm, [slm.start_ids + slm.encode(p)[-room:] for p in prompts], max_new_tokens, _BATCH)

    return complete


def causal_model(model: str, setting: str) -> SmallModel:
    """Read a causal language model of a folder or the local cache; raises ``SettingError`` that names ``setting``."""
    loaded, tokenizer = _load(transformers.AutoModelForCausalLM, model, setting, "causal")
    if tokenizer.eos_token_id is None:
        raise SettingError(f"{setting} = {model!r} has a tokenizer without an end token: choose another model")
    return SmallModel(loaded, tokenizer, min(_ROOM, getattr(loaded.config, "max_position_embeddings", _ROOM)))


def _load(kind: Any, model: str, setting: str, what: str) -> tuple[Any, Any]:
    only = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(model, **only)
        return kind.from_pretrained(model, use_safetensors=True, dtype=torch.float32, **only), tokenizer
    except Exception as err:  # transformers has no common base for what a wrong id or folder can raise
        raise SettingError(
            f"{setting} = {model!r} cannot be read ({type(err).__name__}): give the folder, or the id in the local "
            f"cache, of a {what} Hugging Face language model with safetensors weights",
            str(err),
        ) from None


def _by_pieces(tokenizer: Any, words: Sequence[str]) -> dict[int, tuple[Tensor, Tensor]]:
    """Return, by the number of a word's pieces, the ids (m,) of such words and their pieces (m, pieces)."""
    space, found = word_space(tokenizer), dict[int, tuple[list[int], list[list[int]]]]()
    for i, word in enumerate(words):
        pieces = tokenizer(space + word, add_special_tokens=False).input_ids
        if word[0].isalnum() and 1 <= len(pieces) <= _MOST_PIECES and tokenizer.unk_token_id not in pieces:
            ids, rows = found.setdefault(len(pieces), ([], []))
            ids.append(i)
            rows.append(pieces)
    return {n: (torch.tensor(ids), torch.tensor(rows)) for n, (ids, rows) in found.items()}
