"""Who is next: jobs that wait for a place in the batch, and fair shares of the LLM between tenants."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable

from pdss_fl.errors import Busy
from pdss_fl.llm.jobs import Job

MAX_QUEUED = 100_000
KEPT_TENANTS = 1_000


class Waiting:
    """Jobs that wait, by tenant; the tenant that got the fewest tokens so far is next.

    A tenant that was away is not owed what it did not use: it comes back with the share of whoever is
    served at that time. Calls of one tenant take turns. Not safe to be used by two threads at a time.

    Parameters
    ----------
    bound : int
        Most jobs that may wait, but that nobody's jobs keep out another's: where more would wait, only a tenant
        that would then hold more than its equal share of the bound is refused. So the n tenants that wait hold
        at most (1 + 1/2 + ... + 1/n) times the bound.
    """

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._held: Counter[str] = Counter()
        self._tenants: dict[str, deque[deque[Job]]] = {}
        self._served: dict[str, int] = {}
        self._floor = 0

    def __len__(self) -> int:
        return self._held.total()

    def add(self, tenant: str, jobs: list[Job]) -> None:
        """Let the jobs of one request wait, the longest first.

        Raises
        ------
        Busy
            If more would wait than the bound allows, and more of this tenant than its share; then none of them
            waits. It tells nothing of what others wait for.
        """
        held = self._held[tenant]  # a missing one counts zero and stays missing
        share = self._bound / len(self._held.keys() | {tenant})
        if len(self) + len(jobs) > self._bound and held + len(jobs) > share:
            raise Busy(
                f"{held} of your prompts wait for the LLM, and {len(jobs)} more would exceed its bound of "
                f"{self._bound}, which all who wait share; retry later, or send fewer at a time"
            )
        if not jobs:
            return
        if tenant not in self._tenants:
            self._tenants[tenant] = deque()
            self._served[tenant] = max(self._served.get(tenant, 0), self._floor)
            self._forget_tenants()
        self._tenants[tenant].append(deque(sorted(jobs, key=lambda job: -job.tokens)))
        self._held[tenant] += len(jobs)

    def discard(self, job: Job) -> None:
        """Stop counting a job that nobody waits for any more."""
        if job.queued:
            job.queued = False
            self._held[job.tenant] -= 1
            if not self._held[job.tenant]:
                del self._held[job.tenant]

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
            job.charged = True
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
