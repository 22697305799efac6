"""From public examples to a trained encoder-decoder with its card: prepare pairs, train, write."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeRemainingColumn

from pdss_fl.bundled import BUNDLED_MODEL, bundled_model_path
from pdss_fl.client_data import node_format
from pdss_fl.config import SCRATCH, RunSettings
from pdss_fl.data.example import Example
from pdss_fl.data.public import BUILT_IN, PublicExample, public_built_in, public_from_path
from pdss_fl.data.sources import whole_data
from pdss_fl.data_settings import BUILT_IN_DATA
from pdss_fl.encoder_decoder.card import describe, write_card
from pdss_fl.encoder_decoder.lessons import PairSettings, lessons_of, prepare
from pdss_fl.errors import DataError, SettingError
from pdss_fl.llm.protocol import RationaleGenerator
from pdss_fl.policy import NodePolicy
from pdss_fl.run_checks import check_names
from pdss_fl.run_config import read_overrides
from pdss_fl.server_app import load_generator
from pdss_fl.slm.encoder_decoder import TEMPLATE_WORDS
from pdss_fl.slm.encoder_decoder_training import (
    EncoderDecoderTraining,
    Quadruple,
    start_from_embeddings,
    train_encoder_decoder,
)
from pdss_fl.slm.model import SlmSettings, SmallModel, create_slm
from pdss_fl.vocabularies import load_vocabulary

_CHECKPOINT, _ANSWERS = "checkpoint.pt", "rationales.jsonl"
_UNREADABLE = (
    "--policy names a node whose data cannot be read as its data-format and data-fields say, so nothing tells whether "
    "--public holds some of it"
)


@dataclass(frozen=True)
class Plan:
    """Everything that the trained model depends on, beside the public examples."""

    slm: SlmSettings
    training: EncoderDecoderTraining
    pairs: PairSettings
    settings: RunSettings


def make_encoder_decoder(
    public: Sequence[PublicExample],
    plan: Plan,
    generator: RationaleGenerator,
    output: Path,
    resume: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Prepare, train, save; returns the manifest.

    What a killed call had done lies in ``output`` with ``.work`` at its end and is taken up by the next one with the
    same plan; when all is done, the answers of the LLM stay there, for another plan.

    Raises
    ------
    TypeError
        If an example is not a ``PublicExample``.
    """
    work = output.with_name(output.name + ".work")
    if not resume:
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    shown = progress or Progress(disable=True)
    preparing, training = shown.add_task("rationales"), shown.add_task("training", total=plan.training.steps)
    quadruples, groups = prepare(
        public, plan.pairs, plan.settings, generator, work / _ANSWERS,
        lambda done, total: shown.update(preparing, completed=done, total=total),
    )  # fmt: skip
    privacy = plan.settings.privacy
    vocabulary = load_vocabulary(privacy.vocabulary, privacy.vocabulary_size, privacy.embeddings)
    slm = create_slm(plan.slm, [TEMPLATE_WORDS, " ".join(vocabulary.tokens), *_texts(quadruples)])
    if plan.slm.model == SCRATCH:
        words = vocabulary.tokens[: vocabulary.words]
        start_from_embeddings(slm, words, torch.from_numpy(vocabulary.directions[: len(words)]))
    plan_key = hashlib.sha256(repr((plan, describe(public), quadruples)).encode()).hexdigest()
    encoder, decoder = train_encoder_decoder(
        slm, quadruples, lessons_of(groups, vocabulary.tokens, plan.pairs), plan.training,
        work / f"{plan_key[:12]}-{_CHECKPOINT}",
        lambda step, e, d: shown.update(
            training, completed=step, description=f"training: encoder {e:.3f}, decoder {d:.3f}"
        ),
    )  # fmt: skip
    output.mkdir(parents=True, exist_ok=True)
    _half_precision(slm, plan).save(output)
    manifest = describe(
        public, quadruples=len(quadruples), model=Path(plan.slm.model).name, llm=generator.info.model,
        **{"vocabulary-sha256": vocabulary.sha256, "groups": len(groups.members), "pairs": asdict(plan.pairs)},
        training=asdict(plan.training), losses={"encoder": round(encoder, 4), "decoder": round(decoder, 4)},
    )  # fmt: skip
    write_card(output, manifest)
    for checkpoint in work.glob(f"*{_CHECKPOINT}"):
        checkpoint.unlink()
    return manifest


def train_as_asked(
    output: Path, model: str, public: str, policy: list[Path] | None, no_node: bool, run_config: list[str] | None,
    mechanism: str, epsilon: float, copies: int, steps: int, batch_size: int, learning_rate: float,
    encoder_weight: float, hidden_size: int, layers: int, max_tokens: int, seed: int, resume: bool,
) -> None:  # fmt: skip
    """Do what the command's options ask for, with progress on standard error, and print the manifest."""
    logging.getLogger("pdss_fl").setLevel(logging.WARNING)
    examples = public_data(public, policy or [], no_node)
    given = read_overrides(run_config or [])
    check_names(given, RunSettings().flat())
    built_in = public == BUILT_IN
    settings = RunSettings.from_run_config({"llm.dtype": "float32", **given})
    name = str(bundled_model_path()) if model == BUNDLED_MODEL else model
    plan = Plan(
        SlmSettings(name, hidden_size, layers, seed, max_tokens),
        EncoderDecoderTraining(steps, batch_size, learning_rate, encoder_weight, seed),
        replace(PairSettings(), mechanism=mechanism, epsilon=epsilon, copies=copies, seed=seed),
        settings,
    )
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:-1], TextColumn("{task.completed:.0f} of {task.total:.0f}"))
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        generator = load_generator(settings.llm, BUILT_IN_DATA if built_in else "jsonl")
        manifest = make_encoder_decoder(examples, plan, generator, output, resume, progress)
    typer.echo(json.dumps(manifest, indent=2))


def public_data(public: str, policies: Sequence[Path], no_node: bool) -> tuple[PublicExample, ...]:
    """Return what is declared public, held against what the nodes of this machine hold.

    Raises
    ------
    SettingError
        If it is neither the built-in split nor checked against a node's policy, and nobody said that there is no node;
        or if a node's data cannot be read, since nothing then tells whether some of it is among what is declared.
    DataError
        As ``public_from_path``.
    """
    if public == BUILT_IN:
        return public_built_in()
    if not policies and not no_node:
        raise SettingError(
            "--public names data of your own: give --policy FILE of each node whose data lies on this machine, so "
            "that none of it is trained on, or --no-node if there is none"
        )
    nodes = [NodePolicy.from_node_config({"policy": str(path)}) for path in policies]
    private = [path for node in nodes for path in (node.data_path, node.state_dir) if path is not None]
    return public_from_path(Path(public), private, [example for node in nodes for example in _held(node)])


def _held(node: NodePolicy) -> list[Example]:
    """Return all that a node holds, read as its own policy says that it is written."""
    try:
        files = whole_data(node.data_path, node_format(node)) if node.data_path is not None else {}
    except (DataError, SettingError) as err:
        raise SettingError(f"{_UNREADABLE}: {err.public}", err.private) from None
    if not files:
        raise SettingError(f"{_UNREADABLE}: there is no file of that form", str(node.data_path))
    return [example for examples in files.values() for example in examples]


def _texts(quadruples: Sequence[Quadruple]) -> list[str]:
    return [
        " ".join((q.public.example.question, *q.public.example.choices, q.rationale, q.perturbed_rationale))
        for q in quadruples
    ]


def _half_precision(slm: SmallModel, plan: Plan) -> SmallModel:
    """Return a from-scratch model in bfloat16, half the size; a pretrained one stays as it is."""
    if plan.slm.model == SCRATCH:
        slm.model.to(torch.bfloat16)  # type: ignore[arg-type]
    return slm
