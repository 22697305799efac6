"""Between text and tokens: prompts become token ids, and written tokens a rationale once they are complete."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pdss_fl.errors import MessageError
from pdss_fl.llm.decode import common_length
from pdss_fl.llm.instruction import Instruction
from pdss_fl.llm.protocol import never
from pdss_fl.messages import MAX_RATIONALE_CHARS, Finish, PerturbedPrompt

TURN = 64
"""Texts for which a caller keeps the tokenizer to itself."""


class Written(NamedTuple):
    """A finished rationale that belongs to no prompt yet."""

    text: str
    finish: Finish
    tokens: int


class Scribe:
    """Reads and writes for one LLM; any number of threads may use it.

    Parameters
    ----------
    model : PreTrainedModel
        Only its configuration is looked at: end tokens and the length of its context.
    tokenizer : PreTrainedTokenizerBase
        The model's own; it needs neither a padding token nor a chat template.
    instruction : Instruction
        What precedes every prompt.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, instruction: Instruction) -> None:
        self._tokenizer, self._instruction = tokenizer, instruction
        self._context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._ends = _end_tokens(model, tokenizer)
        self._turn = threading.Lock()  # tokenizers may refuse to be used by two threads at a time

    def shared(self) -> list[int]:
        """Return the tokens with which all prompts begin."""
        first, second = (self._encode([PerturbedPrompt(0, text)])[0] for text in ("a", "the"))
        return list(first[: common_length(first, second)])

    def plain(self) -> array[int]:
        """Return the token ids of a prompt that an LLM which works can answer."""
        return self._encode([PerturbedPrompt(0, "what is this")])[0]

    def read(
        self, prompts: Sequence[PerturbedPrompt], limit: int, is_cancelled: Callable[[], bool] = never
    ) -> list[array[int]]:
        """Return the token ids of prompts after which ``limit`` new tokens fit; of fewer if cancelled meanwhile.

        Raises
        ------
        MessageError
            If the tokenizer fails on a prompt, or a prompt and its new tokens do not fit the LLM's context.
        """
        encoded: list[array[int]] = []
        for start in range(0, len(prompts), TURN):
            if is_cancelled():
                break
            part = prompts[start : start + TURN]
            try:
                encoded += self._encode(part)
            except Exception:  # whatever a tokenizer raises; its text can quote the prompt
                raise self._unreadable(part) from None
        self._check_context(encoded, limit)
        return encoded

    def count(self, prompts: Sequence[PerturbedPrompt]) -> list[int]:
        """Return how many tokens each prompt's own text has; raises ``MessageError`` if the tokenizer fails on one."""
        texts = ("\n".join((prompt.question, *prompt.choices)) for prompt in prompts)
        try:
            return [len(ids) for ids in self._in_turns(texts, special=False)]
        except Exception:  # as in ``read``
            raise self._unreadable(prompts) from None

    def verdict(self, tokens: Sequence[int], limit: int, stops: tuple[str, ...]) -> Written | None:
        """Return the rationale that ``tokens`` are, ``None`` if it is unfinished.

        White space around it is dropped, and a stop text in leading white space does not count.
        """
        ended = tokens[-1] in self._ends
        written = list(tokens[:-1] if ended else tokens)
        text = str(
            self._tokenizer.decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        ).lstrip()
        stop = min((text.index(s) for s in stops if s and s in text), default=None)
        if not ended and stop is None and len(tokens) < limit and len(text) < MAX_RATIONALE_CHARS:
            return None
        finish = Finish.STOP if ended or stop is not None else Finish.LENGTH
        return Written(text[:stop][:MAX_RATIONALE_CHARS].rstrip(), finish, len(tokens))

    def _encode(self, prompts: Sequence[PerturbedPrompt]) -> list[array[int]]:
        texts = (self._instruction.render(self._tokenizer, prompt) for prompt in prompts)
        # A chat template writes the special tokens itself.
        special = self._tokenizer.chat_template is None
        return [array("i", ids) for ids in self._in_turns(texts, special)]

    def _in_turns(self, texts: Iterator[str], special: bool) -> Iterator[list[int]]:
        """Yield the token ids of texts, a few at a time, so that one caller's 10,000 do not hold up the others."""
        while part := list(islice(texts, TURN)):  # made outside of the turn, which gives others the time to take it
            with self._turn:
                encoding = self._tokenizer(part, add_special_tokens=special)
            yield from encoding["input_ids"]

    def _unreadable(self, prompts: Sequence[PerturbedPrompt]) -> MessageError:
        failing = [p.ordinal for p in prompts if not self._can_encode(p)]
        return MessageError(f"the LLM's tokenizer fails on prompts (ordinals {_named(failing)})")

    def _can_encode(self, prompt: PerturbedPrompt) -> bool:
        try:
            return bool(self._encode([prompt]))
        except Exception:
            return False

    def _check_context(self, prompts: list[array[int]], limit: int) -> None:
        too_long = [i for i, ids in enumerate(prompts) if self._context and len(ids) + limit > self._context]
        if too_long:
            longest = max(len(prompts[i]) for i in too_long)
            raise MessageError(
                f"{len(too_long)} prompts (ordinals {_named(too_long)}) have up to {longest} tokens with the "
                f"instruction; with {limit} new ones that exceeds the LLM's context of {self._context}: "
                "shorten them, or lower llm.max-new-tokens"
            )


def _named(ordinals: list[int]) -> str:
    return ", ".join(map(str, ordinals[:5])) + (", ..." if len(ordinals) > 5 else "")


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    named = model.generation_config.eos_token_id
    ends = set(named) if isinstance(named, list) else {named}
    return {token for token in ends | {tokenizer.eos_token_id} if token is not None}
