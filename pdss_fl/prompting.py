"""The relay channel's part of a round: perturbed prompts come from the clients, and the LLM answers them together."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping

from flwr.app import Message

from pdss_fl.asking import ask
from pdss_fl.attendance import Attendance
from pdss_fl.errors import MessageError
from pdss_fl.journal import Journal
from pdss_fl.llm.protocol import RationaleGenerator
from pdss_fl.messages import GenerationSettings, PromptBatch, RationaleBatch
from pdss_fl.replies import Absence, prompt_payload
from pdss_fl.usage import Usage

logger = logging.getLogger("pdss_fl.strategy")

PERTURB = "query.perturb"
"""The message that asks a client for perturbed prompts."""


def read_prompts(
    requests: Iterable[Message],
    replies: Iterable[Message],
    server_round: int,
    max_prompts: int,
    attendance: Attendance,
    usage: Usage,
) -> dict[int, PromptBatch]:
    """Return the clients' prompts by node; whose are none, or too many, is left out.

    Raises
    ------
    QuorumLost
        If fewer clients than the quorum sent prompts.
    """
    batches: dict[int, PromptBatch] = {}
    for node, reply in attendance.answered(PERTURB, server_round, requests, replies).items():
        try:
            payload = prompt_payload(reply)
            batches[node] = PromptBatch.parse(payload, max_prompts)
            usage.prompt_bytes += len(payload)
        except MessageError as err:
            why = f"left out of round {server_round}: {err.public}"
            attendance.leave_out(PERTURB, server_round, Absence(node, why))
    attendance.check_quorum(PERTURB, len(batches))
    return batches


def write_rationales(
    generator: RationaleGenerator,
    batches: Mapping[int, PromptBatch],
    generation: GenerationSettings,
    journal: Journal | None,
    server_round: int,
    attendance: Attendance,
    usage: Usage,
) -> dict[int, RationaleBatch]:
    """Let the LLM answer the prompts of all clients together; leave out a client whose prompts it refuses.

    Raises
    ------
    QuorumLost
        If fewer clients than the quorum are left.
    """
    started = time.monotonic()
    logger.info("LLM: %d prompts of %d clients", sum(len(b.prompts) for b in batches.values()), len(batches))
    scope = f"{attendance.method}/{server_round}/"
    try:
        answers = ask(generator, batches, generation, journal, scope)
    except MessageError:
        answers = {}
        for node, batch in batches.items():
            try:
                answers |= ask(generator, {node: batch}, generation, journal, scope)
            except MessageError as err:
                why = f"left out: the LLM refuses its prompts: {err.public}"
                attendance.leave_out(PERTURB, server_round, Absence(node, why))
        attendance.check_quorum(PERTURB, len(answers))
    usage.prompts += sum(len(batch.rationales) for batch in answers.values())
    usage.tokens += sum(rationale.tokens for batch in answers.values() for rationale in batch.rationales)
    usage.add_seconds("llm", started)
    return answers
