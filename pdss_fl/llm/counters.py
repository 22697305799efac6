"""What a scheduler counts while it runs: numbers only, nothing of any prompt."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import OrderedDict, deque
from dataclasses import dataclass, field

WINDOW_SECONDS = 10.0
RECENT = 1_000
KEPT_TENANTS = 1_000
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
"""Upper bounds of the groups that times are counted in; a last group has no bound."""


@dataclass(frozen=True)
class SchedulerStats:
    """A scheduler's numbers at one moment.

    Parameters
    ----------
    queued, running : int
        Prompts that wait, and that have a place in the batch.
    tokens_total, prompts_total : int
        New tokens and rationales since the start; a rationale that was found again counts as a prompt.
    cache_hits_total : int
        Prompts that were answered with another one's rationale, of the same tenant.
    rejected_total : int
        Prompts that were refused because too many waited.
    tokens_per_second : float
        New tokens, over the last 10 seconds.
    mean_batch : float
        Rows of a step, over the last 1,000 steps.
    first_tokens : tuple[int, ...]
        Prompts by the time from their submission to their first token, in the groups of ``SECONDS``.
    first_token_seconds : float
        The sum of these times.
    per_tenant : dict[str, int]
        New tokens since the start, of the 1,000 tenants that were served last.
    """

    queued: int
    running: int
    tokens_total: int
    prompts_total: int
    cache_hits_total: int
    rejected_total: int
    tokens_per_second: float
    mean_batch: float
    first_tokens: tuple[int, ...]
    first_token_seconds: float
    per_tenant: dict[str, int]


@dataclass
class Counters:
    """The numbers as they grow; all of them bounded in memory."""

    prompts: int = 0
    cache_hits: int = 0
    rejected: int = 0
    tokens: int = 0
    first_tokens: list[int] = field(default_factory=lambda: [0] * (len(SECONDS) + 1))
    first_token_seconds: float = 0.0
    per_tenant: OrderedDict[str, int] = field(default_factory=OrderedDict)
    _steps: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=RECENT))

    def step(self, rows: int, started: float) -> None:
        """Note that ``rows`` tokens were written in a step that began at ``started`` (monotonic seconds)."""
        if rows:
            self.tokens += rows
            self._steps.append((started, rows))

    def first_token(self, seconds: float) -> None:
        """Note that a prompt got its first token so many seconds after its submission."""
        self.first_tokens[bisect_left(SECONDS, seconds)] += 1
        self.first_token_seconds += seconds

    def served(self, tenant: str, tokens: int) -> None:
        """Note that so many tokens were written for a prompt of a tenant."""
        self.per_tenant[tenant] = self.per_tenant.pop(tenant, 0) + tokens
        if len(self.per_tenant) > KEPT_TENANTS:
            self.per_tenant.popitem(last=False)

    def snapshot(self, queued: int, running: int) -> SchedulerStats:
        """Return all numbers."""
        now = time.monotonic()
        recent = [(at, rows) for at, rows in self._steps if now - at <= WINDOW_SECONDS]
        seconds = max(now - recent[0][0], 1e-9) if recent else 1.0
        return SchedulerStats(
            queued=queued,
            running=running,
            tokens_total=self.tokens,
            prompts_total=self.prompts,
            cache_hits_total=self.cache_hits,
            rejected_total=self.rejected,
            tokens_per_second=sum(rows for _, rows in recent) / seconds,
            mean_batch=sum(rows for _, rows in self._steps) / max(len(self._steps), 1),
            first_tokens=tuple(self.first_tokens),
            first_token_seconds=self.first_token_seconds,
            per_tenant=dict(self.per_tenant),
        )
