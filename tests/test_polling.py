"""How long after a reply is there it is seen, on a clock of the test's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest
from flwr.app import Message, RecordDict

from pdss_fl import polling
from pdss_fl.polling import PatientGrid
from tests.harness import LoopbackGrid


@dataclass
class SlowGrid(LoopbackGrid):
    """Answers node n after n seconds, once; node 0 is sent nothing."""

    now: float = 0.0
    waiting: dict[str, tuple[float, Message]] = field(default_factory=dict)
    seen: list[tuple[int, float]] = field(default_factory=list)
    looks: int = 0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds

    def push_messages(self, messages: Iterable[Message]) -> Iterator[Any]:
        for message in messages:
            node, name = message.metadata.dst_node_id, str(uuid4())
            message.metadata.__dict__["_message_id"] = name
            if node:
                self.waiting[name] = (self.now + node, Message(RecordDict(), reply_to=message))
            yield name if node else None

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        self.looks += 1
        due = [name for name in message_ids if self.waiting[name][0] <= self.now]
        replies = [self.waiting.pop(name)[1] for name in due]
        self.seen += [(reply.metadata.src_node_id, self.now) for reply in replies]
        return replies


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> SlowGrid:
    grid = SlowGrid()
    monkeypatch.setattr(polling, "time", grid)
    return grid


def ask(grid: SlowGrid, *nodes: int, timeout: float | None = None) -> set[int]:
    messages = [Message(RecordDict(), node, "query.perturb") for node in nodes]
    replies = PatientGrid(grid).send_and_receive(messages, timeout=timeout)
    return {reply.metadata.src_node_id for reply in replies}


def test_a_reply_is_seen_a_twentieth_of_its_time_late_at_most(slow: SlowGrid) -> None:
    nodes = (1, 5, 20, 59, 60, 600, 3600)
    assert ask(slow, *nodes) == set(nodes)
    assert sorted(node for node, _ in slow.seen) == list(nodes), "each once"
    for node, at in slow.seen:
        assert 0 <= at - node <= min(3.0, max(0.2, 0.05 * node)) + 1e-6
    assert slow.looks < 100 + 3600 / 3, "after a minute no more often than Flower looks"


def test_what_is_late_is_left_and_what_could_not_be_sent_is_not_waited_for(slow: SlowGrid) -> None:
    assert ask(slow, 1, 9, 0, timeout=9.0) == {1, 9}
    assert slow.now == pytest.approx(9.0)
    assert ask(slow, 2, 30, timeout=10.0) == {2}
    assert slow.now == pytest.approx(19.0)
    assert ask(slow, timeout=10.0) == set()
    assert slow.now == pytest.approx(19.0), "nothing was sent"
