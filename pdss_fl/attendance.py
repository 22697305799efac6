"""Who answered a step of a method, who was left out and why, and whether they are enough to go on."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message

from pdss_fl.errors import QuorumLost
from pdss_fl.replies import Absence, replies_by_node

logger = logging.getLogger("pdss_fl.strategy")


@dataclass(frozen=True)
class Attendance:
    """Reads the replies to each step of a method, and names everybody who is missing.

    Parameters
    ----------
    method : str
        Written into each row of ``left_out``.
    quorum : int
        The fewest clients that have to answer a step.
    left_out : list[dict]
        Grows by a row for every client that took no part in a step.
    failure_codes : set[int]
        Grows by the code of every error that a client answered with.
    """

    method: str
    quorum: int
    left_out: list[dict[str, Any]]
    failure_codes: set[int] = field(default_factory=set)

    def answered(
        self, step: str, server_round: int, requests: Iterable[Message], replies: Iterable[Message]
    ) -> dict[int, Message]:
        """Return the good replies by node; raises ``QuorumLost`` if they are too few."""
        answered, absent = replies_by_node(step, requests, replies)
        for absence in absent:
            self.leave_out(step, server_round, absence)
        self.check_quorum(step, len(answered))
        return answered

    def leave_out(self, step: str, server_round: int, absence: Absence) -> None:
        """Write down that a client takes no part in a step of a round."""
        logger.warning("%s: client %d %s", step, absence.node, absence.why)
        place = {"method": self.method, "round": server_round, "step": step}
        self.left_out.append({**place, "node": absence.node, "why": absence.why})
        if absence.code is not None:
            self.failure_codes.add(absence.code)

    def check_quorum(self, step: str, answered: int) -> None:
        """Raise ``QuorumLost`` if fewer than ``quorum`` clients are left in a step."""
        if answered < self.quorum:
            raise QuorumLost(
                f"{answered} clients answered {step}, fewer than quorum = {self.quorum}; the lines above name the "
                "others and why"
            )
