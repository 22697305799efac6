"""Rows of both tasks, and batches that hold them all for a single forward and backward pass."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

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
    ids = [*slm.encode_next(text), slm.tokenizer.eos_token_id] if text else []
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
    end = slm.encode_next(prompt.end)
    room = slm.max_tokens - reserve - len(start) - len(end)
    if room < 0:
        return start + end[-room:], True
    cut = max(0, len(body) - room)
    return start + body[cut:] + end, cut > 0


@dataclass(frozen=True)
class Batch:
    """Rows padded on the left to the longest of them, so that all completions end in the same column.

    Parameters
    ----------
    input_ids, attention_mask, position_ids, labels : Tensor
        Shape (B, T), int64; ``labels`` is ``IGNORED`` at prompt and padding positions.
    task : Tensor
        Shape (B,), int64.
    completion_tokens : int
        Length of the longest completion.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    labels: Tensor
    task: Tensor
    completion_tokens: int

    def run(self, model: PreTrainedModel) -> tuple[Tensor, Tensor]:
        """Run the model and return logits and labels of the columns that hold completions.

        Returns
        -------
        tuple[Tensor, Tensor]
            Logits (B, K + 1, V) and labels (B, K + 1) with K = ``completion_tokens``: the logits of
            the prompts, most of a batch, are never computed where the model can leave them out.
        """
        keep = self.completion_tokens + 1
        optional = {"position_ids": self.position_ids, "logits_to_keep": keep, "use_cache": False}
        accepted = inspect.signature(model.forward).parameters
        extra = {name: value for name, value in optional.items() if name in accepted}
        logits = model(input_ids=self.input_ids, attention_mask=self.attention_mask, **extra).logits
        return logits[:, -keep:], self.labels[:, -keep:]


def collate(rows: Sequence[Row], pad_id: int, device: torch.device | str = "cpu") -> Batch:
    """Pack rows of any tasks into one batch.

    Parameters
    ----------
    rows : Sequence[Row]
        At least one.
    pad_id : int
        Fills the padding; it may equal any other id, since nothing is masked by id.
    device : torch.device | str (default: "cpu")
        Where the tensors go.
    """
    width = max(row.tokens for row in rows)

    def padded(fill: int, values: Sequence[list[int]]) -> Tensor:
        return torch.tensor([[fill] * (width - len(v)) + v for v in values], device=device)

    return Batch(
        input_ids=padded(pad_id, [row.prompt + row.completion for row in rows]),
        attention_mask=padded(0, [[1] * row.tokens for row in rows]),
        position_ids=padded(0, [list(range(row.tokens)) for row in rows]),
        labels=padded(IGNORED, [[IGNORED] * len(row.prompt) + row.completion for row in rows]),
        task=torch.tensor([row.task for row in rows], device=device),
        completion_tokens=max(len(row.completion) for row in rows),
    )
