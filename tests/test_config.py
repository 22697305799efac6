"""Settings and policies: one clear line that names the setting, the value and the remedy."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path

import pytest

from pdss_fl.config import NodePolicy, RunSettings
from pdss_fl.errors import PolicyRefusal, SettingError

ROOT = Path(__file__).parent.parent
NODE = {
    "state-dir": "/state",
    "data-path": "/data/train.jsonl",
    "max-epsilon-per-token": 8.0,
    "max-epsilon-per-example": 200.0,
}


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
        ("privacy.delta", 1.0),
        ("distill.rationale-weight", 1.0),
        ("distill.decoder", "magic"),
        ("distill.filter", "maybe"),
        ("distill.steps", 0),
        ("llm.backend", "carrier-pigeon"),
        ("llm.model", " "),
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


def test_a_deployed_node_needs_its_four_limits() -> None:
    for key in NODE:
        rest = {k: v for k, v in NODE.items() if k != key}
        with pytest.raises(SettingError, match=key):
            NodePolicy.from_node_config({"partition-id": 0, "num-partitions": 2, **rest})
    assert NodePolicy.from_node_config(NODE).max_epsilon_per_example == 200.0


def test_a_policy_file_serves_and_the_node_config_outranks_it(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text("\n".join(f"{k} = {v!r}" for k, v in NODE.items()).replace("'", '"'))
    policy = NodePolicy.from_node_config({"policy": str(file), "max-epsilon-per-token": 2.0})
    assert (policy.max_epsilon_per_token, policy.max_epsilon_per_example) == (2.0, 200.0)
    with pytest.raises(SettingError, match="policy"):
        NodePolicy.from_node_config({"policy": str(tmp_path / "missing.toml")})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max-epsilon-per-token", 0.0),
        ("max-epsilon-per-token", math.nan),
        ("max-epsilon-per-example", -1),
        ("state-dir", "relative"),
        ("data-path", ""),
        ("metrics", "loud"),
    ],
)
def test_a_bad_policy_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(SettingError, match=key):
        NodePolicy.from_node_config({**NODE, key: value})


def test_a_run_may_not_ask_for_more_than_the_node_allows() -> None:
    policy = NodePolicy.from_node_config(NODE)
    policy.check_mechanism("staircase", "pure-ldp", 8.0)
    with pytest.raises(PolicyRefusal, match=r"max-epsilon-per-token = 8"):
        policy.check_mechanism("staircase", "pure-ldp", 8.01)
    with pytest.raises(PolicyRefusal, match="allowed-mechanisms"):
        policy.check_mechanism("identity", "none", math.inf)
    with pytest.raises(PolicyRefusal, match="insecure-noise-seed"):
        policy.check_run(RunSettings.from_run_config({"insecure-noise-seed": 1}))
    with pytest.raises(PolicyRefusal, match=r"slm\.model"):
        policy.check_run(RunSettings.from_run_config({"slm.model": "somebody/else"}))


def test_a_list_of_mechanisms_excludes_all_others() -> None:
    policy = NodePolicy.from_node_config({**NODE, "allowed-mechanisms": "identity"})
    policy.check_mechanism("identity", "none", math.inf)
    with pytest.raises(PolicyRefusal):
        policy.check_mechanism("staircase", "pure-ldp", 1.0)


def test_simulation_allows_identity_on_the_built_in_data_only(tmp_path: Path) -> None:
    built_in = NodePolicy.simulation(tmp_path, RunSettings())
    built_in.check_mechanism("identity", "none", math.inf)
    real = RunSettings.from_run_config({"data.source": "jsonl", "data.path": "/data"})
    with pytest.raises(PolicyRefusal):
        NodePolicy.simulation(tmp_path, real).check_mechanism("identity", "none", math.inf)
