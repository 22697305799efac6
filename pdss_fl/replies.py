"""What the strategy takes out of clients' replies, where nothing is trusted, and the names that both sides use."""

from __future__ import annotations

from flwr.app import ConfigRecord, Message, MetricRecord

from pdss_fl.errors import MessageError
from pdss_fl.messages import printable

_COUNTS = ("num-examples", "correct")
CLIENT, ARRAYS = "client", "arrays"
_MAX_REASON_CHARS = 400


def prompt_payload(reply: Message) -> bytes:
    """Return the serialized prompt batch of a reply; raises ``MessageError`` if there is none."""
    record = reply.content.get("prompts")
    payload = record.get("payload") if isinstance(record, ConfigRecord) else None
    if not isinstance(payload, bytes):
        raise MessageError("the reply carries no prompt batch")
    return payload


def reported_counts(reply: Message) -> dict[str, int]:
    """Return the counts that a client reported, nothing of a report that cannot be one."""
    record = reply.content.get("metrics")
    if not isinstance(record, MetricRecord):
        return {}
    counts = {key: value for key in _COUNTS if isinstance(value := record.get(key), int)}
    total = counts.get("num-examples", -1)
    return counts if 0 <= counts.get("correct", 0) <= total else {}


def reported_client(reply: Message) -> dict[str, int]:
    """Return the number that a simulated client goes by; a deployed one reports none and goes by its node id."""
    record = reply.content.get("metrics")
    number = record.get(CLIENT) if isinstance(record, MetricRecord) else None
    return {CLIENT: number} if isinstance(number, int) else {}


def plain(reason: str | None) -> str:
    """Return a client's text in one printable line of bounded length."""
    return printable(reason or "", _MAX_REASON_CHARS)
