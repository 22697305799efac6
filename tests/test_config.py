"""Settings and policies: one clear line that names the setting, the value and the remedy."""

from __future__ import annotations

import inspect
import math
import tomllib
from pathlib import Path

import pytest

from pdss_fl.config import RunSettings
from pdss_fl.errors import SettingError
from pdss_fl.llm_settings import LLMSettings
from pdss_fl.serve_command import serve

ROOT = Path(__file__).parent.parent


def test_pyproject_repeats_the_defaults_exactly() -> None:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    flat = {k: v for k, v in table.items() if not isinstance(v, dict)}
    for group, values in table.items():
        if isinstance(values, dict):
            flat |= {f"{group}.{key}": value for key, value in values.items()}
    assert flat == RunSettings().flat()


def test_every_dependency_is_kept_out_of_flowers_throw_away_environment() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    names = {d.split(">")[0].split("[")[0] for d in project["project"]["dependencies"]}
    overridden = {d.split(" ")[0] for d in project["tool"]["uv"]["override-dependencies"]}
    assert names <= overridden


def test_settings_come_back_from_their_flat_form() -> None:
    settings = RunSettings.from_run_config({"privacy.epsilon": 3, "num-server-rounds": 2, "foreign.key": "x"})
    assert settings.privacy.epsilon == 3.0
    assert isinstance(settings.privacy.epsilon, float)
    assert RunSettings.from_run_config(settings.flat()) == settings


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("privacy.epsilon", 0),
        ("privacy.epsilon", -1.0),
        ("privacy.epsilon", math.nan),
        ("privacy.epsilon", math.inf),
        ("privacy.epsilon", "8"),
        ("privacy.neighbours", 0),
        ("privacy.neighbours", 2.5),
        ("privacy.length", "secret"),
        ("privacy.delta", 0.01),
        ("privacy.choices", 27),
        ("data.path", "relative.jsonl"),
        ("llm.instruction", "relative.json"),
        ("distill.rationale-weight", 1.0),
        ("distill.decoder", "magic"),
        ("distill.filter", "maybe"),
        ("distill.steps", 0),
        ("llm.backend", "carrier-pigeon"),
        ("llm.model", " "),
        ("llm.base-url", " "),
        ("llm.endpoint-form", "edit"),
        ("llm.concurrency", 0),
        ("llm.max-run-tokens", -1),
        ("llm.max-run-cost", math.nan),
        ("llm.output-price", -0.5),
        ("llm.channel", "pigeon"),
        ("llm.channel", "direct"),
        ("llm.insecure", "yes"),
        ("llm.root-certificates", "ca.pem"),
        ("llm.token-lifetime", 0.0),
        ("llm.token-lifetime", 1e18),
        ("methods", "pdss magic"),
        ("methods", " "),
        ("output-dir", "relative/path"),
        ("num-server-rounds", True),
        ("data.source", "hub"),
    ],
)
def test_a_bad_value_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(SettingError) as refusal:
        RunSettings.from_run_config({key: value})
    assert key in str(refusal.value)
    assert repr(value) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_methods_run_in_a_fixed_order() -> None:
    assert RunSettings.from_run_config({"methods": "dss, pdss untrained"}).method_names == (
        "untrained",
        "pdss",
        "dss",
    )


def test_the_llm_server_loads_its_llm_by_the_defaults_of_a_run() -> None:
    options = inspect.signature(serve).parameters
    for name in ("model", "adapter", "instruction", "dtype", "batch_size"):
        assert options[name].default == getattr(LLMSettings(), name), name
