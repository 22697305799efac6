"""What the strategy takes out of clients' replies, where nothing is trusted, and the names that both sides use."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass

from flwr.app import ConfigRecord, Message, MetricRecord

from pdss_fl.errors import MessageError
from pdss_fl.messages import printable

logger = logging.getLogger("pdss_fl.strategy")

_COUNTS = ("num-examples", "correct")
_TAIL = 50.0  # a noise beyond this many nats is none: its probability is below 1e-20
CLIENT, ARRAYS = "client", "arrays"
_MAX_REASON_CHARS = 400


@dataclass(frozen=True)
class Absence:
    """A client that took no part in a step, and why; ``code`` is that of the error it answered with."""

    node: int
    why: str
    code: int | None = None


def replies_by_node(
    step: str, requests: Iterable[Message], replies: Iterable[Message]
) -> tuple[dict[int, Message], list[Absence]]:
    """Return the good replies by node, and everybody else."""
    waiting = {m.metadata.message_id: m.metadata.dst_node_id for m in requests}
    answered: dict[int, Message] = {}
    absent: list[Absence] = []
    for reply in replies:
        node = waiting.pop(reply.metadata.reply_to_message_id, None)
        if node is None:
            logger.warning("%s: a reply to nothing that was asked is ignored", step)
        elif reply.has_error():
            reason = printable(reply.error.reason or "", _MAX_REASON_CHARS)
            absent.append(Absence(node, f"failed (code {reply.error.code}): {reason}", reply.error.code))
        else:
            answered[node] = reply
    return answered, absent + [Absence(node, "did not answer in time or was lost") for node in waiting.values()]


def prompt_payload(reply: Message) -> bytes:
    """Return the serialized prompt batch of a reply; raises ``MessageError`` if there is none."""
    record = reply.content.get("prompts")
    payload = record.get("payload") if isinstance(record, ConfigRecord) else None
    if not isinstance(payload, bytes):
        raise MessageError("the reply carries no prompt batch")
    return payload


def reported_counts(reply: Message) -> dict[str, int | float]:
    """Return the counts that a client reported, nothing of a report that cannot be one.

    A noisy count, which may be negative or above the number of questions, comes with its ``noise-variance``.
    """
    record = reply.content.get("metrics")
    if not isinstance(record, MetricRecord):
        return {}
    counts: dict[str, int | float] = {key: v for key in _COUNTS if isinstance(v := record.get(key), int)}
    epsilon, slack = record.get("noise-epsilon"), 0.0
    if isinstance(epsilon, int | float) and 0.01 <= epsilon <= 100:
        slack = _TAIL / epsilon
        counts["noise-variance"] = noise_variance(epsilon)
    total = counts.get("num-examples", -1)
    return counts if total >= 0 and -slack <= counts.get("correct", 0) <= total + slack else {}


def noise_variance(epsilon: float) -> float:
    """Return the variance of a noisy count, 2a / (1 - a)^2 with a = e^-epsilon."""
    return 0.5 / math.sinh(epsilon / 2) ** 2


def reported_client(reply: Message) -> dict[str, int]:
    """Return the number that a simulated client goes by; a deployed one reports none and goes by its node id."""
    record = reply.content.get("metrics")
    number = record.get(CLIENT) if isinstance(record, MetricRecord) else None
    return {CLIENT: number} if isinstance(number, int) else {}
