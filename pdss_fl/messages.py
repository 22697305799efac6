"""Batches of perturbed prompts and rationales: domain objects, their protobuf form, and its checks.

Every byte that a client receives from the LLM's side, or the LLM's side from a client, comes in
through ``PromptBatch.parse`` or ``RationaleBatch.parse``. Both refuse whatever is not exactly what
``proto/`` describes with a ``MessageError`` that names what is wrong and never quotes the content.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from google.protobuf.message import DecodeError, Message

from pdss_fl.errors import MessageError
from pdss_fl.proto import distillation_pb2 as pb

SCHEMA_VERSION = 1
MAX_BATCH_BYTES = 32 * 2**20
MAX_PROMPTS = 20_000
MAX_CHOICES = 26
MAX_FIELD_CHARS = 8_000
MAX_RATIONALE_CHARS = 2_000
MAX_STATEMENT_CHARS = 200


@dataclass(frozen=True)
class PerturbedPrompt:
    """One perturbed question with its perturbed choices; ``ordinal`` is its place in the batch."""

    ordinal: int
    question: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class PrivacyStatement:
    """What a client claims about its perturbation; fields as in ``proto/`` (units: nats, tokens)."""

    mechanism: str
    kind: str
    epsilon_per_token: float
    epsilon_per_document: float
    delta: float
    tokens_per_document: int
    composition: str
    kept_tokens: float
    parameters: str
    vocabulary_sha256: str

    def serialize(self) -> bytes:
        """Return the bytes that travel where the prompts travel elsewhere."""
        return pb.PrivacyStatement(**vars(self)).SerializeToString()

    @classmethod
    def parse(cls, data: bytes) -> PrivacyStatement:
        """Check and convert received bytes; raises ``MessageError``."""
        message = pb.PrivacyStatement()
        _decode(message, data, "privacy statement")
        return _statement(message)


class Finish(Enum):
    """Why the LLM stopped writing."""

    STOP = pb.FINISH_REASON_STOP
    LENGTH = pb.FINISH_REASON_LENGTH


@dataclass(frozen=True)
class Rationale:
    """One rationale of the LLM, untrusted text; ``tokens`` counts what was generated for it."""

    ordinal: int
    text: str
    finish: Finish
    tokens: int


@dataclass(frozen=True)
class GenerationSettings:
    """How the LLM is asked to write: greedy, at most ``max_new_tokens``, cut at any ``stop`` text."""

    max_new_tokens: int = 48
    stop: tuple[str, ...] = ("\n",)

    def to_proto(self) -> pb.GenerationSettings:
        """Return the protobuf form."""
        return pb.GenerationSettings(max_new_tokens=self.max_new_tokens, stop=self.stop)

    @classmethod
    def from_proto(cls, message: pb.GenerationSettings) -> GenerationSettings:
        """Check and convert; raises ``MessageError`` when ``max_new_tokens`` is zero."""
        if message.max_new_tokens < 1:
            raise MessageError("the generation settings ask for 0 new tokens; ask for at least 1")
        return cls(message.max_new_tokens, tuple(message.stop))


@dataclass(frozen=True)
class ServerInfo:
    """What the LLM's side is and accepts; fields as in ``proto/``."""

    model: str
    version: str
    dtype: str
    max_prompts: int = MAX_PROMPTS
    max_request_bytes: int = MAX_BATCH_BYTES
    max_new_tokens: int = 512


@dataclass(frozen=True)
class PromptBatch:
    """All prompts of one client in one step, ordinals 0 .. n-1 in this order."""

    prompts: tuple[PerturbedPrompt, ...]
    privacy: PrivacyStatement

    def to_proto(self) -> pb.PerturbedPromptBatch:
        """Return the protobuf form."""
        return pb.PerturbedPromptBatch(
            schema_version=SCHEMA_VERSION,
            prompts=[
                pb.PerturbedPrompt(ordinal=p.ordinal, question=p.question, choices=p.choices) for p in self.prompts
            ],
            privacy=pb.PrivacyStatement(**vars(self.privacy)),
        )

    def serialize(self) -> bytes:
        """Return the bytes that travel; raises ``MessageError`` above ``MAX_BATCH_BYTES``."""
        return _within_size(self.to_proto().SerializeToString(), "prompt batch")

    @classmethod
    def parse(cls, data: bytes, max_prompts: int = MAX_PROMPTS) -> PromptBatch:
        """Check and convert received bytes of at most ``max_prompts`` prompts; raises ``MessageError``."""
        message = pb.PerturbedPromptBatch()
        _decode(message, data, "prompt batch")
        return cls.from_proto(message, max_prompts)

    @classmethod
    def from_proto(cls, message: pb.PerturbedPromptBatch, max_prompts: int = MAX_PROMPTS) -> PromptBatch:
        """Check and convert a decoded message; raises ``MessageError``."""
        _check_version(message.schema_version, "prompt batch")
        if len(message.prompts) > max_prompts:
            raise MessageError(
                f"the prompt batch holds {len(message.prompts)} prompts; at most {max_prompts} are accepted"
            )
        _check_ordinals([p.ordinal for p in message.prompts], len(message.prompts), "prompt batch")
        for prompt in message.prompts:
            _check_prompt(prompt)
        prompts = sorted(message.prompts, key=lambda p: p.ordinal)
        return cls(
            tuple(PerturbedPrompt(p.ordinal, p.question, tuple(p.choices)) for p in prompts),
            _statement(message.privacy),
        )


@dataclass(frozen=True)
class RationaleBatch:
    """The rationales of one client's batch, ordinals 0 .. n-1 in this order."""

    rationales: tuple[Rationale, ...]
    model: str

    def serialize(self) -> bytes:
        """Return the bytes that travel; raises ``MessageError`` above ``MAX_BATCH_BYTES``."""
        message = pb.RationaleBatch(
            schema_version=SCHEMA_VERSION,
            rationales=[rationale_to_proto(r) for r in self.rationales],
            model=self.model,
        )
        return _within_size(message.SerializeToString(), "rationale batch")

    @classmethod
    def parse(cls, data: bytes, expected: int) -> RationaleBatch:
        """Check and convert received bytes.

        Parameters
        ----------
        data : bytes
            What was received.
        expected : int
            Number of prompts that were sent; the ordinals must be exactly 0 .. expected-1.

        Raises
        ------
        MessageError
            If the bytes are empty, truncated or oversized, of another schema version, or if an
            ordinal is missing, repeated or was never sent.
        """
        message = pb.RationaleBatch()
        _decode(message, data, "rationale batch")
        _check_version(message.schema_version, "rationale batch")
        _check_ordinals([r.ordinal for r in message.rationales], expected, "rationale batch")
        rationales = sorted((rationale_from_proto(r) for r in message.rationales), key=lambda r: r.ordinal)
        return cls(tuple(rationales), message.model)


def rationale_to_proto(rationale: Rationale) -> pb.Rationale:
    """Return the protobuf form, the text capped at ``MAX_RATIONALE_CHARS``."""
    return pb.Rationale(
        ordinal=rationale.ordinal,
        text=rationale.text[:MAX_RATIONALE_CHARS],
        finish_reason=rationale.finish.value,
        tokens=rationale.tokens,
    )


def rationale_from_proto(message: pb.Rationale) -> Rationale:
    """Convert one received rationale, its text capped and without control characters."""
    text = printable(message.text, MAX_RATIONALE_CHARS)
    finish = Finish.LENGTH if message.finish_reason == pb.FINISH_REASON_LENGTH else Finish.STOP
    return Rationale(message.ordinal, text, finish, message.tokens)


def _within_size(data: bytes, what: str) -> bytes:
    if len(data) > MAX_BATCH_BYTES:
        raise MessageError(
            f"the {what} has {len(data)} bytes; at most {MAX_BATCH_BYTES} travel in one message, "
            "so send fewer examples a round (raise num-server-rounds)"
        )
    return data


def _decode(message: Message, data: bytes, what: str) -> None:
    if not data:
        raise MessageError(f"the {what} is empty")
    _within_size(data, what)
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise MessageError(f"the {what} of {len(data)} bytes is truncated or damaged") from None


def _check_version(found: int, what: str) -> None:
    if found != SCHEMA_VERSION:
        raise MessageError(
            f"the {what} has schema version {found}; this side speaks {SCHEMA_VERSION}: "
            "install the same release of pdss-fl on both sides"
        )


def _check_ordinals(found: Iterable[int], expected: int, what: str) -> None:
    ordinals = sorted(found)
    if not ordinals:
        raise MessageError(f"the {what} holds nothing")
    if ordinals != list(range(expected)):
        raise MessageError(
            f"the {what} has {len(ordinals)} ordinals between {ordinals[0]} and {ordinals[-1]}; "
            f"expected each of 0 to {expected - 1} once"
        )


def _check_prompt(prompt: pb.PerturbedPrompt) -> None:
    if not prompt.question:
        raise MessageError(f"prompt {prompt.ordinal} has no question")
    if len(prompt.choices) > MAX_CHOICES:
        raise MessageError(f"prompt {prompt.ordinal} has {len(prompt.choices)} choices; at most {MAX_CHOICES}")
    longest = max(len(text) for text in (prompt.question, *prompt.choices))
    if longest > MAX_FIELD_CHARS:
        raise MessageError(f"prompt {prompt.ordinal} has a field of {longest} characters; at most {MAX_FIELD_CHARS}")


def _statement(message: pb.PrivacyStatement) -> PrivacyStatement:
    if not message.mechanism:
        raise MessageError("the prompt batch carries no privacy statement")
    values: dict[str, Any] = {f.name: getattr(message, f.name) for f in pb.PrivacyStatement.DESCRIPTOR.fields}
    if any(isinstance(value, float) and math.isnan(value) for value in values.values()):
        raise MessageError("the privacy statement of the prompt batch holds a number that is none")
    clean: dict[str, Any] = {
        n: printable(v, MAX_STATEMENT_CHARS) if isinstance(v, str) else v for n, v in values.items()
    }
    return PrivacyStatement(**clean)


def printable(text: str, limit: int) -> str:
    """Return received text that is safe to show: cut, and without control characters."""
    return "".join(c if c.isprintable() else " " for c in text[:limit])
