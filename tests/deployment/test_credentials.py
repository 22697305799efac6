"""Keys and certificates, through the commands of the runbook, also when each party has taken its folder away."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from typer.testing import CliRunner

from examples.deployment.__main__ import app
from pdss_fl.policy import NodePolicy


def call(*arguments: object) -> str:
    """Run a command that succeeds, and return what it says."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.output


def refused(*arguments: object) -> str:
    """Run a command that is refused, and return why."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 1, done.output
    return done.output


def files_below(*folders: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


@pytest.fixture
def federation(tmp_path: Path) -> Path:
    call("credentials", tmp_path / "f", "--hospitals", 2, "--superlink", "127.0.0.1,link.example.org", "--llm", "llm")
    return tmp_path / "f"


@pytest.fixture
def taken(federation: Path) -> Path:
    """The federation's folder after each party has moved its own to a machine of its own, below the returned one."""
    machines = federation.parent / "machines"
    machines.mkdir()
    for name in ("superlink", "llm", "hospital-1", "hospital-2"):
        (federation / name).rename(machines / name)
    return machines


def test_secrets_are_their_owners_only_and_set_up_again_changes_nothing(federation: Path) -> None:
    files = files_below(federation)
    secrets = [path for path in files if path.suffix == ".key"]
    assert len(secrets) == 7
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}
    assert len({files[path] for path in secrets}) == 6, "the LLM server and the SuperLink share the token key, no other"
    assert files[federation / "hospital-1" / "data.jsonl"] != files[federation / "hospital-2" / "data.jsonl"]
    call("credentials", federation, "--hospitals", 2, "--superlink", "other")
    assert files_below(federation) == files


def test_a_new_hospitals_policy_tells_noisy_counts_only(federation: Path) -> None:
    policy = NodePolicy.from_node_config({"policy": str(federation / "hospital-1" / "policy.toml")})
    assert policy.metrics == "noisy"


@pytest.mark.parametrize("gone", ["ca", "superlink", "llm", "hospital-1", "all but ca"])
def test_set_up_is_refused_where_a_part_of_it_was_taken_away(federation: Path, gone: str) -> None:
    names = {"ca", "superlink", "llm", "hospital-1", "hospital-2"}
    for name in names - {"ca"} if gone == "all but ca" else {gone, "hospital-2"}:
        (federation / name).rename(federation.parent / name)
    files = files_below(federation)
    assert "hospital-2/node.key" in refused("credentials", federation, "--hospitals", 2)
    assert files_below(federation) == files, "no second CA, no second key"


@pytest.mark.parametrize("server", ["superlink", "llm"])
def test_a_certificate_is_renewed_with_the_ca_alone_and_nothing_else_is(
    federation: Path, taken: Path, server: str
) -> None:
    others, before = files_below(federation, taken), certificate(taken / server / "server.pem")
    call("certificate", federation, server, "10.0.0.1,link.example.org")
    made = files_below(federation, taken).keys() - others.keys()
    assert made == {federation / server / name for name in ("server.key", "server.pem")}
    assert {path: path.read_bytes() for path in others} == others
    after = certificate(federation / server / "server.pem")
    assert before.serial_number != after.serial_number
    after.verify_directly_issued_by(certificate(taken / "hospital-1" / "ca.crt"))
    names = after.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["link.example.org"]
    key = serialization.load_pem_private_key((federation / server / "server.key").read_bytes(), None)
    assert key.public_key() == after.public_key()


def test_a_certificate_that_is_there_is_put_aside(federation: Path) -> None:
    home = federation / "superlink"
    old = {name: (home / name).read_bytes() for name in ("server.key", "server.pem")}
    call("certificate", federation, "superlink", "127.0.0.1")
    assert {name: (home / f"{name}.old").read_bytes() for name in old} == old
    assert (home / "server.pem").read_bytes() != old["server.pem"]


def test_no_certificate_without_the_cas_key_and_none_for_others(federation: Path) -> None:
    assert "use superlink or llm" in refused("certificate", federation, "hospital-1", "127.0.0.1")
    (federation / "ca" / "ca.key").rename(federation.parent / "ca.key")
    files = files_below(federation)
    assert "ca.key is missing" in refused("certificate", federation, "superlink", "127.0.0.1")
    assert files_below(federation) == files


def test_a_hospitals_key_is_renewed_on_its_own_machine_and_nothing_else_is(federation: Path, taken: Path) -> None:
    home, before = taken / "hospital-1", files_below(federation, taken)
    call("node-key", home)
    after = files_below(federation, taken)
    assert {path for path in after if after[path] != before.get(path)} == {
        home / name for name in ("node.key", "node.pub", "node.key.old", "node.pub.old")
    }
    assert after[home / "node.key.old"] == before[home / "node.key"]
    assert stat.S_IMODE((home / "node.key").stat().st_mode) == 0o600
    key = serialization.load_ssh_private_key(after[home / "node.key"], None)
    assert key.public_key() == serialization.load_ssh_public_key(after[home / "node.pub"])
    assert "node.key is missing" in refused("node-key", taken / "superlink")


def test_a_hospital_is_added_beside_the_others_and_never_over_one(federation: Path, taken: Path) -> None:
    before = files_below(federation, taken)
    call("hospital", federation, "hospital-3")
    after = files_below(federation, taken)
    assert {path: after[path] for path in before} == before
    assert after[federation / "superlink" / "nodes" / "hospital-3.pub"] == after[federation / "hospital-3" / "node.pub"]
    assert after[federation / "hospital-3" / "ca.crt"] == after[taken / "llm" / "ca.crt"]
    assert "exists" in refused("hospital", federation, "hospital-3")
    (federation / "hospital-3").rename(taken / "hospital-3")
    assert "hospital-3.pub exists" in refused("hospital", federation, "hospital-3")
    (federation / "ca").rename(taken / "ca")
    assert "ca.crt is missing" in refused("hospital", federation, "hospital-4")
