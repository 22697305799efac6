"""Waiting for replies without sleeping past them: Flower's own grid of a deployment looks every three seconds."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

SHORTEST, LONGEST = 0.2, 3.0
SHARE = 0.05


class PatientGrid(Grid):
    """Another grid, asked for replies after pauses that are a twentieth of what was waited so far.

    So looking late costs at most 5 % of a step, or 0.2 seconds, and a step of hours is looked at every 3 seconds as
    Flower does.

    Parameters
    ----------
    grid : Grid
        Flower's.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def set_run(self, run: Any) -> None:
        """Hand on."""
        self.grid.set_run(run)

    @property
    def run(self) -> Any:  # Flower's own type of a run is not public
        """The other grid's."""
        return self.grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Hand on."""
        return self.grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Hand on."""
        return self.grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Hand on."""
        return self.grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Hand on."""
        return self.grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and return the replies that came within ``timeout`` seconds, for ever if not given."""
        open_ = {name for name in self.push_messages(messages) if name}  # Flower has no name for what it could not send
        started, replies = time.monotonic(), list[Message]()
        while open_:
            found = list(self.pull_messages(open_))
            replies += found
            open_ -= {reply.metadata.reply_to_message_id for reply in found}
            waited = time.monotonic() - started
            left = LONGEST if timeout is None else timeout - waited
            if not open_ or left <= 0:
                break
            time.sleep(min(left, LONGEST, max(SHORTEST, SHARE * waited)))
        return replies
