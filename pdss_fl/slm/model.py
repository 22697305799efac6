"""The small language model: a Hugging Face model that writes text, with its tokenizer, pretrained or from scratch.

A pretrained one is a causal language model or an encoder-decoder (T5, BART); its configuration tells which.
A from-scratch model is a small Llama with tied embeddings. Its tokenizer has one token for every word
of the texts it is made from and spells all other words in bytes, so that no text is unknown to it.

Here and beside, ``transformers`` is imported whole: it then loads the parts that are used when they are, and a process
that only perturbs prompts starts sooner.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import transformers
from accelerate import PartialState
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import Unigram

from pdss_fl.errors import SettingError, StoreError
from pdss_fl.slm.prompts import TEMPLATE_WORDS

SCRATCH = "scratch"
PAD, EOS = "<pad>", "<eos>"
MAX_WORDS = 20_000
_HEAD_SIZE = 32
_NEVER = -1e6


@dataclass(frozen=True)
class SlmSettings:
    """What small model to make.

    Parameters
    ----------
    model : str (default: "scratch")
        ``scratch``, or the id or local path of a Hugging Face causal or sequence-to-sequence language model with
        safetensors weights.
    hidden_size : int (default: 96)
        Width of a from-scratch model; a positive multiple of 32, the size of its attention heads.
    layers : int (default: 3)
        Depth of a from-scratch model.
    seed : int (default: 0)
        Seeds the initial weights of a from-scratch model.
    max_tokens : int (default: 192)
        Longest row, prompt and completion together, in tokens.
    dtype : str (default: "float32")
        Number format of a pretrained model: ``float32``, or ``bfloat16``, which takes half the memory and loses small
        updates unless low-rank ones are trained (``TrainSettings.lora_rank``).
    """

    model: str = SCRATCH
    hidden_size: int = 96
    layers: int = 3
    seed: int = 0
    max_tokens: int = 192
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.hidden_size < 1 or self.hidden_size % _HEAD_SIZE:
            raise SettingError(f"slm.hidden-size = {self.hidden_size}: set it to a positive multiple of {_HEAD_SIZE}")
        if self.layers < 1:
            raise SettingError(f"slm.layers = {self.layers}: set it to at least 1")
        if self.max_tokens < 2:
            raise SettingError(f"slm.max-tokens = {self.max_tokens}: set it to at least 2")
        if self.dtype not in ("float32", "bfloat16"):
            raise SettingError(f"slm.dtype = {self.dtype!r}: set it to 'float32' or 'bfloat16'")


class SmallModel:
    """A language model, its tokenizer, and the longest row it is given.

    Of an encoder-decoder the encoder reads prompts and the decoder writes completions; a prompt then ends
    as its tokenizer ends a text (``end_ids``).

    Padding is always told by position, never by token id: a tokenizer without a padding token
    pads with its end token, which stays in the loss where it ends a text.

    Parameters
    ----------
    model : PreTrainedModel
        Moved to the device that ``accelerate`` chooses.
    tokenizer : PreTrainedTokenizerBase
        Must have an end token.
    max_tokens : int
        Longest row in tokens.
    """

    def __init__(
        self, model: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase, max_tokens: int
    ) -> None:
        self.model: transformers.PreTrainedModel = model.to(PartialState().device).eval()
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.decoder_start = _decoder_start(model) if model.config.is_encoder_decoder else None
        model.generation_config = _greedy(tokenizer, self.decoder_start)
        first, *_, last = tokenizer("a a").input_ids
        self.start_ids: list[int] = [first] if first == tokenizer.bos_token_id else []
        self.end_ids: list[int] = [last] if self.encoder_decoder and last == tokenizer.eos_token_id else []
        self._space = word_space(tokenizer)

    @property
    def encoder_decoder(self) -> bool:
        """Whether the prompt goes into an encoder and the completion into a decoder."""
        return self.decoder_start is not None

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text of any length; nothing in it counts as a special token."""
        ids: list[int] = self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, verbose=False
        ).input_ids
        return ids

    def encode_next(self, text: str) -> list[int]:
        """Return the token ids of a text that follows another one after a space."""
        return self.encode(self._space + text)

    def encode_completion(self, text: str) -> list[int]:
        """Return the token ids of what follows a prompt, or of what a decoder writes, without the end token."""
        return self.start_ids + self.encode(text) if self.encoder_decoder else self.encode_next(text)

    def save(self, directory: Path) -> None:
        """Write model and tokenizer in Hugging Face format; the auto classes for their kind can read them."""
        self.tokenizer.model_max_length = self.max_tokens
        self.model.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)

    @classmethod
    def load(cls, directory: Path) -> SmallModel:
        """Read what ``save`` wrote; raises ``StoreError`` if it is missing or damaged."""
        try:
            model, tokenizer = _from_pretrained(str(directory), "auto")
        except Exception as err:  # transformers has no common base for what a damaged file can raise
            raise StoreError(
                "a saved small model is missing or damaged; remove its folder to start anew",
                f"{directory}: {err}",
            ) from None
        return cls(model, tokenizer, tokenizer.model_max_length)


def create_slm(settings: SlmSettings, texts: Iterable[str]) -> SmallModel:
    """Make the initial small model; equal settings and texts give equal weights.

    Parameters
    ----------
    settings : SlmSettings
        What to make.
    texts : Iterable[str]
        Where a from-scratch tokenizer takes its words from; not read for a pretrained model. A saved
        tokenizer tells these words, so it stays with whom the texts belong to.

    Raises
    ------
    SettingError
        If a pretrained model cannot be loaded, has no end token, or is too short for
        ``max_tokens``; the message names ``slm.model`` or ``slm.max-tokens``.
    """
    if settings.model == SCRATCH:
        tokenizer = scratch_tokenizer([TEMPLATE_WORDS, *texts])
        return SmallModel(_scratch_model(settings, tokenizer), tokenizer, settings.max_tokens)
    try:
        model, pretrained = _from_pretrained(settings.model, settings.dtype)
    except Exception as err:  # transformers has no common base for what a wrong id or folder can raise
        raise SettingError(
            f"slm.model = {settings.model!r} cannot be loaded ({type(err).__name__}): give 'scratch', or the "
            "id or folder of a Hugging Face causal or sequence-to-sequence language model with safetensors weights",
            str(err),
        ) from None
    _check_pretrained(model, pretrained, settings)
    return SmallModel(model, pretrained, settings.max_tokens)


def word_space(tokenizer: transformers.PreTrainedTokenizerBase) -> str:
    """Return what to put before a word to have it encoded as inside a sentence.

    That is a space, or nothing where a tokenizer already treats the beginning of a text as if a
    space came before it: there "a a" is twice the same token.
    """
    ids = tokenizer("a a", add_special_tokens=False).input_ids
    return "" if len(ids) == 2 and ids[0] == ids[1] else " "


def scratch_tokenizer(texts: Iterable[str]) -> transformers.PreTrainedTokenizerFast:
    """Make a lower-casing tokenizer with the ``MAX_WORDS`` most frequent words of the texts.

    Known words are one token each. Another one becomes as few known words and UTF-8 bytes as it can
    ("robins" is "robin" and "s"), so decoding returns what was encoded, in lower case and with a space
    in front.
    """
    normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=True)
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    words = sorted(counts, key=lambda word: (-counts[word], word))[:MAX_WORDS]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    scores = dict.fromkeys([PAD, EOS], _NEVER) | dict.fromkeys(words, -1.0) | dict.fromkeys(alphabet, -10.0)
    # Unigram takes the cheapest way to write a word: the word itself, then long pieces, then bytes.
    tokenizer = Tokenizer(Unigram(list(scores.items())))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    made: transformers.PreTrainedTokenizerFast = transformers.PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, clean_up_tokenization_spaces=False
    )
    return made


def _scratch_model(
    settings: SlmSettings, tokenizer: transformers.PreTrainedTokenizerFast
) -> transformers.LlamaForCausalLM:
    heads = settings.hidden_size // _HEAD_SIZE
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=4 * settings.hidden_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=settings.max_tokens,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(settings.seed)
        return transformers.LlamaForCausalLM(config)


def _from_pretrained(
    name: str, dtype: str
) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    model = kind.from_pretrained(name, dtype=dtype, use_safetensors=True, trust_remote_code=False)
    return model, tokenizer


def _decoder_start(model: transformers.PreTrainedModel) -> int:
    known: int | None = getattr(model.config, "decoder_start_token_id", None)
    if known is None and model.generation_config is not None:
        known = model.generation_config.decoder_start_token_id
    if known is None:
        raise SettingError(
            "slm.model is an encoder-decoder whose configuration has no decoder_start_token_id: choose one that has"
        )
    return known


def _greedy(
    tokenizer: transformers.PreTrainedTokenizerBase, decoder_start: int | None
) -> transformers.GenerationConfig:
    """Return how a small model writes: most likely token first, whatever habits (beams, penalties) it came with."""
    return transformers.GenerationConfig(  # type: ignore[no-untyped-call,no-any-return]
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=decoder_start,
    )


def _check_pretrained(
    model: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase, settings: SlmSettings
) -> None:
    name = f"slm.model = {settings.model!r}"
    if tokenizer.eos_token_id is None:
        raise SettingError(f"{name} has a tokenizer without an end token: choose a model that has one")
    rows = cast(torch.nn.Embedding, model.get_input_embeddings()).num_embeddings
    if len(tokenizer) > rows:
        raise SettingError(
            f"{name} has {rows} embeddings for the {len(tokenizer)} tokens of its tokenizer: "
            "choose a folder whose model and tokenizer belong together"
        )
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and settings.max_tokens > limit:
        raise SettingError(
            f"slm.max-tokens = {settings.max_tokens}: {name} takes at most {limit} tokens; set that or less"
        )
