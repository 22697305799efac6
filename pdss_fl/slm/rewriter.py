"""A trained encoder as what scores the words that may stand in place of a private prompt.

The scores are computed from private words. They are no release: a mechanism of ``pdss_fl.privacy`` bounds what they
can tell and draws from them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from pdss_fl.privacy import BLANK
from pdss_fl.privacy.rewriting import Rewriter
from pdss_fl.slm.collator import Row, batch_of, encode_prompt
from pdss_fl.slm.encoder_decoder import encoder_prompt, load_encoder_decoder, manifest_of
from pdss_fl.slm.loss import LABEL
from pdss_fl.slm.model import SmallModel

_BATCH = 64
_LOWEST = -50.0


@lru_cache(maxsize=2)
def load_rewriter(model: str, words: tuple[str, ...], setting: str) -> Rewriter:
    """Return a function from documents and what was released of them to a score for every word.

    A score is ln(V p), p being the probability that the model gives the word, V the number of words: 0 for a word
    as likely as under no knowledge at all, so bounds symmetric about 0 cut likely and unlikely words alike. Filling
    words share the probability of one.

    Parameters
    ----------
    model : str
        As in ``load_encoder_decoder``, whose errors it raises.
    words : tuple[str, ...]
        The text of every id, ``Vocabulary.tokens``.
    setting : str
        What an error names.
    """
    slm = load_encoder_decoder(model, setting)
    pieces = [slm.encode_next(word) for word in words]
    first = torch.tensor([ids[0] for ids in pieces])
    shared = torch.tensor([math.log(max(1, words.count(BLANK))) if word == BLANK else 0.0 for word in words])
    offset = _rest(slm, pieces) - shared + math.log(len(words))

    @torch.inference_mode()
    def score(documents: Tensor | None, prefixes: Tensor) -> Tensor:
        given = [[]] * len(prefixes) if documents is None else documents.tolist()
        asked = [(tuple(document), tuple(prefix)) for document, prefix in zip(given, prefixes.tolist(), strict=True)]
        distinct = list(dict.fromkeys(asked))
        rows = [_row(slm, [words[i] for i in document], [pieces[i] for i in prefix]) for document, prefix in distinct]
        log_prob = _next(slm, rows)[:, first]
        # Whatever the weights make of a document: a failure would tell which one it was.
        found = (log_prob + offset).nan_to_num(nan=_LOWEST, neginf=_LOWEST).clamp(min=_LOWEST)
        place = {key: i for i, key in enumerate(distinct)}
        return found[torch.tensor([place[key] for key in asked], dtype=torch.long)]

    return score


def rewriter_name(model: str, words: Sequence[str], setting: str) -> str:
    """Return a name of the model's weights and the words, for the ledger: equal names, equal scores."""
    manifest, folder = manifest_of(model, setting)
    content = json.dumps([manifest.get("weights-sha256"), list(words)]).encode()
    return f"{folder.name}-{hashlib.sha256(content).hexdigest()[:12]}"


def _row(slm: SmallModel, document: Sequence[str], prefix: Sequence[Sequence[int]]) -> Row:
    """Return a document's row with what was written so far and one more token, whose scores are asked for."""
    said = [piece for ids in prefix for piece in ids]
    said = said[-(slm.max_tokens // 2) :]
    prompt, _ = encode_prompt(slm, encoder_prompt(document), len(said) + 1)
    return Row(prompt, [*said, slm.tokenizer.pad_token_id], LABEL, False)


def _next(slm: SmallModel, rows: Sequence[Row]) -> Tensor:
    """Return the log-probabilities of each row's last token, float32 (n, tokens)."""
    found: dict[int, Tensor] = {}
    by_length: dict[int, list[int]] = {}
    for i, row in enumerate(rows):  # completions of one length, so that none of them is padded
        by_length.setdefault(len(row.completion), []).append(i)
    for chosen in by_length.values():
        for start in range(0, len(chosen), _BATCH):
            some = chosen[start : start + _BATCH]
            logits, _ = batch_of(slm, [rows[i] for i in some]).run(slm.model)
            found |= dict(zip(some, logits[:, -2].float().log_softmax(dim=-1).cpu(), strict=True))
    return torch.stack([found[i] for i in range(len(rows))])


@torch.inference_mode()
def _rest(slm: SmallModel, pieces: Sequence[Sequence[int]]) -> Tensor:
    """Return the log-probability of a word's other tokens after its first one, without a document; 0 for one token.

    It stays the same whatever the document is, so a word of several tokens costs no more than one of one.
    """
    found = torch.zeros(len(pieces))
    for i, ids in enumerate(pieces):
        if len(ids) > 1:
            prefixes = [[ids[:n]] for n in range(1, len(ids))]
            log_prob = _next(slm, [_row(slm, [], prefix) for prefix in prefixes])
            found[i] = log_prob[torch.arange(len(ids) - 1), torch.tensor(list(ids[1:]))].sum()
    return found
