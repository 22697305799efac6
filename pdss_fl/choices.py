"""What one client chooses for itself: its small model, the form of its data, its mechanism and epsilon.

A deployed node states its choices in its own config or policy file, beside its limits; a simulated client's stand in
the file that ``client-choices`` names. They outrank the run's settings on that client, and are held against the
client's own policy like any setting: a choice of its own never leads beyond its limits.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pdss_fl.config import METRICS_LEVELS, RunSettings
from pdss_fl.data_settings import BUILT_IN_DATA
from pdss_fl.errors import SettingError
from pdss_fl.sharing_settings import SharingSettings

# A node's key, and the setting that it takes the place of.
KEYS = {
    "slm-model": "slm.model", "slm-hidden-size": "slm.hidden-size", "slm-layers": "slm.layers",
    "slm-max-tokens": "slm.max-tokens", "privacy-mechanism": "privacy.mechanism",
    "privacy-epsilon": "privacy.epsilon", "privacy-neighbours": "privacy.neighbours",
    "privacy-parameters": "privacy.parameters", "data-format": "data.source", "data-fields": "data.fields",
    "data-answers": "data.answers", "data-subset": "data.subset", "data-train-split": "data.train-split",
    "data-test-split": "data.test-split",
}  # fmt: skip
# A simulated client may state these, too, which for a deployed node are part of its policy.
SIMULATED = {"data-path": "data.path"}
METRICS = "metrics"


def choices_in(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the choices among a node's config, by the setting's name; raises ``SettingError`` for a bad value."""
    chosen = {KEYS[key]: value for key, value in config.items() if key in KEYS}
    if chosen.get("data.source") == BUILT_IN_DATA:
        raise SettingError("data-format = 'everyday' is no form of this node's own data: jsonl, csv or datasets")
    _with_choices(RunSettings(), chosen)
    return chosen


def own_settings(settings: RunSettings, choices: Mapping[str, Any], simulated: bool) -> RunSettings:
    """Return the settings that hold on one client.

    Parameters
    ----------
    settings : RunSettings
        The run's. A deployed node takes nothing from them about how its data is read: whoever says which column
        is the question could otherwise ask for any column, the answer among them.
    choices : Mapping[str, Any]
        The client's own, from ``choices_in`` or ``simulated_choices``.
    simulated : bool
        Whether the client's data is the submitter's own.
    """
    if not simulated:
        plain = {setting: RunSettings().flat()[setting] for key, setting in KEYS.items() if key.startswith("data-")}
        settings = _with_choices(settings, {**plain, "data.source": "jsonl", "data.path": ""})
    own = _with_choices(settings, choices) if choices else settings
    # The run averages one small model: whoever chose another, or other sizes, takes part without sharing it.
    return own if own.slm == settings.slm else replace(own, sharing=SharingSettings())


@contextmanager
def kept_private(choices: Mapping[str, Any], setting: str) -> Iterator[None]:
    """Let no error that leaves tell the value of a setting if the client chose it: it may be a path of its own."""
    try:
        yield
    except SettingError as err:
        if setting not in choices:
            raise
        raise SettingError(
            f"what this client itself chose for {setting} cannot be used; its own log says why", err.local
        ) from None


def simulated_choices(settings: RunSettings, partition_id: int) -> tuple[dict[str, Any], str]:
    """Return a simulated client's choices by the setting's name, and its ``metrics`` policy.

    Raises
    ------
    SettingError
        If the file that ``client-choices`` names is no TOML, or has a table or key that nobody reads.
    """
    if not settings.client_choices:
        return {}, "full"
    try:
        tables = tomllib.loads(Path(settings.client_choices).read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise SettingError("the file that client-choices names is not readable TOML", str(err)) from None
    known = {**KEYS, **SIMULATED, METRICS: METRICS}
    for name, table in tables.items():
        number = name.removeprefix("client-")
        unknown = sorted(set(table) - set(known)) if isinstance(table, dict) else [name]
        if not (name.startswith("client-") and number.isdecimal()) or unknown:
            raise SettingError(
                f"client-choices: {name!r} with {', '.join(unknown) or 'its keys'} is not a table [client-0], "
                f"[client-1], ... of {', '.join(sorted(known))}"
            )
    own = dict(tables.get(f"client-{partition_id}", {}))
    metrics = own.pop(METRICS, "full")
    if metrics not in METRICS_LEVELS:
        raise SettingError(f"client-choices: metrics = {metrics!r}; expected {', '.join(METRICS_LEVELS)}")
    return {known[key]: value for key, value in own.items()}, metrics


def _with_choices(settings: RunSettings, choices: Mapping[str, Any]) -> RunSettings:
    flat = {**settings.flat(), **choices}
    if "privacy.mechanism" in choices and "privacy.parameters" not in choices:
        flat["privacy.parameters"] = ""  # the run's belong to the run's mechanism
    if choices.get("data.source") == BUILT_IN_DATA and "data.path" not in choices:
        flat["data.path"] = ""  # the run's, which this client does not read
    try:
        return RunSettings.from_run_config(flat)
    except SettingError as err:
        raise SettingError(f"this client's own choice: {err.public}", err.private) from None
