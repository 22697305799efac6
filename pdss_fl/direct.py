"""The direct channel's part in Flower's messages: an offer to a client, and what the client tells of its use.

With ``llm.channel = "direct"`` a client streams its perturbed prompts to the LLM server itself. The strategy
hands it an address and a token (in ``train.distill``, which then is the only trip of a round); back comes what
the strategy would have read off the prompts: the privacy statement, and counts. Neither side trusts the other's.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from pdss_fl.errors import MessageError
from pdss_fl.messages import GenerationSettings, PrivacyStatement

logger = logging.getLogger("pdss_fl.strategy")

_OFFER, _STATEMENT, _USAGE, _PAYLOAD = "llm", "privacy", "usage", "payload"


@dataclass(frozen=True)
class Offer:
    """Where the LLM server is, a token for it ("" if it asks for none), and how the LLM is to write."""

    address: str
    token: str = field(repr=False)
    generation: GenerationSettings

    def add_to(self, content: RecordDict) -> None:
        """Put the offer into a message for the client that it was made for."""
        content[_OFFER] = ConfigRecord(
            {
                "address": self.address,
                "token": self.token,
                "max-new-tokens": self.generation.max_new_tokens,
                "stop": list(self.generation.stop),
            }
        )

    @classmethod
    def find_in(cls, content: RecordDict) -> Offer | None:
        """Return a message's offer, ``None`` if it holds none; raises ``MessageError`` if it is not one."""
        record = content.get(_OFFER)
        if record is None:
            return None
        values = dict(record) if isinstance(record, ConfigRecord) else {}
        address, token = values.get("address"), values.get("token")
        tokens, stop = values.get("max-new-tokens"), values.get("stop")
        if not (isinstance(address, str) and isinstance(token, str) and token.isprintable() and token.isascii()):
            raise MessageError("the request's LLM server has no address, or no token that can be one")
        if type(tokens) is not int or tokens < 1 or not isinstance(stop, list):
            raise MessageError("the request's LLM server comes without generation settings")
        return cls(address, token, GenerationSettings(tokens, tuple(map(str, stop))))


@dataclass(frozen=True)
class DirectReport:
    """What a client claims about a batch that it sent itself: its privacy, and counts of the answer."""

    statement: PrivacyStatement
    prompts: int
    tokens: int

    def add_to(self, content: RecordDict) -> None:
        """Put the report into a reply."""
        content[_STATEMENT] = ConfigRecord({_PAYLOAD: self.statement.serialize()})
        content[_USAGE] = MetricRecord({"prompts": self.prompts, "tokens": self.tokens})

    @classmethod
    def find_in(cls, content: RecordDict) -> DirectReport:
        """Return a reply's report; raises ``MessageError`` if there is none or it is not one."""
        statement, usage = content.get(_STATEMENT), content.get(_USAGE)
        payload = statement.get(_PAYLOAD) if isinstance(statement, ConfigRecord) else None
        counts = [usage.get(key) if isinstance(usage, MetricRecord) else None for key in ("prompts", "tokens")]
        if not isinstance(payload, bytes) or not all(type(count) is int and count >= 0 for count in counts):
            raise MessageError("the reply tells neither the privacy nor the number of what was sent directly")
        prompts, tokens = counts
        return cls(PrivacyStatement.parse(payload), prompts, tokens)  # type: ignore[arg-type]


def direct_reports(answered: Mapping[int, Message]) -> dict[int, DirectReport]:
    """Return what clients tell of prompts that they sent to the LLM themselves; the log names who tells nothing."""
    reports: dict[int, DirectReport] = {}
    for node, reply in answered.items():
        try:
            reports[node] = DirectReport.find_in(reply.content)
        except MessageError as err:
            logger.warning("client %d: %s", node, err.public)
    return reports
