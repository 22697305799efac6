"""What gRPC, and making bytes of Flower's messages, add to the time that the LLM takes for 256 prompts. Prints shares.

Run from the repository's root: ``python tests/benchmarks/bench_transport.py [--quick] [--check]``. The same prompts are
answered in process, through a server on loopback, and through the strategy and a ClientApp whose messages
become bytes and come back as Flower's own do; the three take turns in every round. Since a difference of two
times of the LLM is mostly noise on a busy machine, the ways are then measured once more with the recorded
answers in the LLM's place: what is left is transport. With ``--check`` the program ends with 1 if either share, or
both together, are 5 % of the LLM's time or more.

The row "Flower, serialising only" has no way from one process to another in it; ``bench_flower.py`` measures that in a
real deployment, where most of it is the start of a process for every message.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.supercore.task_identity import TaskIdentity
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parents[2]))

from pdss_fl.llm.protocol import RationaleGenerator, never
from pdss_fl.llm.remote import RemoteGenerator
from pdss_fl.llm.scheduler import Scheduler
from pdss_fl.llm.service import serve
from pdss_fl.messages import GenerationSettings, PromptBatch, Rationale, RationaleBatch
from pdss_fl.strategy import StepByStepDistillation
from tests.benchmarks.bars import Bars
from tests.benchmarks.peers import PROMPTS, QUICK, SETTINGS, THREE_SHOTS, batch_of
from tests.harness import LoopbackGrid, context

ROUNDS = 1 if QUICK else 3
CLIENTS = 2
GRPC, FLOWER = "gRPC", "Flower, serialising only"
BATCH = batch_of(PROMPTS[:32] if QUICK else PROMPTS)
EACH = len(BATCH.prompts) // CLIENTS


class Recorded:
    """Answers at once what an LLM took its time for."""

    def __init__(self, other: RationaleGenerator, answers: list[Rationale]) -> None:
        self.info, self.answers = other.info, {a.ordinal: a for a in answers}

    def generate(
        self,
        batch: PromptBatch,
        settings: GenerationSettings,
        is_cancelled: Callable[[], bool] = never,
        tenant: str = "",
    ) -> Iterator[Rationale]:
        """Yield the recorded rationale of each prompt, by ordinal."""
        yield from (self.answers[prompt.ordinal] for prompt in batch.prompts)


class BytesGrid(LoopbackGrid):
    """Takes every message through the bytes that a SuperLink would see."""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Deliver copies that went through bytes, and return such replies."""
        sent = list(messages)
        replies = super().send_and_receive(map(_through_bytes, sent), timeout=timeout)
        for message, request in zip(sent, self.requests[-len(sent) :], strict=True):
            message.metadata.__dict__["_message_id"] = request.metadata.message_id
        return [_through_bytes(reply) for reply in replies]


def _through_bytes(message: Message) -> Message:
    wire = message_to_proto(message).SerializeToString()
    return message_from_proto(type(message_to_proto(message)).FromString(wire))


def client_app() -> ClientApp:
    """Return a client that has its prompts at hand and reads its rationales, and does nothing else."""
    app = ClientApp()

    @app.query("perturb")
    def perturb(msg: Message, own: Context) -> Message:
        start = EACH * (own.node_id - 1)
        prompts = tuple(replace(p, ordinal=i) for i, p in enumerate(BATCH.prompts[start : start + EACH]))
        payload = PromptBatch(prompts, BATCH.privacy).serialize()
        return Message(RecordDict({"prompts": ConfigRecord({"payload": payload})}), reply_to=msg)

    @app.train("distill")
    def distill(msg: Message, own: Context) -> Message:
        RationaleBatch.parse(msg.content["rationales"]["payload"], EACH)
        return Message(RecordDict(), reply_to=msg)

    return app


def over_grpc(generator: RationaleGenerator, tenants: Iterator[str]) -> Callable[[], int]:
    """Return a way to ask through a server on loopback, a new connection each time."""
    server = serve(Tenanted(generator, tenants), port=0)

    def write() -> int:
        remote = RemoteGenerator(server.address, 3600.0)
        try:
            return sum(r.tokens for r in remote.generate(BATCH, SETTINGS))
        finally:
            remote.close()

    return write


def over_flower(generator: RationaleGenerator, tenants: Iterator[str]) -> Callable[[], int]:
    """Return a way to ask through a strategy and the messages of a round."""
    grid = BytesGrid(client_app(), {i: context(i, {}, {}) for i in range(1, CLIENTS + 1)})

    def write() -> int:
        strategy = StepByStepDistillation(Tenanted(generator, tenants), quorum=CLIENTS, generation=SETTINGS)
        requests = list(strategy.configure_train(1, ArrayRecord(), ConfigRecord(), grid))
        assert not any(reply.has_error() for reply in grid.send_and_receive(requests))
        return strategy.usage.tokens

    return write


class Tenanted:
    """Asks as a new tenant each time, so that no answer is found again."""

    def __init__(self, other: RationaleGenerator, tenants: Iterator[str]) -> None:
        self.other, self.tenants, self.info = other, tenants, other.info

    def generate(
        self,
        batch: PromptBatch,
        settings: GenerationSettings,
        is_cancelled: Callable[[], bool] = never,
        tenant: str = "",
    ) -> Iterator[Rationale]:
        """Yield what the other says."""
        return self.other.generate(batch, settings, is_cancelled, next(self.tenants))


def seconds_of(ways: dict[str, Callable[[], int]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each way; they take turns in every round."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, write in ways.items():
            started = time.perf_counter()
            write()
            found[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in found.items()}


def ways_to(generator: RationaleGenerator) -> dict[str, Callable[[], int]]:
    """Return the three ways to ask a generator for all prompts."""
    tenants = map(str, range(1_000_000))
    own = Tenanted(generator, tenants)
    return {
        "in process": lambda: sum(r.tokens for r in own.generate(BATCH, SETTINGS)),
        GRPC: over_grpc(generator, tenants),
        FLOWER: over_flower(generator, tenants),
    }


def main() -> None:
    """Print the time of the LLM, and what each way adds as a share of it."""
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1  # what messages are made with
    llm = Scheduler.load("smollm2-135m-instruct", instruction=THREE_SHOTS)
    answers = list(llm.generate(BATCH, SETTINGS, tenant="recorded"))
    whole = seconds_of(ways_to(llm), ROUNDS)
    base = whole["in process"]
    print(f"{len(BATCH.prompts)} prompts, {llm.info.dtype}: {base:.2f} s in process, median of {ROUNDS}")
    for name in (GRPC, FLOWER):
        print(f"{name}, with the LLM: {whole[name] / base:.3f} of the time in process")
    alone = seconds_of(ways_to(Recorded(llm, answers)), 20)
    bars, shares = Bars(), {}
    for name in (GRPC, FLOWER):
        extra = alone[name] - alone["in process"]
        shares[name] = extra / base
        print(f"{name}, with recorded answers: {1000 * extra:.1f} ms more, {shares[name]:.2%} of the LLM's time")
        bars.at_most(f"{name}, share of the LLM's time", shares[name], 0.05)
    bars.at_most("gRPC and Flower's serialising together, share of the LLM's time", sum(shares.values()), 0.05)
    bars.verdict()


if __name__ == "__main__":
    main()
