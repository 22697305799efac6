"""The audit as a whole: which mechanisms, with what, in which order, and what is printed of it."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from pdss_fl.audit_report.material import Encoded, Material, encode, load_material
from pdss_fl.audit_report.measure import CLOSE, Measured, Models, measure
from pdss_fl.audit_report.page import Facts, cap, render_page
from pdss_fl.bundled import BUNDLED_MODEL, bundled_model_path
from pdss_fl.config import RunSettings
from pdss_fl.pages import percent
from pdss_fl.release import Perturber
from pdss_fl.report import epsilon_text
from pdss_fl.slm.attackers import completer, masked_scores, sequence_score
from pdss_fl.vocabularies import load_perturber

COMPARED = (
    "randomized-response", "exponential", "blocks", "adaptive-staircase", "santext", "custext", "rantext",
    "rantext-fate", "identity",
)  # fmt: skip
"""What the run's own mechanism is compared with where none is named."""

STEPS = (0.0, -3.0, 3.0)
"""What is added to the run's epsilon where none is given; the first one counts."""

_WRITTEN_TOKENS = 12  # of a reconstruction: it repeats a few words
_CONFIDENCE = 0.99  # of the whole audit
_INTERVALS = 30  # that one mechanism has at most: its attacks, exact and by stem


@dataclass(frozen=True)
class Plan:
    """What to audit.

    Parameters
    ----------
    mechanisms : tuple[str, ...]
        The first one is drawn attack by attack.
    epsilons : tuple[float, ...]
        Each mechanism is audited at each of them; language models attack at the first only.
    attacked : tuple[str, ...]
        The mechanisms that language models attack.
    data : Path | None
        A user's file; ``None`` for the built-in questions.
    documents : int
        Texts at most.
    language_words : int
        Words that language models attack, in texts; 0 leaves these attacks out.
    language_model, masked_model : str
        Id or folder; an empty ``masked_model`` leaves its attack out.
    seed : int
        Of noise, draws and ties.
    """

    mechanisms: tuple[str, ...]
    epsilons: tuple[float, ...]
    attacked: tuple[str, ...]
    data: Path | None
    documents: int
    language_words: int
    language_model: str
    masked_model: str
    seed: int


def run_audit(settings: RunSettings, plan: Plan, output: Path, command: str, console: Console) -> bool:
    """Audit, print, write the page, and return whether nothing failed."""
    start = time.monotonic()
    jobs = [(name, epsilon) for name in plan.mechanisms for epsilon in plan.epsilons]
    material = load_material(plan.data, plan.documents, plan.seed)
    first = _perturber(settings, *jobs[0])
    texts = encode(material, first)
    rows: list[Measured] = []
    with _progress() as progress:
        task = progress.add_task("language models", total=len(jobs))
        models = _models(plan, first) if plan.language_words else None
        for name, epsilon in jobs:
            progress.update(task, description=f"{name} at epsilon {epsilon:g}")
            perturber = _perturber(settings, name, epsilon)
            if not _seen_before(rows, perturber):
                with_models = models if name in plan.attacked and epsilon == plan.epsilons[0] else None
                rows.append(_measured(perturber, epsilon, texts, material, with_models, len(jobs), plan.seed))
            progress.advance(task)
    output.write_text(render_page(rows, _facts(first, material, plan, command)), encoding="utf-8")
    _print(rows, console)
    console.print(f"{time.monotonic() - start:.0f} s; page: {output}", highlight=False, markup=False, soft_wrap=True)
    return not any(row.failures for row in rows)


def _measured(
    perturber: Perturber,
    epsilon: float,
    texts: Encoded,
    material: Material,
    models: Models | None,
    jobs: int,
    seed: int,
) -> Measured:
    confidence = 1 - (1 - _CONFIDENCE) / (jobs * _INTERVALS)
    return measure(perturber, epsilon, texts, material.private, models, confidence, seed)


def _perturber(settings: RunSettings, name: str, epsilon: float) -> Perturber:
    own = settings.privacy.parameters if name == settings.privacy.mechanism else ""
    privacy = replace(settings.privacy, mechanism=name, epsilon=epsilon, parameters=own)
    return load_perturber(replace(settings, privacy=privacy), name)


def _seen_before(rows: Sequence[Measured], perturber: Perturber) -> bool:
    """Say whether a mechanism that does not depend on epsilon was measured already."""
    recipe = (perturber.mechanism.name, perturber.mechanism.parameters)
    return any((row.name, row.parameters) == recipe for row in rows)


def _models(plan: Plan, perturber: Perturber) -> Models:
    model = str(bundled_model_path()) if plan.language_model == BUNDLED_MODEL else plan.language_model
    setting = "--language-model"
    masked = plan.masked_model and masked_scores(plan.masked_model, perturber.vocabulary.tokens, "--masked-model")
    written = _WRITTEN_TOKENS + 2 * perturber.shape.tokens
    return Models(
        plan.language_words, sequence_score(model, setting), completer(model, written, setting), masked or None
    )


def _progress() -> Progress:
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}")
    return Progress(*columns, TimeElapsedColumn(), console=console, transient=True)


def _facts(perturber: Perturber, material: Material, plan: Plan, command: str) -> Facts:
    shape = perturber.shape
    sent = "the rarest words" if shape.words == "content" else "the first words"
    method = (
        f"An attacker knows the mechanism, {len(material.known)} texts of the same kind, and for linkage a bank of "
        f"{len(material.bank)} questions that holds the private ones.",
        f"Intervals hold together with {_CONFIDENCE:.0%} confidence (Clopper-Pearson, Bonferroni over all of them); an "
        "interval that starts above its cap fails the audit.",
        _language_line(plan),
        "" if shape.choices else "No choices are sent, so there is no answer to infer from them.",
    )
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "numpy"))
    form = f"{sent}, {shape.question_words} of a question"
    if shape.choices:
        form += f" and {shape.choice_words} of each of {shape.choices} choices"
    return Facts(
        source=material.source,
        documents=len(material.private),
        vocabulary=f"{perturber.vocabulary.words} public words",
        shape=form,
        tokens=shape.tokens,
        delta=perturber.delta,
        close=CLOSE,
        method=method,
        versions=f"Python {platform.python_version()}, {packages}",
        command=command,
        seed=plan.seed,
    )


def _language_line(plan: Plan) -> str:
    if not plan.language_words:
        return "No language model attacked."
    models = plan.language_model + (f" and {plan.masked_model}" if plan.masked_model else "; no masked model was given")
    return (
        f"Language models ({models}) attacked {plan.language_words} words of {', '.join(plan.attacked)} at epsilon "
        f"{plan.epsilons[0]:g}; so few words leave their caps wide."
    )


def _print(rows: Sequence[Measured], console: Console) -> None:
    console.print(_overview(rows))
    console.print(_attacks(rows[0]))
    for row in rows:
        if not row.failures and row.asked == rows[0].asked:
            console.print(f"{row.name}: {row.claim.reason}", highlight=False, markup=False, soft_wrap=True)
    for row in rows:
        for why in row.failures:
            line = f"FAILS: {row.name} at epsilon {row.asked:g}: {why}"
            console.print(line, style="bold red", highlight=False, markup=False, soft_wrap=True)


def _overview(rows: Sequence[Measured]) -> Table:
    table = _table("Privacy audit: epsilon per word and per document; shares of words", "mechanism")
    for column in ("asked", "measured", "document", "kept", "close", "attack", "cap"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("claim", no_wrap=True)
    for row in rows:
        best = row.best_attack
        table.add_row(
            row.name, f"{row.asked:g}", row.claim.measured.replace("at least", ">"), epsilon_text(row.document.epsilon),
            f"{row.kept:.0%}", f"{row.close:.0%}",
            _rate(best.exact.value if best else None), _rate(best.cap if best else None),
            _SHORT[row.status], style="bold red" if row.failures else None,
        )  # fmt: skip
    return table


_SHORT = {"fails": "FAILS", "claims nothing": "none", "holds": "holds", "not refuted": "open"}


def _rate(value: float | None) -> str:
    return "none" if value is None else f"{value:.0%}"


def _table(title: str, first: str) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column(first, no_wrap=True)
    return table


def _attacks(row: Measured) -> Table:
    table = _table(f"Attacks on {row.name} at epsilon {row.asked:g}", "attack")
    for column in ("right", "interval", "cap"):
        table.add_column(column, justify="right")
    for attack in row.attacks:
        if attack.target != "unprotected":
            interval = f"{percent(attack.exact.low)} to {percent(attack.exact.high)}"
            style = None if attack.passes else "bold red"
            table.add_row(attack.name, percent(attack.exact.value), interval, cap(attack.cap), style=style)
    return table
