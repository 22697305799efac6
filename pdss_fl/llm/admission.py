"""Who is next: jobs that wait for a place in the batch, and fair shares of the LLM between tenants."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from queue import SimpleQueue

from pdss_fl.errors import Busy
from pdss_fl.messages import Rationale

MAX_QUEUED = 100_000
KEPT_TENANTS = 1_000


@dataclass(eq=False)
class Request:
    """One request: where its answers go, and how many are missing."""

    tenant: str
    is_cancelled: Callable[[], bool]
    missing: int
    answers: SimpleQueue[Rationale | Exception | None] = field(default_factory=SimpleQueue)
    jobs: list[Job] = field(default_factory=list)
    over: bool = False


@dataclass(eq=False)
class Job:
    """One prompt that is written once, for all ``waiters`` (a request and the prompt's ordinal in it)."""

    key: bytes
    tenant: str
    prompt: array[int]
    limit: int
    stops: tuple[str, ...]
    submitted: float
    waiters: list[tuple[Request, int]]
    written: list[int] = field(default_factory=list)
    queued: bool = True

    @property
    def tokens(self) -> int:
        """How many tokens it may come to."""
        return len(self.prompt) + self.limit


class Waiting:
    """Jobs that wait, by tenant; the tenant that got the fewest tokens so far is next.

    A tenant that was away is not owed what it did not use: it comes back with the share of whoever is
    served at that time. Calls of one tenant take turns. Not safe to be used by two threads at a time.

    Parameters
    ----------
    bound : int
        Most jobs that may wait.
    """

    def __init__(self, bound: int) -> None:
        self._bound, self._count = bound, 0
        self._tenants: dict[str, deque[deque[Job]]] = {}
        self._served: dict[str, int] = {}
        self._floor = 0

    def __len__(self) -> int:
        return self._count

    def add(self, tenant: str, jobs: list[Job]) -> None:
        """Let the jobs of one request wait, the longest first.

        Raises
        ------
        Busy
            If more would wait than the bound allows; then none of them waits.
        """
        if self._count + len(jobs) > self._bound:
            raise Busy(
                f"{self._count} prompts are waiting for the LLM and {len(jobs)} more would exceed its bound of "
                f"{self._bound}; retry later, or send fewer at a time"
            )
        if not jobs:
            return
        if tenant not in self._tenants:
            self._tenants[tenant] = deque()
            self._served[tenant] = max(self._served.get(tenant, 0), self._floor)
            self._forget_tenants()
        self._tenants[tenant].append(deque(sorted(jobs, key=lambda job: -job.tokens)))
        self._count += len(jobs)

    def discard(self, job: Job) -> None:
        """Stop counting a job that nobody waits for any more."""
        if job.queued:
            job.queued = False
            self._count -= 1

    def take(self, fits: Callable[[Job], bool]) -> list[Job]:
        """Return the jobs that are next, up to the first that does not fit."""
        taken: list[Job] = []
        while self._tenants:
            tenant = min(self._tenants, key=self._served.__getitem__)
            job = self._next_of(tenant)
            if job is None:
                continue
            if not fits(job):
                break
            self._floor = self._served[tenant]
            self._served[tenant] += job.tokens
            self.discard(job)
            requests = self._tenants[tenant]
            requests[0].popleft()
            requests.rotate(-1)
            taken.append(job)
        return taken

    def refund(self, job: Job) -> None:
        """Give a tenant back what a job did not use of its limit."""
        if job.tenant in self._served:
            self._served[job.tenant] -= job.limit - len(job.written)

    def _next_of(self, tenant: str) -> Job | None:
        """Return a tenant's next job that is still wanted; without one, the tenant waits no longer."""
        requests = self._tenants[tenant]
        while requests:
            while requests[0] and not requests[0][0].queued:
                requests[0].popleft()
            if requests[0]:
                return requests[0][0]
            requests.popleft()
        del self._tenants[tenant]
        return None

    def _forget_tenants(self) -> None:
        """Drop shares that no longer matter: of tenants that would come back with ``_floor`` anyway."""
        if len(self._served) > KEPT_TENANTS:
            self._served = {t: s for t, s in self._served.items() if t in self._tenants or s > self._floor}


def by_request(jobs: Iterable[Job]) -> list[list[Job]]:
    """Group jobs by the first request that waits for each; jobs that nobody waits for are left out."""
    groups: dict[int, list[Job]] = {}
    for job in jobs:
        if waiters := job.waiters:  # read once: another thread may replace the list
            groups.setdefault(id(waiters[0][0]), []).append(job)
    return list(groups.values())
