"""Rationales from any causal LM of Hugging Face transformers, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pdss_fl import __version__
from pdss_fl.errors import LLMUnavailable, MessageError, SettingError
from pdss_fl.llm.adapter import AUTO, BUILT_IN, apply_adapter, choose_adapter
from pdss_fl.llm.decode import GreedyDecoder, common_length
from pdss_fl.llm.instruction import ADAPTED, EVERYDAY, Instruction, load_instruction
from pdss_fl.llm.loading import load_causal_lm
from pdss_fl.llm.protocol import never
from pdss_fl.messages import (
    MAX_RATIONALE_CHARS,
    Finish,
    GenerationSettings,
    PerturbedPrompt,
    PromptBatch,
    Rationale,
    ServerInfo,
)

MAX_BATCH_TOKENS = 32_768
"""Bound of rows x tokens of one batch, so that long prompts cannot exhaust the memory."""


def load_local_generator(
    model: str, instruction: str = "", dtype: str = "auto", batch_size: int = 32, adapter: str = AUTO
) -> TransformersGenerator:
    """Load a generator from settings as a run or a command line names them (``llm.*``).

    ``instruction`` is the path of a JSON file, or empty for the built-in one that suits the adapter; it is
    read first, since the model takes longer. See ``choose_adapter`` for ``adapter``, and
    ``TransformersGenerator.load`` for the rest.
    """
    adapter = choose_adapter(adapter, model)
    built_in = ADAPTED if adapter == BUILT_IN else EVERYDAY
    chosen = load_instruction(instruction) if instruction else built_in
    return TransformersGenerator.load(model, instruction=chosen, dtype=dtype, batch_size=batch_size, adapter=adapter)


class TransformersGenerator:
    """Writes rationales with a loaded causal LM; a ``RationaleGenerator``.

    Every token is the most probable one; penalties that a model's own generation settings may name
    are not applied.

    Parameters
    ----------
    model : PreTrainedModel
        In evaluation mode, on its device.
    tokenizer : PreTrainedTokenizerBase
        The model's own; it needs neither a padding token nor a chat template.
    name : str
        What clients are told; not a path.
    instruction : Instruction
        What precedes every prompt.
    batch_size : int (default: 32)
        Most prompts that are written at a time, at least 1.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        instruction: Instruction,
        batch_size: int = 32,
    ) -> None:
        if batch_size < 1:
            raise SettingError(f"llm.batch-size = {batch_size}; give at least 1")
        self._tokenizer, self._instruction, self._batch_size = tokenizer, instruction, batch_size
        self._context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._ends = _end_tokens(model, tokenizer)
        first, second = self._encode([PerturbedPrompt(0, "a"), PerturbedPrompt(0, "the")])
        self._decoder = GreedyDecoder(model, first[: common_length(first, second)])
        self._info = ServerInfo(name, __version__, dtype=str(model.dtype).removeprefix("torch."))

    @classmethod
    def load(
        cls,
        model: str,
        *,
        instruction: Instruction,
        dtype: str = "auto",
        device: str = "auto",
        batch_size: int = 32,
        adapter: str = "",
    ) -> TransformersGenerator:
        """Load a causal LM and return its generator.

        Parameters and errors as in ``load_causal_lm``, those of ``adapter`` as in ``apply_adapter``.
        """
        loaded, tokenizer = load_causal_lm(model, dtype, device)
        loaded = apply_adapter(loaded, adapter)
        name = Path(model).resolve().name if Path(model).is_dir() else model
        return cls(loaded, tokenizer, name=name, instruction=instruction, batch_size=batch_size)

    @property
    def info(self) -> ServerInfo:
        """Name, number format and limits of the loaded LLM."""
        return self._info

    def generate(
        self,
        batch: PromptBatch,
        settings: GenerationSettings,
        is_cancelled: Callable[[], bool] = never,
        tenant: str = "",
    ) -> Iterator[Rationale]:
        """Yield one rationale a prompt, each as soon as it is finished; long prompts are written first.

        White space around a rationale is dropped, and a stop text in leading white space does not count.
        ``settings.max_new_tokens`` is capped by ``info.max_new_tokens``, a rationale by
        ``MAX_RATIONALE_CHARS``. See ``RationaleGenerator.generate`` for the parameters.

        Raises
        ------
        MessageError
            If a prompt and its new tokens do not fit the LLM's context; before anything is written.
        LLMUnavailable
            If the model fails while it writes, for example for want of memory.
        """
        limit = min(settings.max_new_tokens, self.info.max_new_tokens)
        prompts = self._encode(batch.prompts)
        self._check_context(prompts, limit)
        return self._write(prompts, limit, settings.stop, is_cancelled)

    def count_tokens(self, prompts: Sequence[PerturbedPrompt]) -> list[int]:
        """Return how many tokens each prompt has by itself, without the instruction."""
        texts = ["\n".join((prompt.question, *prompt.choices)) for prompt in prompts]
        encoding = self._tokenizer(texts, add_special_tokens=False)
        return [len(ids) for ids in encoding["input_ids"]]

    def _write(
        self, prompts: list[list[int]], limit: int, stops: tuple[str, ...], is_cancelled: Callable[[], bool]
    ) -> Iterator[Rationale]:
        def judge(tokens: list[int]) -> tuple[str, Finish, int] | None:
            return self._judge(tokens, limit, stops)

        try:
            for ordinals in self._batches(prompts, limit):
                texts = self._decoder.decode([prompts[i] for i in ordinals], judge, is_cancelled)
                for row, (text, finish, tokens) in texts:
                    yield Rationale(ordinals[row], text, finish, tokens)
                if is_cancelled():
                    return
        except RuntimeError as error:  # what torch raises, also when memory runs out
            raise LLMUnavailable(
                f"the LLM failed while it wrote ({type(error).__name__}); lower llm.batch-size if its memory ran out",
                private=str(error),
            ) from None

    def _encode(self, prompts: Sequence[PerturbedPrompt]) -> list[list[int]]:
        texts = [self._instruction.render(self._tokenizer, prompt) for prompt in prompts]
        # A chat template writes the special tokens itself.
        encoding = self._tokenizer(texts, add_special_tokens=self._tokenizer.chat_template is None)
        ids: list[list[int]] = encoding["input_ids"]
        return ids

    def _check_context(self, prompts: list[list[int]], limit: int) -> None:
        too_long = [i for i, ids in enumerate(prompts) if self._context and len(ids) + limit > self._context]
        if too_long:
            named = ", ".join(map(str, too_long[:5])) + (", ..." if len(too_long) > 5 else "")
            longest = max(len(prompts[i]) for i in too_long)
            raise MessageError(
                f"{len(too_long)} prompts (ordinals {named}) have up to {longest} tokens with the "
                f"instruction; with {limit} new ones that exceeds the LLM's context of {self._context}: "
                "shorten them, or lower llm.max-new-tokens"
            )

    def _batches(self, prompts: list[list[int]], limit: int) -> Iterator[list[int]]:
        """Yield places of prompts of similar length, the longest first."""
        places = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        while places:
            affordable = MAX_BATCH_TOKENS // (len(prompts[places[0]]) + limit)
            rows = min(self._batch_size, max(affordable, 1))
            yield places[:rows]
            del places[:rows]

    def _judge(self, tokens: list[int], limit: int, stops: tuple[str, ...]) -> tuple[str, Finish, int] | None:
        """Return text, reason and tokens of a finished rationale, ``None`` for an unfinished one."""
        ended = tokens[-1] in self._ends
        written = tokens[:-1] if ended else tokens
        text = str(
            self._tokenizer.decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        ).lstrip()
        stop = min((text.index(s) for s in stops if s and s in text), default=None)
        if not ended and stop is None and len(tokens) < limit and len(text) < MAX_RATIONALE_CHARS:
            return None
        finish = Finish.STOP if ended or stop is not None else Finish.LENGTH
        return text[:stop][:MAX_RATIONALE_CHARS].rstrip(), finish, len(tokens)


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    named = model.generation_config.eos_token_id
    ends = set(named) if isinstance(named, list) else {named}
    return {token for token in ends | {tokenizer.eos_token_id} if token is not None}
