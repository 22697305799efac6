"""What ``pdss run`` checks before it starts anything: all that would end the run later, and is known now.

A simulation's clients are on this machine, so their data and their choices can be looked at, too; in a deployment
only they may. The words are those in which the run itself would say it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path

from pdss_fl.config import SCRATCH, RunSettings
from pdss_fl.errors import DataError, SettingError
from pdss_fl.run_config import Value


def check_simulation(defaults: Mapping[str, Value], overrides: Mapping[str, Value], clients: int) -> RunSettings:
    """Return the settings of a simulated run that can begin; if none says how many clients it waits for, for all.

    Parameters
    ----------
    defaults : Mapping[str, Value]
        The app's settings; a run can change these and no others.
    overrides : Mapping[str, Value]
        What this run changes.
    clients : int
        Number of simulated clients.

    Raises
    ------
    SettingError
        Naming the setting, the value found and what to do.
    """
    check_names(overrides, defaults)
    settings = RunSettings.from_run_config({**defaults, "min-available-nodes": clients, **overrides})
    for key, wanted in (("min-available-nodes", settings.min_available_nodes), ("quorum", settings.quorum)):
        if wanted > clients:
            raise SettingError(f"{key} = {wanted} is more than --clients = {clients}: lower it, or simulate more")
    _check_paths(settings)
    _check_mechanism(settings)
    if settings.resume:
        from pdss_fl.resume import unfinished_run

        unfinished_run(settings)
    _check_data(settings, clients)
    return settings


def check_names(overrides: Mapping[str, Value], known: Mapping[str, Value]) -> None:
    """Refuse settings that are not there; raises ``SettingError`` that names the first and what it may stand for."""
    for key in overrides:
        if key not in known:
            close = [name for name in known if difflib.get_close_matches(_last(key), [_last(name)], 1, 0.7)]
            remedy = f"did you mean {' or '.join(close)}?" if close else "pyproject.toml lists all of them"
            raise SettingError(f"{key} = {overrides[key]!r}: there is no such setting; {remedy}")


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _check_paths(settings: RunSettings) -> None:
    files = {
        "llm.instruction": settings.llm.instruction if settings.llm.backend == "local" else "",
        "llm.root-certificates": settings.llm.root_certificates if settings.llm.backend == "grpc" else "",
        "client-choices": settings.client_choices,
    }
    for key, path in files.items():
        if path and not Path(path).is_file():
            raise SettingError(f"{key} = {path!r} is no file: correct the path")
    models = {"slm.model": settings.slm.model, "privacy.embeddings": settings.privacy.embeddings}
    if settings.llm.backend == "local":
        models |= {"llm.model": settings.llm.model}
    for key, model in models.items():
        if model != SCRATCH and Path(model).is_absolute() and not (Path(model) / "config.json").is_file():
            raise SettingError(f"{key} = {model!r} holds no model (no config.json lies there): correct the path")


def _check_mechanism(settings: RunSettings) -> None:
    if "pdss" in settings.method_names:
        from pdss_fl.privacy.parameters import check_parameters

        check_parameters(settings.privacy.mechanism, settings.privacy.mechanism_parameters)


def _check_data(settings: RunSettings, clients: int) -> None:
    """Read what the clients will read: of those that share one data set, for the first and the last."""
    from pdss_fl.choices import own_settings, simulated_choices
    from pdss_fl.client_data import load_data
    from pdss_fl.policy import NodePolicy

    for number in _distinct(settings, clients):
        choices, _ = simulated_choices(settings, number)
        own = own_settings(settings, choices, simulated=True)
        setting = f"data.path = {own.data.path!r}"
        if own.data.source != "datasets" and own.data.path and not Path(own.data.path).exists():
            raise SettingError(f"{setting}: no such file or folder: correct the path")
        policy = NodePolicy.simulation(Path(), settings, number)
        try:
            load_data(own, policy, number, clients)
        except DataError as err:
            raise SettingError(f"{setting}: {err.public}", err.private) from None


def _distinct(settings: RunSettings, clients: int) -> Iterator[int]:
    from pdss_fl.choices import simulated_choices

    for number in range(clients):
        if number in (0, clients - 1) or simulated_choices(settings, number)[0]:
            yield number
