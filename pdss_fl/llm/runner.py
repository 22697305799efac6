"""Runs the jobs that have a place in the batch, one token at a time, and keeps a failure with its cause."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from pdss_fl.errors import LLMUnavailable
from pdss_fl.llm.decode import FAILED, Decoder, RunningBatch, close_gaps
from pdss_fl.llm.jobs import Job, by_request, in_halves
from pdss_fl.llm.writing import Written

READ_TOKENS = {"cpu": 768}
READ_TOKENS_ELSEWHERE = 4_096
"""Most tokens of prompts that are read in one forward pass, by the kind of device, the shared beginning not
counted. Fewer on a processor, so that what its layers hand on stays in its caches."""

Event = tuple[Job, Written | LLMUnavailable]


class Runner:
    """A running batch and the jobs that its rows belong to; used by one thread.

    When the model raises, nothing says for which row. Then all jobs of the batch are set apart, and the
    jobs of each request are run again, from what was written, with no other's. Those of a request that raises
    once more are run in halves, and in halves of these: only a job that raises by itself has failed, the
    others go on. So a batch that the memory is too small for gets through, too. No job joins until that is over.
    Rows that cannot be moved, since memory runs out when they are put together, are set apart as well.

    Parameters
    ----------
    decoder : Decoder
        Starts batches.
    judge : Callable[[Job], Written | None]
        Asked after every token of a job whether it is complete.
    """

    def __init__(self, decoder: Decoder, judge: Callable[[Job], Written | None]) -> None:
        self._decoder, self._judge = decoder, judge
        self._batch: RunningBatch | None = None
        self._suspects: deque[list[Job]] = deque()
        self._alone = False
        self.jobs: list[Job] = []

    @property
    def idle(self) -> bool:
        """Whether there is nothing to run."""
        return not (self.jobs or self._suspects)

    @property
    def is_open(self) -> bool:
        """Whether jobs may join."""
        return not (self._suspects or self._alone) and (self._decoder.can_join or not self.jobs)

    def abandon(self) -> list[Job]:
        """Forget everything and return the jobs that were under way."""
        jobs = [*self.jobs, *(job for group in self._suspects for job in group)]
        self._batch, self.jobs, self._alone = None, [], False
        self._suspects.clear()
        return jobs

    def works(self, prompt: Sequence[int]) -> bool:
        """Say whether the model reads a prompt by itself and writes two tokens, whatever it failed on before."""
        try:
            batch = self._decoder.start([prompt])
            first = batch.newest.tolist()
            batch.advance()
        except Exception:  # whatever the model raises
            return False
        return FAILED not in [*first, *batch.newest.tolist()]

    def turn(self, newcomers: list[Job]) -> list[Event]:
        """Write a token of every job, and the first one of newcomers; return what is complete or failed."""
        self._leave([bool(job.waiters) for job in self.jobs])
        events: list[Event] = []
        if self.jobs:
            events += self._advance()
        elif self._suspects:
            self._alone = True
            events += self._read(self._suspects.popleft())
        most = READ_TOKENS.get(self._decoder.device.type, READ_TOKENS_ELSEWHERE)
        for group in _groups(newcomers, self._decoder.shared_tokens, most):
            events += self._read(group)
        self._alone = self._alone and not self.idle
        return events

    def _leave(self, kept: list[bool]) -> None:
        places = close_gaps(kept)
        self.jobs = [self.jobs[place] for place in places]
        if not places:
            self._batch = None
        elif self._batch:
            try:
                self._batch.keep(places)
            except Exception:  # as in ``_join``
                self._scatter(self.jobs)

    def _advance(self) -> list[Event]:
        batch = self._batch
        assert batch is not None  # it is there as long as there are jobs
        try:
            batch.advance()
        except Exception as error:  # a model raises whatever it likes
            jobs, self.jobs, self._batch = self.jobs, [], None
            return self._blame(jobs, error)
        events = self._note(self.jobs, batch)
        over = {id(job) for job, _ in events}
        self._leave([id(job) not in over for job in self.jobs])
        return events

    def _read(self, jobs: list[Job]) -> list[Event]:
        """Start jobs; those that are not complete at once join the batch."""
        jobs = [job for job in jobs if job.waiters]
        if not jobs:
            return []
        try:
            started = self._decoder.start([[*job.prompt, *job.written] for job in jobs])
        except Exception as error:
            return self._blame(jobs, error)
        events = self._note(jobs, started)
        over = {id(job) for job, _ in events}
        places = close_gaps([id(job) not in over for job in jobs])
        if places:
            self._join(started, places, [jobs[place] for place in places])
        return events

    def _join(self, started: RunningBatch, places: list[int], jobs: list[Job]) -> None:
        try:
            started.keep(places)
            if self._batch:
                self._batch.join(started)
            else:
                self._batch = started
            self.jobs += jobs
        except Exception:  # above all that the memory runs out, which is no job's fault
            self._scatter([*self.jobs, *jobs])

    def _note(self, jobs: list[Job], batch: RunningBatch) -> list[Event]:
        """Add the newest tokens to their jobs and return the jobs that are over."""
        outcomes = [self._outcome(job, token) for job, token in zip(jobs, batch.newest.tolist(), strict=True)]
        return [(job, outcome) for job, outcome in zip(jobs, outcomes, strict=True) if outcome is not None]

    def _outcome(self, job: Job, token: int) -> Written | LLMUnavailable | None:
        if token == FAILED:
            return LLMUnavailable("the LLM computed no numbers for a prompt; use llm.dtype = 'float32', or another LLM")
        job.written.append(token)
        try:
            return self._judge(job)
        except Exception as error:  # whatever a tokenizer raises
            return LLMUnavailable(f"the LLM's tokenizer failed on what was written ({type(error).__name__})")

    def _blame(self, jobs: list[Job], error: Exception) -> list[Event]:
        """Find out which job a failure belongs to: the only one that was run, or set them apart to be run again."""
        if len(jobs) == 1 and not self.jobs:
            failure = LLMUnavailable(
                f"the LLM failed on a prompt by itself ({type(error).__name__}); if its memory ran out, name a smaller "
                "llm.model, or shorten the prompts",
                private=str(error),
            )
            return [(jobs[0], failure)]
        self._set_apart(jobs)
        return []

    def _scatter(self, jobs: list[Job]) -> None:
        """Drop the batch, of which nothing is known any more, and set its jobs apart."""
        self.jobs, self._batch = [], None
        self._set_apart(jobs)

    def _set_apart(self, jobs: list[Job]) -> None:
        groups = by_request(jobs)
        if len(groups) == 1 and len(jobs) > 1:
            groups = in_halves(jobs)
        self._suspects += groups


def _groups(jobs: list[Job], shared: int, most: int) -> list[list[Job]]:
    """Put jobs of similar length together, within so many tokens of what is not shared, padding included."""
    groups: list[list[Job]] = []
    for job in sorted(jobs, key=lambda job: -len(job.prompt)):
        longest = len(groups[-1][0].prompt) - shared if groups else 0
        if not groups or (len(groups[-1]) + 1) * longest > most:
            groups.append([])
        groups[-1].append(job)
    return groups
