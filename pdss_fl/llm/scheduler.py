"""One loaded LLM for any number of callers: their prompts share one running batch.

A thread writes one token of every row at a time. Between two tokens, rows that are finished or no
longer wanted leave, and prompts that wait join, whoever sent them, in fair shares between tenants.
The thread runs only while there is something to write.
"""

from __future__ import annotations

import logging
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from traceback import format_tb

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pdss_fl import __version__
from pdss_fl.errors import Busy, LLMFailed, LLMUnavailable, SettingError
from pdss_fl.llm.adapter import apply_adapter
from pdss_fl.llm.admission import MAX_QUEUED, Waiting
from pdss_fl.llm.answers import Answers, key_of
from pdss_fl.llm.counters import Counters, SchedulerStats
from pdss_fl.llm.decode import Decoder
from pdss_fl.llm.instruction import Instruction
from pdss_fl.llm.jobs import Job, Request
from pdss_fl.llm.loading import load_causal_lm
from pdss_fl.llm.memory import Room, batch_tokens
from pdss_fl.llm.packed import pack
from pdss_fl.llm.protocol import never
from pdss_fl.llm.runner import Runner
from pdss_fl.llm.writing import Scribe, Written
from pdss_fl.llm_settings import LLMSettings
from pdss_fl.messages import GenerationSettings, PerturbedPrompt, PromptBatch, Rationale, ServerInfo

BATCH_SIZE = LLMSettings().batch_size
_STOPPING = "the LLM server is stopping; ask it again when it is back"

logger = logging.getLogger(__name__)


class Scheduler:
    """Writes rationales with a loaded causal LM; a ``RationaleGenerator`` for many threads at a time.

    Every token is the most probable one; penalties that a model's own generation settings may name
    are not applied. Equal prompts with equal settings of one tenant are written once.

    Parameters
    ----------
    model : PreTrainedModel
        In evaluation mode, on its device.
    tokenizer : PreTrainedTokenizerBase
        The model's own; it needs neither a padding token nor a chat template.
    name : str
        What clients are told; not a path.
    instruction : Instruction
        What precedes every prompt.
    batch_size : int (default: 128)
        Most prompts that are written at a time, at least 1.
    max_queued : int (default: 100,000)
        Most prompts that wait, of all callers together; see ``Waiting`` for what each tenant may hold of it.
    max_batch_tokens : int | None (default: None)
        Bound of rows x tokens of the batch (those of the shared beginning once); ``batch_tokens`` if not given.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        instruction: Instruction,
        batch_size: int = BATCH_SIZE,
        max_queued: int = MAX_QUEUED,
        max_batch_tokens: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise SettingError(f"llm.batch-size = {batch_size}; give at least 1")
        self._scribe = Scribe(model, tokenizer, instruction)
        self._plain = self._scribe.plain()
        self._decoder = Decoder(model, self._scribe.shared())
        self._runner = Runner(self._decoder, self._judge)
        self._info = ServerInfo(name, __version__, dtype=str(model.dtype).removeprefix("torch."))
        self._batch_size = batch_size
        self._max_tokens = batch_tokens(model) if max_batch_tokens is None else max_batch_tokens
        self._changed = threading.Condition()  # guards everything below; the runner is the thread's own
        self._waiting, self._answers, self._counters = Waiting(max_queued), Answers(), Counters()
        self._requests: set[Request] = set()
        self._thread: threading.Thread | None = None
        self._closed = False

    @classmethod
    def load(
        cls,
        model: str,
        *,
        instruction: Instruction,
        dtype: str = "auto",
        device: str = "auto",
        batch_size: int = BATCH_SIZE,
        adapter: str = "",
        max_queued: int = MAX_QUEUED,
    ) -> Scheduler:
        """Load a causal LM and return its scheduler.

        Parameters and errors as in ``load_causal_lm``, those of ``adapter`` as in ``apply_adapter``.
        """

        def build() -> Scheduler:
            loaded, tokenizer = load_causal_lm(model, dtype, device, batch_size)
            loaded = apply_adapter(loaded, adapter)
            pack(loaded)
            name = Path(model).resolve().name if Path(model).is_dir() else model
            return cls(
                loaded, tokenizer, name=name, instruction=instruction, batch_size=batch_size, max_queued=max_queued
            )

        # OpenMP keeps helpers for every thread that ever computed. Those of two threads are more than there are
        # cores, and it then puts them to sleep after every product, which costs speed. So this thread ends.
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(build).result()

    @property
    def info(self) -> ServerInfo:
        """Name, number format and limits of the loaded LLM."""
        return self._info

    def generate(
        self,
        batch: PromptBatch,
        settings: GenerationSettings,
        is_cancelled: Callable[[], bool] = never,
        tenant: str = "",
    ) -> Iterator[Rationale]:
        """Yield one rationale a prompt, each as soon as it is finished; see ``RationaleGenerator.generate``.

        ``settings.max_new_tokens`` is capped by ``info.max_new_tokens``, a rationale by
        ``MAX_RATIONALE_CHARS``. Prompts wait from the first ``next`` on; closing the iterator frees their
        places. ``is_cancelled`` is asked by the scheduler's thread, too, at every token, and while the prompts
        are turned into tokens, which takes seconds for thousands of them. A prompt on which the
        LLM fails gets an empty rationale of no tokens (``Finish.LENGTH``); the log counts them.

        Raises
        ------
        MessageError
            If a prompt and its new tokens do not fit the LLM's context, or its tokenizer fails on a prompt;
            before anything is written.
        Busy
            If too many prompts wait; at the first ``next``.
        LLMFailed
            If the model fails on every prompt, or on the first ``GIVE_UP`` of them, and on a plain one of its own.
        LLMUnavailable
            If the scheduler is closed.
        """
        limit = min(settings.max_new_tokens, self.info.max_new_tokens)
        prompts = self._scribe.read(batch.prompts, limit, is_cancelled)
        if len(prompts) < len(batch.prompts):
            return iter(())  # nobody waits for them any more
        return self._stream(Request(tenant, is_cancelled, len(prompts)), prompts, limit, settings.stop)

    def count_tokens(self, prompts: Sequence[PerturbedPrompt]) -> list[int]:
        """Return how many tokens each prompt has by itself, without the instruction."""
        return self._scribe.count(prompts)

    def stats(self) -> SchedulerStats:
        """Return what was counted so far."""
        with self._changed:
            return self._counters.snapshot(len(self._waiting), len(self._runner.jobs))

    def close(self, drain_seconds: float = 0.0) -> None:
        """Accept nothing new, give requests under way ``drain_seconds``, then end them with ``LLMUnavailable``."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._requests, timeout=drain_seconds)
            for request in list(self._requests):
                self._end(request, LLMUnavailable(_STOPPING))
            thread = self._thread
        if thread:
            thread.join()

    def _stream(
        self, request: Request, prompts: list[array[int]], limit: int, stops: tuple[str, ...]
    ) -> Iterator[Rationale]:
        self._submit(request, prompts, limit, stops)
        try:
            while (answer := request.answers.get()) is not None and not request.is_cancelled():
                if isinstance(answer, Exception):
                    raise answer
                yield answer
        finally:
            with self._changed:
                self._end(request)

    def _submit(self, request: Request, prompts: list[array[int]], limit: int, stops: tuple[str, ...]) -> None:
        """Let the prompts of a request wait, but for those whose answers are there or under way."""
        keys = [key_of(request.tenant, prompt, limit, stops) for prompt in prompts]
        with self._changed:
            if self._closed:
                raise LLMUnavailable(_STOPPING)
            found, jobs = self._answers, {}
            for key, prompt in zip(keys, prompts, strict=True):
                if key not in found.under_way and not found.find(key):
                    jobs[key] = Job(key, request.tenant, prompt, limit, stops, time.monotonic(), [])
            try:
                self._waiting.add(request.tenant, list(jobs.values()))
            except Busy:
                self._counters.rejected += len(prompts)
                raise
            self._counters.cache_hits += len(prompts) - len(jobs)
            found.under_way |= jobs
            self._requests.add(request)
            for ordinal, key in enumerate(keys):
                if job := found.under_way.get(key):
                    job.waiters.append((request, ordinal))
                    request.jobs.append(job)
                elif written := found.find(key):
                    self._answer(request, ordinal, written)
            if not self._thread and self._waiting:
                self._thread = threading.Thread(target=self._run, name="llm", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        """Write until there is nothing left to write."""
        try:
            while self._turn():
                pass
        except Exception as error:  # a defect of this loop must not leave callers waiting for ever
            with self._changed:
                self._runner.abandon()
                self._thread = None
                for request in list(self._requests):
                    self._end(request, LLMFailed(f"the scheduler failed ({type(error).__name__})", str(error)))
            # Its text can quote a prompt; the lines of code that it went through cannot.
            logger.error(
                "the scheduler failed with %s\n%s", type(error).__name__, "".join(format_tb(error.__traceback__))
            )

    def _turn(self) -> bool:
        """Write one token of everything; say whether there was anything to write."""
        unwanted = [request for request in list(self._requests) if request.is_unwanted()]
        with self._changed:
            for request in unwanted:
                self._end(request)
            newcomers = self._admit()
            if self._runner.idle and not newcomers:
                self._thread = None
                return False
        started = time.monotonic()
        events = self._runner.turn(newcomers)
        now = time.monotonic()
        with self._changed:
            for job in newcomers:
                self._counters.first_token(now - job.submitted)
            self._counters.step(len(self._runner.jobs) + len(events), started)
            for job, outcome in events:
                self._settle(job, outcome)
        return True

    def _admit(self) -> list[Job]:
        """Take waiting jobs, a few at a time: reading one prompt takes nearly as long as reading eight."""
        if not self._runner.is_open:
            return []
        running = self._runner.jobs
        free = self._batch_size - len(running)
        if running and free < min(len(self._waiting), max(self._batch_size // 8, 1)):
            return []
        room = Room(self._batch_size, self._max_tokens, self._decoder.shared_tokens, [job.tokens for job in running])
        return self._waiting.take(lambda job: room.take(job.tokens))

    def _judge(self, job: Job) -> Written | None:
        return self._scribe.verdict(job.written, job.limit, job.stops)

    def _settle(self, job: Job, outcome: Written | LLMUnavailable) -> None:
        """Give the outcome of a job to all who wait for it."""
        self._take_off(job)
        waiters, job.waiters = job.waiters, []
        if isinstance(outcome, Written):
            self._answers.keep(job.key, outcome)
        for request, ordinal in waiters:
            self._answer(request, ordinal, outcome)

    def _take_off(self, job: Job) -> None:
        """Note that no more is written of a job; its tenant is charged for what was, once."""
        self._answers.forget(job)
        if job.charged:
            job.charged = False
            self._waiting.refund(job)
            self._counters.served(job.tenant, len(job.written))

    def _answer(self, request: Request, ordinal: int, outcome: Written | LLMUnavailable) -> None:
        if request.over:
            return
        if isinstance(outcome, Written):
            request.answer(ordinal, outcome)
            self._counters.prompts += 1
        else:
            request.lose(ordinal, outcome.public)
            if request.is_lost and self._runner.works(self._plain):
                request.go_on()
            if request.is_lost:
                text = f"the LLM failed on {len(request.failed)} prompts and wrote none: {outcome.public}"
                self._end(request, LLMFailed(text, outcome.private))
        if not request.missing and not request.over:
            request.warn()
            self._end(request)

    def _end(self, request: Request, error: LLMUnavailable | None = None) -> None:
        """Tell a request that it is over, and drop the jobs that no other request waits for."""
        if request.over:
            return
        request.over = True
        request.answers.put(error)
        self._requests.discard(request)
        for job in request.jobs:
            job.waiters = [waiter for waiter in job.waiters if waiter[0] is not request]
            if not job.waiters:
                self._waiting.discard(job)
                self._take_off(job)
        request.jobs.clear()
        self._changed.notify_all()
