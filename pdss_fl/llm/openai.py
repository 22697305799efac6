"""Rationales from any OpenAI-compatible endpoint: vLLM, llama.cpp's server, TGI, or a service on the network.

One prompt is one request, many at a time; replicas behind a balancer look like one endpoint.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from queue import Empty, SimpleQueue

import httpx

from pdss_fl import __version__
from pdss_fl.errors import LLMUnavailable
from pdss_fl.llm.answers import Recent
from pdss_fl.llm.budget import Budget, BudgetSpent, Tokens
from pdss_fl.llm.endpoint import BadStatus, Endpoint, patiently
from pdss_fl.llm.instruction import EVERYDAY, Instruction, load_instruction
from pdss_fl.llm.openai_wire import CHAT, PATHS, explain, read_rationale, read_usage, request_body
from pdss_fl.llm.protocol import never
from pdss_fl.llm_settings import LLMSettings
from pdss_fl.messages import Finish, GenerationSettings, PromptBatch, Rationale, ServerInfo

MAX_REMEMBERED = 50_000
"""Answers that are kept, so that what was paid for is not asked again in a later round or after a failure."""
POLL_SECONDS = 0.1
CHECK_SECONDS = 20.0

logger = logging.getLogger("pdss_fl.llm")


def load_openai_generator(llm: LLMSettings) -> OpenAIGenerator:
    """Return the generator that a run's settings name, once its endpoint has answered.

    Raises
    ------
    SettingError
        See ``Endpoint`` and ``load_instruction``.
    LLMUnavailable
        See ``OpenAIGenerator.check``.
    """
    instruction = load_instruction(llm.instruction) if llm.instruction else EVERYDAY
    generator = OpenAIGenerator(
        Endpoint(llm.base_url, llm.concurrency, llm.insecure),
        model=llm.model,
        instruction=instruction,
        form=llm.endpoint_form,
        concurrency=llm.concurrency,
        timeout=llm.timeout,
        budget=Budget(llm.max_run_tokens, llm.max_run_cost, llm.input_price, llm.output_price),
    )
    try:
        generator.check()
    except LLMUnavailable:
        generator.close()
        raise
    return generator


class OpenAIGenerator:
    """Asks an OpenAI-compatible endpoint for rationales; a ``RationaleGenerator``.

    Parameters
    ----------
    endpoint : Endpoint
        Where to ask; used, and closed, by this generator only.
    model : str
        The model's name there.
    instruction : Instruction (default: EVERYDAY)
        What precedes every prompt.
    form : str (default: "chat")
        ``chat`` sends turns of a conversation, ``completion`` a plain text to go on with.
    concurrency : int (default: 16)
        Most requests under way.
    timeout : float (default: 1800.0)
        Seconds that one batch may take.
    budget : Budget | None (default: None)
        What may be spent; no limit if not given.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        model: str,
        instruction: Instruction = EVERYDAY,
        form: str = CHAT,
        concurrency: int = 16,
        timeout: float = LLMSettings().timeout,
        budget: Budget | None = None,
    ) -> None:
        self._endpoint, self._model, self._instruction, self._form = endpoint, model, instruction, form
        self._concurrency, self._timeout, self._budget = concurrency, timeout, budget or Budget()
        self._places = asyncio.Semaphore(concurrency)
        self._remembered: Recent[Rationale] = Recent(MAX_REMEMBERED)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="llm-endpoint", daemon=True)
        self._thread.start()

    @property
    def info(self) -> ServerInfo:
        """The model's name; the endpoint's own limits show only when a request exceeds them."""
        return ServerInfo(self._model, __version__, dtype="")

    def check(self) -> None:
        """Ask for the list of models, which costs nothing, to find a wrong address or key before any work.

        Raises
        ------
        LLMUnavailable
            If the endpoint cannot be reached, refuses the key, or is something else.
        """
        try:
            asking = self._endpoint.exchange("GET", "models", seconds=CHECK_SECONDS)
            asyncio.run_coroutine_threadsafe(asking, self._loop).result()
        except httpx.TransportError as error:
            raise explain(error, self._endpoint.has_key) from None
        except BadStatus as answer:
            if answer.status in (401, 403):  # else it has no such list, or is not ready yet
                raise explain(answer, self._endpoint.has_key) from None

    def generate(
        self,
        batch: PromptBatch,
        settings: GenerationSettings,
        is_cancelled: Callable[[], bool] = never,
        tenant: str = "",
    ) -> Iterator[Rationale]:
        """Yield one rationale a prompt, each as soon as it has come; see ``RationaleGenerator.generate``.

        A prompt that this generator has answered for the same tenant before, also in a batch that failed
        later, is answered from memory. ``tokens`` is ``max_new_tokens`` where the endpoint names no number.

        Raises
        ------
        MessageError
            If the endpoint refuses a prompt, for example because it is too long.
        LLMUnavailable
            If the endpoint cannot be reached, refuses the key, gives up, takes longer than the timeout or
            answers nonsense; requests under way are cut off.
        BudgetSpent
            If the budget ends before the first answer. Where it ends later, what was paid for is kept: a warning
            names the setting, and each prompt without an answer gets an empty rationale.
        """
        settings = replace(settings, max_new_tokens=min(settings.max_new_tokens, self.info.max_new_tokens))
        wanted: dict[bytes, list[int]] = {}
        for prompt in batch.prompts:
            body = request_body(self._model, self._instruction, self._form, prompt, settings)
            wanted.setdefault(body, []).append(prompt.ordinal)
        left = dict(wanted)
        try:
            for body, rationale in self._receive(wanted, settings, is_cancelled, tenant):
                for ordinal in left.pop(body):
                    yield replace(rationale, ordinal=ordinal)
        except BudgetSpent as spent:
            unanswered = [ordinal for ordinals in left.values() for ordinal in ordinals]
            if len(unanswered) == len(batch.prompts):
                raise  # there is nothing to go on with
            logger.warning(
                "%s. %d of %d prompts were answered before; the others get an empty rationale",
                spent.public, len(batch.prompts) - len(unanswered), len(batch.prompts),
            )  # fmt: skip
            yield from (Rationale(ordinal, "", Finish.LENGTH, 0) for ordinal in unanswered)

    def close(self) -> None:
        """Cut off requests under way and close the connections; a second call does nothing."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _receive(
        self,
        wanted: Mapping[bytes, list[int]],
        settings: GenerationSettings,
        is_cancelled: Callable[[], bool],
        tenant: str,
    ) -> Iterator[tuple[bytes, Rationale]]:
        """Yield answers as the event loop's thread brings them; leaving early cuts off what is under way."""
        answers: SimpleQueue[tuple[bytes, Rationale] | None] = SimpleQueue()
        asking = asyncio.run_coroutine_threadsafe(self._ask_all(wanted, settings, tenant, answers.put), self._loop)
        asking.add_done_callback(lambda _: answers.put(None))
        try:
            while not is_cancelled():
                try:
                    answer = answers.get(timeout=POLL_SECONDS)
                except Empty:
                    continue
                if answer is not None:
                    yield answer
                elif asking.cancelled():
                    raise LLMUnavailable("the LLM endpoint was closed while it was asked; start the run again")
                else:
                    return asking.result()
        finally:
            asking.cancel()

    async def _ask_all(
        self,
        wanted: Mapping[bytes, list[int]],
        settings: GenerationSettings,
        tenant: str,
        put: Callable[[tuple[bytes, Rationale]], None],
    ) -> None:
        waiting = iter(wanted)

        async def work() -> None:
            for body in waiting:
                put((body, await self._ask(body, settings, tenant)))

        try:
            async with asyncio.timeout(self._timeout), asyncio.TaskGroup() as group:
                for _ in range(min(self._concurrency, len(wanted))):
                    group.create_task(work())
        except TimeoutError:
            raise LLMUnavailable(
                f"the LLM endpoint did not answer {len(wanted)} prompts within llm.timeout = {self._timeout:g} s; "
                "raise it, or llm.concurrency if the endpoint has room"
            ) from None
        except BaseExceptionGroup as failures:
            raise explain(failures.exceptions[0], self._endpoint.has_key) from None
        finally:
            logger.info("LLM endpoint, so far: %s", self._budget)

    async def _ask(self, body: bytes, settings: GenerationSettings, tenant: str) -> Rationale:
        # By tenant, since a hit can be timed and would tell one what another asked.
        key = hashlib.sha256(b"\0".join((tenant.encode(), repr(settings.stop).encode(), body))).digest()
        if remembered := self._remembered.find(key):
            return remembered
        async with self._places:
            rationale: Rationale = await patiently(self._timeout)(self._attempt, body, settings)
        self._remembered.keep(key, rationale)
        return rationale

    async def _attempt(self, body: bytes, settings: GenerationSettings) -> Rationale:
        """Send one request; one that may have been billed though no answer came is counted with the most."""
        # A text has no more tokens than bytes; the names in the JSON stand for what a chat template adds.
        most = used = Tokens(len(body), settings.max_new_tokens)
        await self._budget.reserve(most)
        try:
            answer = await self._endpoint.exchange("POST", PATHS[self._form], body)
            used = read_usage(answer, most)
            return read_rationale(answer, self._form, settings, used.written)
        except (BadStatus, httpx.ConnectError, httpx.ConnectTimeout):
            used = Tokens()
            raise
        finally:
            self._budget.settle(most, used)

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._endpoint.aclose()
