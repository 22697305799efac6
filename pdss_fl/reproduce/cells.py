"""One cell of an experiment: one method on one client's data under one seed, through the same code as a run.

A cell runs the client of ``pdss_fl.client`` and the LLM in one process, without Flower: the prompts and the
rationales pass through the same messages, ledger and checks as in ``flwr run``.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from pdss_fl.client import DistillationClient
from pdss_fl.config import IDENTITY, RunSettings
from pdss_fl.data.everyday import private_examples
from pdss_fl.data_settings import BUILT_IN_DATA
from pdss_fl.llm.protocol import RationaleGenerator
from pdss_fl.llm_settings import LLMSettings
from pdss_fl.messages import Finish, GenerationSettings, PromptBatch, Rationale, RationaleBatch
from pdss_fl.policy import NodePolicy
from pdss_fl.reproduce.attack import release_facts
from pdss_fl.reproduce.few_shot import SHOTS, raw_questions, with_demonstrations
from pdss_fl.reproduce.quality import is_right, rationale_quality
from pdss_fl.server_app import load_generator
from pdss_fl.vocabularies import load_perturber

GIVEN = "given"
"""A method of experiments only: a student of the rationales that came with its data, without any LLM."""
FEW_SHOT = "few-shot"
"""The untrained small model with the client's first training examples in its prompt."""
FEW_SHOT_LLM = "few-shot-llm"
"""The LLM answers the held-out questions itself, unperturbed."""
ATTACK = "attack"
"""No method: what an attacker learns from what the settings' mechanism releases."""

_ONE_THREAD: Mapping[str, Any] = {"llm.dtype": "float32", "llm.batch-size": 128}
"""A cell has one thread, on which the LLM was faster so than in bfloat16 and small batches."""


@dataclass(frozen=True)
class Cell:
    """What to run: ``method`` for client ``partition`` of ``partitions`` with ``seed``.

    ``settings`` are run-config keys, and ``group`` says which row of the table the cell belongs to. Cells of
    equal seed and partition are paired: they hold the same labels, splits and initial weights.
    """

    group: str
    method: str
    seed: int
    partition: int = 0
    partitions: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Names the cell and everything that its result depends on, the code's own version apart."""
        content = [self.method, self.seed, self.partition, self.partitions, sorted(self.run_settings().flat().items())]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    @property
    def pair(self) -> tuple[int, int]:
        """What paired cells share."""
        return (self.seed, self.partition)

    def run_settings(self) -> RunSettings:
        """Return the cell's settings, with everything that is not named at its default."""
        return RunSettings.from_run_config({**_ONE_THREAD, **self.settings, "seed": self.seed})


def run_cell(cell: Cell) -> dict[str, Any]:
    """Run a cell; returns counts, the ``seconds`` that it took, and those of its processor (``cpu``).

    Of a method ``correct`` answers of ``total``; if it sent ``prompts``, also what ``rationale_quality`` counts.
    Of ``ATTACK`` what ``release_facts`` returns.
    """
    started, cpu = time.monotonic(), time.process_time()
    settings = cell.run_settings()
    directory = Path(tempfile.mkdtemp(prefix="pdss-cell-"))
    try:
        # An experiment's data is public, so that the bound without privacy may be measured on any of it.
        allowed = (settings.privacy.mechanism, IDENTITY)
        policy = replace(NodePolicy.simulation(directory, settings), allowed_mechanisms=allowed)
        client = DistillationClient(settings, policy, 0, cell.partition, cell.partitions)
        found = _outcome(cell.method, client)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    spent = {"seconds": time.monotonic() - started, "cpu": time.process_time() - cpu}
    return {**found, **{name: round(value, 1) for name, value in spent.items()}}


def _outcome(method: str, client: DistillationClient) -> dict[str, Any]:
    if method == ATTACK:
        return _attack(client)
    if method == FEW_SHOT_LLM:
        return _few_shot_llm(client)
    if method == FEW_SHOT:
        client.test_examples = with_demonstrations(client.test_examples, client.train_examples[:SHOTS])
    if method in ("untrained", FEW_SHOT):
        return {**_counts(client.evaluate("untrained")), "prompts": 0, "rationales": 0}
    return _trained(method, client)


def _trained(method: str, client: DistillationClient) -> dict[str, Any]:
    if method == "standalone":
        client.distill(method, 1, None)
        return {**_counts(client.evaluate(method)), "prompts": 0, "rationales": 0}
    name, settings = "dss" if method == GIVEN else method, client.settings
    payload = client.perturb(name, 1)
    answered = _given(client) if method == GIVEN else _ask(payload, settings.llm, settings.data.source)
    client.distill(name, 1, answered.serialize())
    counts = {"prompts": len(PromptBatch.parse(payload).prompts), **_counts(client.evaluate(name))}
    return {**counts, **rationale_quality(client.store.load_rationales(name), client.train_examples)}


def _counts(metrics: Mapping[str, int | float]) -> dict[str, int]:
    return {"correct": int(metrics["correct"]), "total": int(metrics["num-examples"])}


def _few_shot_llm(client: DistillationClient) -> dict[str, Any]:
    settings, asked = client.settings, client.test_examples
    answered = _ask(raw_questions(asked, settings).serialize(), settings.llm, settings.data.source)
    right = sum(is_right(rationale.text, e) for rationale, e in zip(answered.rationales, asked, strict=True))
    return {"correct": right, "total": len(asked), "prompts": 0, "rationales": 0}


def _attack(client: DistillationClient) -> dict[str, Any]:
    settings = client.settings
    own = [*client.train_examples, *client.test_examples]
    examples = private_examples() if settings.data.source == BUILT_IN_DATA else own
    return release_facts(load_perturber(settings, settings.privacy.mechanism), examples)


def _given(client: DistillationClient) -> RationaleBatch:
    """Return the data's own rationales in place of an LLM's."""
    own = {example.key: example.rationale or "" for example in client.train_examples}
    texts = [own[key] for key in client.store.load_asked("dss", 1)]
    return RationaleBatch(
        tuple(Rationale(i, text, Finish.STOP, 0) for i, text in enumerate(texts)), "given with the data"
    )


@lru_cache(maxsize=4)
def _ask(payload: bytes, llm: LLMSettings, source: str) -> RationaleBatch:
    """Return the LLM's answer; cells that sent the same prompts, as the ablation's do, share one."""
    generator = _loaded(llm, source)
    written = generator.generate(PromptBatch.parse(payload), GenerationSettings(max_new_tokens=llm.max_new_tokens))
    rationales = sorted(written, key=lambda rationale: rationale.ordinal)
    return RationaleBatch(tuple(rationales), generator.info.model)


@lru_cache(maxsize=1)
def _loaded(llm: LLMSettings, source: str) -> RationaleGenerator:
    return load_generator(llm, source)
