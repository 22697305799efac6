"""Rows of both tasks, and batches of them that causal models and encoder-decoders read."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from pdss_fl.slm.loss import IGNORED
from pdss_fl.slm.model import SmallModel
from pdss_fl.slm.prompts import Prompt


@dataclass(frozen=True)
class Row:
    """One prompt with its completion in token ids; ``truncated`` tells whether either was cut."""

    prompt: list[int]
    completion: list[int]
    task: int
    truncated: bool

    @property
    def tokens(self) -> int:
        """Number of tokens of prompt and completion."""
        return len(self.prompt) + len(self.completion)


def encode_row(slm: SmallModel, prompt: Prompt, completion: str, task: int) -> Row:
    """Encode a prompt and what should follow it, with the end token, in at most ``slm.max_tokens``.

    The completion may take half of the row; what is beyond is cut, together with the end token,
    since a text does not end where it is cut. An empty completion stays empty and teaches nothing.
    The prompt gets the rest (see ``encode_prompt``).
    """
    text = completion.strip()
    ids = [*slm.encode_completion(text), slm.tokenizer.eos_token_id] if text else []
    kept = ids[: slm.max_tokens // 2]
    prompt_ids, cut = encode_prompt(slm, prompt, len(kept))
    return Row(prompt_ids, kept, task, cut or len(kept) < len(ids))


def encode_prompt(slm: SmallModel, prompt: Prompt, reserve: int) -> tuple[list[int], bool]:
    """Return the token ids of a prompt in at most ``slm.max_tokens - reserve`` tokens.

    Parameters
    ----------
    slm : SmallModel
        Its tokenizer and its longest row.
    prompt : Prompt
        What to encode.
    reserve : int
        Tokens to leave free for the completion.

    Returns
    -------
    tuple[list[int], bool]
        The ids, and whether something was cut off: of the body its beginning; where the choices alone do not
        fit, of these too. That is counted and not raised, because an error that leaves a client must not
        depend on the length of its text.
    """
    start = slm.start_ids + slm.encode(prompt.start)
    body = slm.encode_next(prompt.body)
    end = slm.encode_next(prompt.end) + slm.end_ids
    room = slm.max_tokens - reserve - len(start) - len(end)
    if room < 0:
        return start + end[-room:], True
    cut = max(0, len(body) - room)
    return start + body[cut:] + end, cut > 0


@dataclass(frozen=True)
class Batch:
    """Rows side by side, in the form that one kind of model reads.

    A causal model reads prompts and completions, padded on the left to the longest row, so that all completions end
    in the same column. An encoder-decoder reads the prompts in its encoder and, in its decoder, a start token and the
    completion; both are padded on the right, since such models count positions from the first column.

    Parameters
    ----------
    input_ids, attention_mask, position_ids : Tensor
        Shape (B, T), int64.
    labels : Tensor
        Shape (B, T), int64, or (B, K + 1) for an encoder-decoder, whose first column is that of the start token;
        ``IGNORED`` at prompt, start and padding positions.
    task : Tensor
        Shape (B,), int64.
    completion_tokens : int
        K, the length of the longest completion.
    decoder_input_ids : Tensor | None (default: None)
        Shape (B, K + 1), int64, for an encoder-decoder.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    labels: Tensor
    task: Tensor
    completion_tokens: int
    decoder_input_ids: Tensor | None = None

    def inputs(self, model: transformers.PreTrainedModel) -> dict[str, Any]:
        """Return the arguments with which a model reads the batch, of those that it takes."""
        optional = {"position_ids": self.position_ids, "use_cache": False}
        if self.decoder_input_ids is not None:
            optional["decoder_input_ids"] = self.decoder_input_ids
        accepted = inspect.signature(model.forward).parameters
        taken = {name: value for name, value in optional.items() if name in accepted}
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask, **taken}

    def run(self, model: transformers.PreTrainedModel) -> tuple[Tensor, Tensor]:
        """Run the model and return logits and labels of the columns that hold completions.

        Returns
        -------
        tuple[Tensor, Tensor]
            Logits (B, K + 1, V) and labels (B, K + 1) with K = ``completion_tokens``; the logits at t predict the
            label at t + 1. The logits of the prompts, most of a batch, are never computed where the model can leave
            them out.
        """
        keep = self.completion_tokens + 1
        can_leave_out = "logits_to_keep" in inspect.signature(model.forward).parameters
        extra = {"logits_to_keep": keep} if can_leave_out else {}
        logits = model(**self.inputs(model), **extra).logits
        return logits[:, -keep:], self.labels[:, -keep:]


def batch_of(slm: SmallModel, rows: Sequence[Row]) -> Batch:
    """Return at least one row as a batch that this small model reads, on its device."""
    return collate(rows, slm.tokenizer.pad_token_id, slm.model.device, slm.decoder_start)


def collate(
    rows: Sequence[Row], pad_id: int, device: torch.device | str = "cpu", decoder_start: int | None = None
) -> Batch:
    """Put rows of any tasks into one batch.

    Parameters
    ----------
    rows : Sequence[Row]
        At least one.
    pad_id : int
        Fills the padding; it may equal any other id, since nothing is masked by id.
    device : torch.device | str (default: "cpu")
        Where the tensors go.
    decoder_start : int | None (default: None)
        The token with which an encoder-decoder begins to write; ``None`` for a causal model.
    """

    def padded(fill: int, values: Sequence[list[int]], right: bool) -> Tensor:
        width = max(map(len, values))
        filled = [v + [fill] * (width - len(v)) if right else [fill] * (width - len(v)) + v for v in values]
        return torch.tensor(filled, device=device)

    encoder = decoder_start is not None
    read = [row.prompt if encoder else row.prompt + row.completion for row in rows]
    ignored = [[IGNORED] * (1 if encoder else len(row.prompt)) for row in rows]
    return Batch(
        input_ids=padded(pad_id, read, encoder),
        attention_mask=padded(0, [[1] * len(ids) for ids in read], encoder),
        position_ids=padded(0, [list(range(len(ids))) for ids in read], encoder),
        labels=padded(IGNORED, [before + row.completion for before, row in zip(ignored, rows, strict=True)], encoder),
        task=torch.tensor([row.task for row in rows], device=device),
        completion_tokens=max(len(row.completion) for row in rows),
        decoder_input_ids=None
        if decoder_start is None
        else padded(pad_id, [[decoder_start, *row.completion] for row in rows], right=True),
    )
