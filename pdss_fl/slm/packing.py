"""The rows of both tasks in one forward and backward pass, which computes little more than the loss reads.

Where a model keeps texts in one row apart, several rows share one, so that hardly anything is padding. The
vocabulary, and most of a Llama's last block, meet only positions whose next token is learned.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from pdss_fl.slm.collator import Row, batch_of
from pdss_fl.slm.loss import IGNORED
from pdss_fl.slm.model import SmallModel


@dataclass(frozen=True)
class Packed:
    """One training step's rows.

    Parameters
    ----------
    inputs : dict[str, Tensor]
        What the model reads, by the names of its arguments.
    targets : Tensor
        Shape (R, W), int64: the token to predict at each position that the model computes logits for, else ``IGNORED``.
    tasks : Tensor
        Shape (R, W), int64: whose target it is, ``LABEL`` or ``RATIONALE``; without meaning at ignored positions.
    """

    inputs: dict[str, Any]
    targets: Tensor
    tasks: Tensor

    def token_losses(self, model: transformers.PreTrainedModel) -> tuple[Tensor, Tensor]:
        """Return cross-entropy (N,) in nats and task (N,) of all N targets, in one forward pass."""
        learned = self.targets != IGNORED
        with _computing_only(model, learned):
            logits = model(**self.inputs).logits
        # All logits come from a model that does not tell its output layer.
        logits = logits[learned] if logits.shape[:2] == learned.shape else logits[0]
        return F.cross_entropy(logits.float(), self.targets[learned], reduction="none"), self.tasks[learned]


def pack(slm: SmallModel, examples: Sequence[Sequence[Row]], several: bool) -> Packed:
    """Pack the rows of some examples.

    Parameters
    ----------
    slm : SmallModel
        Who reads them.
    examples : Sequence[Sequence[Row]]
        The rows of each example, at least one in all.
    several : bool
        Whether rows may share one (``keeps_texts_apart``); else each is padded to the longest.
    """
    if several:
        return _share(slm, examples)
    batch = batch_of(slm, [row for rows in examples for row in rows])
    following = F.pad(batch.labels[:, 1:], (0, 1), value=IGNORED)
    return Packed(batch.inputs(slm.model), following, batch.task[:, None].expand_as(following))


@torch.no_grad()
def keeps_texts_apart(slm: SmallModel) -> bool:
    """Return whether a model reads a text alike alone and behind another one in the same row.

    Transformers promises it for models that build their attention mask from positions that begin anew. Tried out with
    six tokens: what stands in front may not change a single bit, and being alone nothing but rounding.
    """
    if slm.encoder_decoder or "position_ids" not in inspect.signature(slm.model.forward).parameters:
        return False

    def read(*texts: list[int]) -> Tensor:
        ids = torch.tensor([[token for text in texts for token in text]], device=slm.model.device)
        places = torch.tensor([[i for text in texts for i in range(len(text))]], device=slm.model.device)
        logits: Tensor = slm.model(input_ids=ids, position_ids=places, use_cache=False).logits
        return logits[0, -2:].float()

    text = [4, 5]
    behind, behind_another, alone = read([0, 1], text), read([2, 3], text), read(text)
    return torch.equal(behind, behind_another) and bool((behind - alone).abs().max() <= 0.02 * alone.abs().max())


def _share(slm: SmallModel, examples: Sequence[Sequence[Row]]) -> Packed:
    """Put rows one behind the other, into rows of like length that are hardly longer than the longest example."""
    rows = sorted((row for some in examples for row in some), key=lambda row: -row.tokens)
    total = sum(row.tokens for row in rows)
    longest = max(sum(row.tokens for row in some) for some in examples)
    count = math.ceil(total / min(longest, slm.max_tokens))
    while True:
        shared: list[list[Row]] = [[] for _ in range(count)]
        lengths = [0] * count
        for row in rows:  # the longest first, each where there is the least
            place = lengths.index(min(lengths))
            shared[place].append(row)
            lengths[place] += row.tokens
        width = max(lengths)
        if width <= max(rows[0].tokens, slm.max_tokens):
            break
        count += 1

    def joined(values: list[list[list[int]]], fill: int) -> Tensor:
        flat = [[value for part in parts for value in part] for parts in values]
        filled = np.array([v + [fill] * (width - len(v)) for v in flat])  # faster than torch.tensor
        return torch.from_numpy(filled).to(slm.model.device)

    ids = joined([[row.prompt + row.completion for row in some] for some in shared], slm.tokenizer.pad_token_id)
    # The padding at the end takes position 0 throughout: as many texts of their own.
    places = joined([[list(range(row.tokens)) for row in some] for some in shared], 0)
    targets = joined([[_following(row) for row in some] for some in shared], IGNORED)
    tasks = joined([[[row.task] * row.tokens for row in some] for some in shared], 0)
    return Packed({"input_ids": ids, "position_ids": places, "use_cache": False}, targets, tasks)


def _following(row: Row) -> list[int]:
    return [*[IGNORED] * (len(row.prompt) - 1), *row.completion, IGNORED][-row.tokens :]


@contextmanager
def _computing_only(model: transformers.PreTrainedModel, learned: Tensor) -> Iterator[None]:
    """Let the last layers of a model compute the positions of ``learned``, a mask (R, W), and no others.

    These are the output layer or, of a Llama, all of the last block but its keys, values and queries. Logits are then
    those of the N positions, shape (1, N, V).
    """
    whole: list[Tensor] = []

    def select(_module: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][learned][None], *args[1:])  # (R, W, hidden) -> (1, N, hidden)

    def keep_and_select(module: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        whole.append(args[0])
        return select(module, args)

    def give_back(_module: torch.nn.Module, _args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (whole.pop(),)

    before: list[tuple[torch.nn.Module, Any]] = []
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if isinstance(model, transformers.LlamaForCausalLM):
        last: Any = model.model.layers[-1]
        # What the block adds to is selected; attention alone reads all, and what it gives is selected, too.
        before = [(last, keep_and_select), (last.input_layernorm, give_back), (last.self_attn.o_proj, select)]
    elif head is not None:
        before = [(head, select)]
    with ExitStack() as hooks:
        for module, hook in before:
            hooks.callback(module.register_forward_pre_hook(hook).remove)
        yield
