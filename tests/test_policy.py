"""The node's own limits outrank whatever a run asks for."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from pdss_fl.config import RunSettings
from pdss_fl.errors import PolicyRefusal, SettingError
from pdss_fl.policy import NodePolicy
from pdss_fl.privacy import Charge, Ledger, Vocabulary, create_mechanism
from pdss_fl.privacy.mechanism import KINDS

NODE = {
    "state-dir": "/state",
    "data-path": "/data/train.jsonl",
    "max-epsilon-per-token": 8.0,
    "max-epsilon-per-example": 200.0,
}


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
    with pytest.raises(PolicyRefusal, match=r"privacy\.length"):
        policy.check_run(RunSettings.from_run_config({"privacy.length": "exact"}))
    with pytest.raises(PolicyRefusal, match="public-choices"):
        policy.check_run(RunSettings.from_run_config({"data.public-choices": True}))
    with pytest.raises(PolicyRefusal, match=r"privacy\.embeddings"):
        policy.check_run(RunSettings.from_run_config({"privacy.embeddings": "scratch"}))
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


def test_a_node_names_its_public_labels_itself(tmp_path: Path) -> None:
    policy = NodePolicy.from_node_config({**NODE, "public-choices": "yes, no way"})
    assert policy.public_choices == ("yes", "no way")
    policy.check_run(RunSettings.from_run_config({"data.public-choices": True}))


@pytest.mark.parametrize("typo", ["metric", "allowed-mechanism", "max-epsilon"])
def test_a_key_that_nobody_reads_is_refused_and_not_ignored(tmp_path: Path, typo: str) -> None:
    with pytest.raises(SettingError, match=f"unknown keys: {typo}"):
        NodePolicy.from_node_config({**NODE, typo: "none"})
    (tmp_path / "policy.toml").write_text(f'{typo} = "none"\n')
    with pytest.raises(SettingError, match=f"unknown keys: {typo}"):
        NodePolicy.from_node_config({**NODE, "policy": str(tmp_path / "policy.toml")})


def test_lists_of_a_policy_file_are_lists(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text('allowed-mechanisms = ["staircase", "identity"]\n')
    policy = NodePolicy.from_node_config({**NODE, "policy": str(tmp_path / "policy.toml")})
    assert policy.allowed_mechanisms == ("staircase", "identity")


@pytest.mark.parametrize("address", ["unix:1", "unix:/run/llm.sock", "dns:///llm:1", "xds:443", "llm.example.org"])
def test_an_llm_server_is_allowed_by_host_and_port_only(address: str) -> None:
    with pytest.raises(SettingError, match=r"allowed-llm-addresses = .*host:port"):
        NodePolicy.from_node_config({**NODE, "allowed-llm-addresses": f"llm.example.org:1, {address}"})


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "pure-ldp"])
def test_a_weaker_guarantee_is_allowed_by_name_only(kind: str) -> None:
    with pytest.raises(PolicyRefusal, match="'weak' is not among this node's allowed-mechanisms"):
        NodePolicy.from_node_config(NODE).check_mechanism("weak", kind, 1.0)
    NodePolicy.from_node_config({**NODE, "allowed-mechanisms": "weak"}).check_mechanism("weak", kind, 1.0)


@pytest.mark.parametrize("kind", ["approximate-ldp", "metric-ldp", "partition-ldp"])
def test_what_is_allowed_by_name_keeps_to_the_limit_per_token(kind: str) -> None:
    policy = NodePolicy.from_node_config({**NODE, "allowed-mechanisms": "weak"})
    with pytest.raises(PolicyRefusal, match=r"max-epsilon-per-token = 8"):
        policy.check_mechanism("weak", kind, 8.01)


@pytest.mark.parametrize("mechanism", ["santext", "santext-plus", "custext", "rantext", "metric-laplace"])
def test_what_bounds_no_document_also_needs_a_ledger_without_limit(tmp_path: Path, mechanism: str) -> None:
    """Its charge is infinite: a node that names it, but keeps a finite limit, refuses every example."""
    vocabulary = Vocabulary([f"w{i}" for i in range(8)], torch.eye(8))
    document = create_mechanism(mechanism, vocabulary, epsilon=1.0, neighbours=3).compose(20, 0.0)
    charge = Charge("example", None, "recipe", document.epsilon, document.delta, {})
    for limit, accepted in ((1e300, False), (math.inf, True)):
        node = {**NODE, "state-dir": str(tmp_path), "max-epsilon-per-example": limit}
        policy = NodePolicy.from_node_config(node)
        ledger = Ledger(policy.state_dir / f"{limit}.jsonl", policy.max_epsilon_per_example)
        assert ledger.charge([charge]) == [accepted]


def test_a_node_names_the_llm_servers_it_may_be_sent_to_and_the_ca_it_trusts() -> None:
    direct = RunSettings.from_run_config(
        {"llm.backend": "grpc", "llm.channel": "direct", "llm.address": "llm.example.org:50061"}
    )
    with pytest.raises(PolicyRefusal, match="allowed-llm-addresses"):
        NodePolicy.from_node_config(NODE).check_run(direct)
    addresses = "127.0.0.1:50061, llm.example.org:50061"
    node = {**NODE, "allowed-llm-addresses": addresses, "llm-root-certificates": "/ca.pem"}
    policy = NodePolicy.from_node_config(node)
    policy.check_run(direct)
    assert policy.llm_root_certificates == Path("/ca.pem")
    for near in ("llm.example.org:50062", "llm.example.org", "LLM.example.org:50061", "x.llm.example.org:50061"):
        with pytest.raises(PolicyRefusal, match="allowed-llm-addresses"):
            policy.check_llm_address(near)
    with pytest.raises(SettingError, match="llm-root-certificates of this SuperNode is a relative path"):
        NodePolicy.from_node_config({**NODE, "llm-root-certificates": "ca.pem"})


def test_a_simulation_trusts_what_the_run_names(tmp_path: Path) -> None:
    settings = RunSettings.from_run_config(
        {"llm.backend": "grpc", "llm.channel": "direct", "llm.root-certificates": "/ca.pem"}
    )
    policy = NodePolicy.simulation(tmp_path, settings)
    policy.check_run(settings)
    assert policy.llm_root_certificates == Path("/ca.pem")
