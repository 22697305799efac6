"""The Flower ServerApp: compares the untrained, Standalone, PDSS and DSS small models in one run.

This side never sees an example. It holds the LLM (or the address of one), asks clients for perturbed
prompts, and adds up the counts that they report.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from pdss_fl.averages import AVERAGES
from pdss_fl.config import RunSettings
from pdss_fl.data_settings import BUILT_IN_DATA
from pdss_fl.direct import Offer
from pdss_fl.errors import PdssError, PolicyRefusal, QuorumLost
from pdss_fl.fairness import by_client, spread
from pdss_fl.journal import Journal
from pdss_fl.llm.protocol import RationaleGenerator
from pdss_fl.llm_settings import LLMSettings
from pdss_fl.logs import configure_logging
from pdss_fl.messages import GenerationSettings
from pdss_fl.participants import connected
from pdss_fl.polling import PatientGrid
from pdss_fl.report import render_summary
from pdss_fl.results import RunDirectory, accuracy, privacy_summary, versions, weakest
from pdss_fl.resume import LOADED, RunName, as_first_loaded, unfinished_run
from pdss_fl.sharing_settings import OFF
from pdss_fl.strategy import StepByStepDistillation
from pdss_fl.tracking import TENSORBOARD, Callback, Callbacks, TensorBoard

logger = logging.getLogger("pdss_fl.server")


def create_server_app(callbacks: Sequence[Callback] = ()) -> ServerApp:
    """Return a ServerApp that runs the comparison which the settings ask for.

    Parameters
    ----------
    callbacks : Sequence[Callback] (default: ())
        Told of metrics as they come, beside what ``tracking`` names.
    """
    made = ServerApp()

    @made.main()
    def main(grid: Grid, context: Context) -> None:
        configure_logging()
        try:
            settings = RunSettings.from_run_config(context.run_config)
            path = run_comparison(PatientGrid(grid), settings, context.run_id, callbacks)
        except PdssError as err:
            logger.error("error: %s", err.local)
            raise SystemExit(1) from None
        print(f"results: {path}", flush=True)

    return made


def run_comparison(grid: Grid, settings: RunSettings, run_id: int, callbacks: Sequence[Callback] = ()) -> str:
    """Run every method that ``methods`` names, write the run directory, print the table.

    Returns
    -------
    str
        Absolute path of the run directory.
    """
    name, directory = _open_run(settings, run_id)
    own = [TensorBoard(directory.path / TENSORBOARD)] if settings.tracking == TENSORBOARD else []
    try:
        _compare(grid, settings, run_id, name, directory, Callbacks([*callbacks, *own]))
    finally:
        directory.close()
    return str(directory.path)


def _compare(
    grid: Grid, settings: RunSettings, run_id: int, name: RunName, directory: RunDirectory, tracking: Callbacks
) -> None:
    started = time.monotonic()
    generator = _load_llm(settings, run_id, directory) if _needs_llm(settings) else None
    load_seconds = time.monotonic() - started
    logger.info("waiting for %d clients (min-available-nodes)", settings.min_available_nodes)
    connected(grid, settings.min_available_nodes, "min-available-nodes", settings.perturb_timeout)
    journal = Journal(directory.path / "journal.jsonl")
    strategies: dict[str, StepByStepDistillation] = {}
    outcome: dict[str, Any] = {}
    for method in settings.method_names:
        logger.info("method %s starts", method)
        strategies[method] = _strategy(generator, method, settings, run_id, name, journal)
        strategies[method].on_metrics = tracking.on_metrics
        try:
            outcome[method] = _run_method(grid, strategies[method], settings)
        except QuorumLost:  # the summary says who was missing
            outcome[method] = None
            _write(directory, outcome, strategies, generator, load_seconds)
            raise
        # Written after every method, so that one that fails takes nothing of the others with it.
        summary = _write(directory, outcome, strategies, generator, load_seconds)
    tracking.on_end(summary)
    directory.write("run.json", {"name": name.text, "ended": True})
    shutil.rmtree(directory.path / AVERAGES, ignore_errors=True)  # nobody resumes from them any more
    print(render_summary(summary), flush=True)


def _write(
    directory: RunDirectory,
    outcome: dict[str, Any],
    strategies: dict[str, StepByStepDistillation],
    generator: RationaleGenerator | None,
    load_seconds: float,
) -> dict[str, Any]:
    """Write what is known of the methods so far; returns the summary."""
    directory.write_metrics(row for strategy in strategies.values() for row in strategy.client_metrics)
    claims = {m: [vars(s) for s in strategy.statements.values()] for m, strategy in strategies.items()}
    directory.write("privacy.json", {"statements": claims})
    summary = _summary(outcome, strategies, generator, load_seconds)
    directory.write("summary.json", summary)
    return summary


def _open_run(settings: RunSettings, run_id: int) -> tuple[RunName, RunDirectory]:
    """Return the name and directory of the run to resume, or of a new one."""
    if settings.resume:
        name, path = unfinished_run(settings)
        logger.info("goes on with %s", path.name)
        return name, RunDirectory(path)
    name, directory = RunName.new(run_id), RunDirectory(settings.run_directory(run_id))
    for earlier in ("journal.jsonl", LOADED):
        (directory.path / earlier).unlink(missing_ok=True)
    directory.write("settings.json", settings.flat())
    directory.write("run.json", {"name": name.text, "ended": False})
    return name, directory


def _load_llm(settings: RunSettings, run_id: int, directory: RunDirectory) -> RationaleGenerator:
    """Load or reach the run's LLM, in the number format of the run's first start."""
    generator = load_generator(as_first_loaded(settings.llm, directory.path), settings.data.source, run_id)
    directory.write(LOADED, {"dtype": generator.info.dtype})
    return generator


def load_generator(llm: LLMSettings, data_source: str = BUILT_IN_DATA, run_id: int = 0) -> RationaleGenerator:
    """Return the LLM that the settings name, loaded or reached; raises ``LLMUnavailable`` otherwise.

    The built-in adapter, which ``llm.adapter = "auto"`` means, knows the built-in set only, so it is left out
    for any other ``data_source``. ``run_id`` is what tokens for an LLM server name.
    """
    if llm.backend == "grpc":
        from pdss_fl.llm.access import client_tls, token_maker
        from pdss_fl.llm.remote import RemoteGenerator

        make = token_maker(run_id, llm.token_lifetime)
        remote = RemoteGenerator(
            llm.address,
            timeout=llm.timeout,
            tls=client_tls(llm.root_certificates),
            insecure=llm.insecure,
            token=(lambda: make(0)) if make else None,
        )
        logger.info("LLM: %s at %s", remote.info.model, llm.address)
        return remote
    if llm.backend == "openai":
        from pdss_fl.llm.openai import load_openai_generator

        logger.info("LLM: %s at %s", llm.model, llm.base_url)
        return load_openai_generator(llm)
    from pdss_fl.llm.generator import load_local_generator

    logger.info("LLM: loading %s", llm.model)
    adapter = "" if llm.adapter == "auto" and data_source != BUILT_IN_DATA else llm.adapter
    return load_local_generator(llm.model, llm.instruction, llm.dtype, llm.batch_size, adapter)


def _needs_llm(settings: RunSettings) -> bool:
    return bool({"pdss", "dss"} & set(settings.method_names))


def _strategy(
    generator: RationaleGenerator | None,
    method: str,
    settings: RunSettings,
    run_id: int,
    name: RunName,
    journal: Journal,
) -> StepByStepDistillation:
    generation = GenerationSettings(max_new_tokens=settings.llm.max_new_tokens)
    return StepByStepDistillation(
        generator,
        method=method,
        generation=generation,
        offer=_offers(settings.llm, generation, run_id) if settings.llm.channel == "direct" else None,
        run=name,
        journal=journal,
        sharing=settings.sharing.mode != OFF,
        average=settings.sharing,
        quorum=settings.quorum,
        perturb_timeout=settings.perturb_timeout,
        max_prompts=settings.data.train_examples,
        fraction_train=settings.fraction_train,
        seed=settings.seed,
    )


def _offers(llm: LLMSettings, generation: GenerationSettings, run_id: int) -> Callable[[int], Offer]:
    """Return what sends a node to the LLM server, with a token of its own if the server's key is known here."""
    from pdss_fl.llm.access import token_maker

    make = token_maker(run_id, llm.token_lifetime)
    return lambda node: Offer(llm.address, make(node) if make else "", generation)


def _run_method(
    grid: Grid, strategy: StepByStepDistillation, settings: RunSettings
) -> dict[str, float | int | None] | None:
    """Return the accuracy of one method, or ``None`` where no client takes part in it."""
    if strategy.method == "untrained":
        metrics = strategy.evaluate_only(grid, settings.distill_timeout, settings.num_server_rounds)
    else:
        try:
            result = strategy.start(
                grid, ArrayRecord(), num_rounds=settings.num_server_rounds, timeout=settings.distill_timeout
            )
        except QuorumLost:
            if strategy.method != "dss" or strategy.failure_codes != {PolicyRefusal.code}:
                raise
            logger.warning("dss, the bound without privacy, is left out: the clients' policies do not allow it")
            return None
        metrics = result.evaluate_metrics_clientapp.get(settings.num_server_rounds)
    sums: dict[str, Any] = dict(metrics or {})
    return accuracy(sums.get("correct", 0), sums.get("num-examples", 0), sums.get("noise-variance", 0.0))


def _summary(
    outcome: dict[str, Any],
    strategies: dict[str, StepByStepDistillation],
    generator: RationaleGenerator | None,
    load_seconds: float,
) -> dict[str, Any]:
    seconds = {"load llm": load_seconds}
    for strategy in strategies.values():
        for phase, value in strategy.usage.seconds.items():
            seconds[phase] = seconds.get(phase, 0.0) + value
    pdss = strategies.get("pdss")
    rows = [row for strategy in strategies.values() for row in strategy.client_metrics]
    clients = by_client(rows, {method: strategy.statements for method, strategy in strategies.items()})
    return {
        "accuracy": outcome,
        "clients": clients,
        "left-out": [row for strategy in strategies.values() for row in strategy.left_out],
        "unshared": [row for strategy in strategies.values() for row in strategy.unshared],
        "fairness": spread(clients),
        "privacy": privacy_summary(weakest(pdss.statements.values()) if pdss else None),
        "seconds": {phase: round(value, 2) for phase, value in seconds.items()},
        "llm": {
            "model": generator.info.model if generator else "",
            "prompts": sum(s.usage.prompts for s in strategies.values()),
            "tokens": sum(s.usage.tokens for s in strategies.values()),
            "prompt-bytes": sum(s.usage.prompt_bytes for s in strategies.values()),
            "rationale-bytes": sum(s.usage.rationale_bytes for s in strategies.values()),
        },
        "versions": versions(),
    }


app = create_server_app()
