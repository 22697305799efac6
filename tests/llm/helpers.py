"""Real parts, small: a tokenizer trained here, tiny random causal LMs, and batches of prompts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from pdss_fl.llm.instruction import EVERYDAY, Instruction
from pdss_fl.llm.scheduler import Scheduler
from pdss_fl.messages import PerturbedPrompt, PrivacyStatement, PromptBatch

CHAT_TEMPLATE = (
    "{% for m in messages %}<turn>{{ m['role'] }}\n{{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)
STATEMENT = PrivacyStatement("staircase", "pure-ldp", 8.0, 80.0, 0.0, 10, "basic", 0.5, "epsilon=8", "00")
TEXT = "what does a robin have where do you find the old kettle can silver truck often ring in town"
WORDS = TEXT.split()


def make_tokenizer(chat: bool = False) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer that puts <start> before plain text; a chat template does not."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<stop>", "<start>", "<turn>", "<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([EVERYDAY.system, TEXT], trainer)
    start = tokenizer.token_to_id("<start>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<start> $A", special_tokens=[("<start>", start)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<stop>")  # type: ignore[no-untyped-call]
    fast.chat_template = CHAT_TEMPLATE if chat else None
    return fast


def random_model(kind: Callable[[Any], Any], config: PretrainedConfig, seed: int) -> PreTrainedModel:
    """Make a model with weights drawn from a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = kind(config)
    model.train(False)
    return model


def make_llama(seed: int = 0) -> PreTrainedModel:
    """Make a random Llama that says something else after every prompt (its weights are large)."""
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.3,
        eos_token_id=0,
        bos_token_id=None,
        pad_token_id=None,
    )
    return random_model(LlamaForCausalLM, config, seed)


class Gate:
    """Holds a model before one of its steps until ``open`` is set; ``reached`` says that it stands there."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()

    def close_at(self, model: PreTrainedModel, step: int) -> None:
        """Stop before the ``step``-th forward pass from now on, the first being 1."""
        steps = iter(range(1, 1_000_000))

        def wait(*_: Any) -> None:
            if next(steps) == step:
                self.reached.set()
                assert self.open.wait(60)

        model.register_forward_pre_hook(wait)


def make_generator(
    seed: int = 0, instruction: Instruction = EVERYDAY, chat: bool = False, batch_size: int = 32
) -> Scheduler:
    """Make a generator around a tiny random Llama."""
    return Scheduler(
        make_llama(seed), make_tokenizer(chat), name="tiny", instruction=instruction, batch_size=batch_size
    )


def make_batch(prompts: int, seed: int = 0) -> PromptBatch:
    """Make prompts of 1 to 12 words with up to 3 choices."""
    generator = torch.Generator().manual_seed(seed)

    def words(count: int) -> str:
        return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (count,), generator=generator).tolist())

    lengths = torch.randint(1, 13, (prompts,), generator=generator).tolist()
    return PromptBatch(
        tuple(PerturbedPrompt(i, words(n), tuple(words(1) for _ in range(n % 4))) for i, n in enumerate(lengths)),
        STATEMENT,
    )
