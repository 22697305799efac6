"""Real parts, small: a tiny Hugging Face model, and a Flower grid that runs the ClientApp in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from wordfreq import top_n_list

from pdss_fl.messages import Finish, GenerationSettings, PromptBatch, Rationale, ServerInfo


def save_tiny_model(directory: Path, seed: int = 0) -> Path:
    """Save a random two-layer Llama with a byte-level tokenizer in Hugging Face format."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=800, special_tokens=["<pad>", "<eos>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([" ".join(top_n_list("en", 400))], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    fast.save_pretrained(directory)
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, pad_token_id=0, eos_token_id=1, bos_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(directory)
    return directory


class LoopbackGrid(Grid):
    """Runs a real ClientApp for every message, in this process, and keeps what each side sent.

    ``fail`` may return a reply in place of the client's, or ``None`` for a client that never answers.
    """

    def __init__(
        self,
        app: ClientApp,
        contexts: dict[int, Context],
        fail: Callable[[Message], Message | bool | None] = lambda _: False,
    ) -> None:
        self.app, self.contexts, self.fail = app, contexts, fail
        self.requests: list[Message] = []
        self.replies: list[Message] = []

    def set_run(self, run: Any) -> None:
        """Do nothing; there is no SuperLink."""

    @property
    def run(self) -> Any:
        """There is no run."""
        raise NotImplementedError

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message, as the deprecated form of Flower's API asks."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the clients."""
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Not used by strategies."""
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Not used by strategies."""
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Deliver each message and return the replies of those who answer."""
        replies = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(uuid4())
            self.requests.append(message)
            reply = self.fail(message)
            if reply is False:
                reply = self.app(message, self.contexts[message.metadata.dst_node_id])
            if reply:
                replies.append(reply)
        self.replies += replies
        return replies


def context(node_id: int, node_config: dict[str, Any], run_config: dict[str, Any]) -> Context:
    """Return what a deployed client gets from its SuperNode."""
    return Context(run_id=1, node_id=node_id, node_config=node_config, state=RecordDict(), run_config=run_config)


def node(directory: Path, data_path: Path, **policy: Any) -> dict[str, Any]:
    """Return a complete node config with files of its own below ``directory``; its ledger holds prompts only."""
    limits = {"max-epsilon-per-token": 100.0, "max-epsilon-per-example": 1e6, "metrics": "full"}
    return {"state-dir": str(directory), "data-path": str(data_path), **limits, **policy}


def small_run(tiny: Path, **changes: Any) -> dict[str, Any]:
    """Return a run's settings under which a client is done in a moment: few words, few questions, two steps."""
    return {
        "privacy.embeddings": str(tiny), "privacy.vocabulary": "english", "privacy.vocabulary-size": 200,
        "data.source": "jsonl", "data.train-examples": 8, "data.test-examples": 24, "slm.hidden-size": 32,
        "slm.layers": 1, "distill.steps": 2, **changes,
    }  # fmt: skip


def number_questions(path: Path) -> Path:
    """Write a hundred questions with two choices to a file."""
    rows = [{"question": f"what is number {i}?", "choices": ["one", "two"], "answer": "one"} for i in range(100)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def payload_bytes(message: Message) -> bytes:
    """Return everything that a message carries, as bytes to search in."""
    if message.has_error():
        return str(message.error.reason).encode()
    parts = [repr(message.metadata).encode()]
    for name, record in message.content.items():
        parts.append(str(name).encode())
        for key, value in record.items():
            parts += [str(key).encode(), value if isinstance(value, bytes) else str(value).encode()]
    return b"\n".join(parts)


class EchoGenerator:
    """An LLM's stand-in that answers each prompt with the prompt and keeps what it was shown."""

    def __init__(self) -> None:
        self.seen: list[PromptBatch] = []
        self.info = ServerInfo(model="echo", version="0", dtype="none")

    def generate(
        self,
        batch: PromptBatch,
        settings: GenerationSettings,
        is_cancelled: Callable[[], bool] = lambda: False,
        tenant: str = "",
    ) -> Iterator[Rationale]:
        """Yield the prompts back, the last first."""
        self.seen.append(batch)
        for prompt in reversed(batch.prompts):
            text = " ".join((prompt.question, *prompt.choices))
            yield Rationale(prompt.ordinal, text, Finish.STOP, len(text.split()))


def times_asked(batches: Sequence[PromptBatch]) -> int:
    """Return how many prompts an LLM was shown: those of its clients but for equal ones, which are asked once."""
    return sum(len(batch.prompts) for batch in batches)


def texts_seen(batches: Sequence[PromptBatch]) -> str:
    """Return every text that an LLM was shown, in one string."""
    return "\n".join(" ".join((p.question, *p.choices)) for batch in batches for p in batch.prompts)
