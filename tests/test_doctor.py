"""``pdss doctor``: what is right is said, what is wrong is named with a remedy, before a run meets it."""

from __future__ import annotations

import json
import socket
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from typer.testing import CliRunner

from pdss_fl.cli import app
from pdss_fl.config import RunSettings
from pdss_fl.doctor import examine
from pdss_fl.doctor_checks import FAIL, NOTE, OK, Finding
from pdss_fl.node import listening
from tests.llm.openai_server import KEY, said, scripted
from tests.test_cli import free_port, pdss


def findings(settings: dict[str, Any], policy: Path | None = None) -> dict[str, Finding]:
    return {f.what: f for f in examine(RunSettings.from_run_config(settings), policy)}


@pytest.fixture
def asked(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("PDSS_CACHE_DIR", str(tmp_path / "cache"))
    return {"output-dir": str(tmp_path / "runs"), "llm.model": str(tiny), "privacy.embeddings": str(tiny)}


def policy(tmp_path: Path, **changes: Any) -> Path:
    data = tmp_path / "data.jsonl"
    if not data.exists():
        data.write_text(json.dumps({"question": "is it?", "answer": "yes"}) + "\n")
    keys = {
        "state-dir": str(tmp_path / "state"), "data-path": str(data), "max-epsilon-per-token": 8.0,
        "max-epsilon-per-example": 100.0, **changes,
    }  # fmt: skip
    path = tmp_path / "policy.toml"
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items()))
    return path


def test_a_machine_that_is_ready(tmp_path: Path, tiny: Path, asked: dict[str, Any]) -> None:
    found = findings(asked, policy(tmp_path, **{"allowed-models": f"scratch {tiny}"}))
    assert not [f for f in found.values() if f.verdict == FAIL]
    assert found["data-path"].found == "data.jsonl: 1 examples"
    assert found["ledger"].found == "none yet: nothing was released"
    assert found["budget"].found == "a prompt of 3 words costs epsilon 21 of 100 an example"
    assert str(tmp_path / "runs") in findings(asked)["output-dir"].found
    assert not (tmp_path / "state").exists(), "looking changes nothing"


def test_a_nodes_own_choices_are_what_is_looked_at(tmp_path: Path, tiny: Path, asked: dict[str, Any]) -> None:
    table = tmp_path / "ward.csv"
    table.write_text("stem,key\nis it?,yes\nwas it?,no\n")
    choices = {"data-path": str(table), "data-format": "csv", "data-fields": "question=stem answer=key"}
    found = findings(asked, policy(tmp_path, **choices, **{"slm-model": str(tiny), "allowed-models": str(tiny)}))
    assert found["data-path"].found == "ward.csv: 2 examples"
    assert "run" not in found or found["run"].verdict != FAIL


def test_a_superlink_that_stayed_behind_is_noted(asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setenv("FLWR_LOCAL_SUPERLINK_HTTP_API_PORT", str(listening.getsockname()[1]))
        found = findings(asked)["local SuperLink"]
    assert found.verdict == NOTE
    assert "end it" in found.remedy


@pytest.mark.parametrize(
    ("setting", "value", "remedy"),
    [
        ("llm.model", "/nowhere/model", "correct the path"),
        ("llm.model", "someone/model-that-is-not-there", "hf download"),
        ("privacy.embeddings", "/nowhere/model", "correct the path"),
        ("slm.model", "/nowhere/model", "correct the path"),
    ],
)
def test_a_model_that_is_not_there(asked: dict[str, Any], setting: str, value: str, remedy: str) -> None:
    found = findings(asked | {setting: value})[setting]
    assert found.verdict == FAIL
    assert remedy in found.remedy


def test_an_llm_server_that_does_not_answer(asked: dict[str, Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    found = findings(asked | {"llm.backend": "grpc", "llm.address": f"127.0.0.1:{port}"})["llm.address"]
    assert found.verdict == FAIL
    assert found.remedy


@pytest.mark.parametrize(
    ("changes", "what", "said"),
    [
        ({"max-epsilon-per-token": "eight"}, "policy", "max-epsilon-per-token"),
        ({"unheard-of": 1}, "policy", "unheard-of"),
        ({"allowed-models": "scratch"}, "run", "allowed-models"),
        ({"allowed-lengths": "bucket"}, "run", "privacy.length"),
    ],
)
def test_a_policy_that_is_wrong_or_refuses_the_run(
    tmp_path: Path, asked: dict[str, Any], changes: dict[str, Any], what: str, said: str
) -> None:
    found = findings(asked, policy(tmp_path, **changes))[what]
    assert found.verdict == FAIL
    assert said in found.remedy


def test_data_that_cannot_be_read(tmp_path: Path, asked: dict[str, Any]) -> None:
    (tmp_path / "data.jsonl").write_text('{"question": "zanzibarqx"\n')
    found = findings(asked, policy(tmp_path))["data-path"]
    assert found.verdict == FAIL
    assert "not JSON" in found.found
    assert "zanzibarqx" not in found.found


def test_a_ledger_that_was_cut(tmp_path: Path, asked: dict[str, Any]) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "ledger.jsonl").write_text("half a li\n")
    found = findings(asked, policy(tmp_path))["ledger"]
    assert found.verdict == FAIL
    assert "backup" in found.remedy


def test_the_command_fails_with_what_to_do(tmp_path: Path) -> None:
    done = pdss("doctor", "-c", "slm.model='/nowhere/model'", "--policy", tmp_path / "none.toml")
    assert done.returncode == 1
    assert "-> no model lies there: correct the path" in done.stdout
    assert "2 of" in done.stderr


def test_a_wrong_setting_is_one_line(tmp_path: Path) -> None:
    done = pdss("doctor", "-c", "privacy.epsilon=-1")
    assert done.returncode == 1
    assert done.stderr.startswith("error: privacy.epsilon")


def told(asked: dict[str, Any], *options: str | Path) -> dict[str, tuple[str, str]]:
    """What the command says of each thing that it looked at: its verdict, and the rest of the two lines."""
    settings = " ".join(f"{key}={json.dumps(value)}" for key, value in asked.items())
    done = CliRunner().invoke(app, ["doctor", "-c", settings, *map(str, options)])
    lines = done.stdout.replace("\n" + " " * 25 + "->", " ->").splitlines()
    found = {line[6:].split()[0]: (line[:4].strip(), line[6:]) for line in lines}
    assert done.exit_code == any(verdict == FAIL for verdict, _ in found.values())
    return found


@pytest.mark.parametrize(
    ("package", "extra", "settings"),
    [
        ("opacus", "dp-sgd", {"sharing.mode": "fedavg", "sharing.epsilon": 4.0, "distill.filter": "off"}),
        ("datasets", "datasets", {"data.source": "datasets", "data.path": "someone/some-set"}),
    ],
)
def test_an_extra_that_the_settings_need(
    asked: dict[str, Any], package: str, extra: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert package not in told(asked)
    assert told(asked | settings)[package][0] == OK
    monkeypatch.setitem(sys.modules, package, None)  # as Python has it of a package that cannot be imported
    verdict, said_of_it = told(asked | settings)[package]
    assert verdict == FAIL
    assert f"pip install 'pdss-fl[{extra}]'" in said_of_it


@pytest.mark.parametrize(("waits", "noted"), [(4, True), (5, False)])
def test_an_average_for_which_a_run_does_not_wait_for_enough_clients(
    asked: dict[str, Any], waits: int, noted: bool
) -> None:
    found = told(asked | {"sharing.mode": "multikrum", "min-available-nodes": waits})
    assert ("sharing.mode" in found) == noted
    if noted:
        verdict, text = found["sharing.mode"]
        assert verdict == NOTE
        assert "5 clients or more; min-available-nodes = 4" in text
        assert "raise min-available-nodes" in text


def test_a_nodes_own_choices_decide_which_extras_and_models_it_needs(tmp_path: Path, asked: dict[str, Any]) -> None:
    own = {"data-format": "datasets", "slm-model": "/nowhere/model"}
    found = told(asked, "--policy", policy(tmp_path, **own))
    assert found["datasets"][0] == OK
    assert found["slm-model"][0] == FAIL
    assert "correct the path" in found["slm-model"][1]


def test_the_encoder_decoder_where_one_is_used(asked: dict[str, Any]) -> None:
    assert "encoder-decoder.model" not in told(asked)
    used = asked | {"privacy.mechanism": "encoder-dp-decoding"}
    assert told(used)["encoder-decoder.model"][0] == OK, "the built-in one"
    verdict, said_of_it = told(used | {"encoder-decoder.model": "/nowhere/model"})["encoder-decoder.model"]
    assert verdict == FAIL
    assert "pdss train-encoder-decoder" in said_of_it


def test_an_openai_endpoint_and_its_key(asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PDSS_LLM_API_KEY", "PDSS_LLM_BASE_URL", "OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    nobody = f"http://127.0.0.1:{free_port()}/v1"
    with scripted(lambda _: said("never asked")) as server:
        asked |= {"llm.backend": "openai", "llm.base-url": server.url}
        verdict, said_of_it = told(asked)["llm.base-url"]
        assert verdict == OK
        assert "no key" in said_of_it
        monkeypatch.setenv("PDSS_LLM_API_KEY", KEY)
        assert "PDSS_LLM_BASE_URL" in told(asked)["llm.base-url"][1], "whose key it is, is not said"
        monkeypatch.setenv("PDSS_LLM_BASE_URL", server.url)
        verdict, said_of_it = told(asked)["llm.base-url"]
        assert (verdict, "has its key" in said_of_it, KEY in said_of_it) == (OK, True, False)
        monkeypatch.setenv("PDSS_LLM_BASE_URL", nobody)
        assert told(asked)["llm.base-url"][0] == FAIL, "not where the machine's owner sends prompts"
    assert told(asked | {"llm.base-url": nobody})["llm.base-url"][0] == FAIL, "nobody answers"


def certificate(path: Path, days: float, ca: bool = True) -> Path:
    """Write a certificate that ends so many days from now."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    start, end = (datetime.now(UTC) + timedelta(days=d) for d in (-900, days))
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, start, end)
    builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    path.write_bytes(builder.sign(key, SHA256()).public_bytes(Encoding.PEM))
    return path


def test_a_nodes_root_certificates(tmp_path: Path, asked: dict[str, Any]) -> None:
    path = tmp_path / "ca.pem"
    node = policy(tmp_path, **{"llm-root-certificates": str(path)})

    def look() -> tuple[str, str]:
        return told(asked, "--policy", node)["llm-root-certificates"]

    assert look()[0] == FAIL, "it is not there"
    certificate(path, 400)
    assert look()[0] == OK
    certificate(path, 5)
    assert look()[0] == NOTE
    path.write_bytes(path.read_bytes() + certificate(tmp_path / "old.pem", -1).read_bytes())
    verdict, said_of_it = look()
    assert (verdict, "expired" in said_of_it, "renew" in said_of_it) == (FAIL, True, True)
    certificate(path, 400, ca=False)
    assert look()[0] == FAIL
    path.write_text("no certificate")
    assert look()[0] == FAIL


@pytest.mark.parametrize(
    ("settings", "what", "said"),
    [
        ({"privacy.epsilon": 8.5}, "run", "privacy.epsilon = 8.5 is above this node's max-epsilon-per-token = 8"),
        ({"privacy.mechanism": "santext"}, "run", "mechanism 'santext' is not among this node's allowed-mechanisms"),
        ({"privacy.question-words": 20}, "budget", "costs epsilon 140, more than max-epsilon-per-example = 100"),
    ],
)
def test_a_run_that_costs_more_than_the_node_allows(
    tmp_path: Path, tiny: Path, asked: dict[str, Any], settings: dict[str, Any], what: str, said: str
) -> None:
    found = findings({**asked, **settings}, policy(tmp_path, **{"allowed-models": f"scratch {tiny}"}))[what]
    assert found.verdict == FAIL
    assert said in f"{found.found} {found.remedy}"


def test_a_nodes_machine_needs_no_way_to_the_llm_and_nothing_of_the_servers(
    tmp_path: Path, tiny: Path, asked: dict[str, Any]
) -> None:
    node = policy(tmp_path, **{"allowed-models": f"scratch {tiny}", "allowed-llm-addresses": "127.0.0.1:9"})
    of_the_server = {"llm.backend": "grpc", "llm.address": "127.0.0.1:9", "llm.root-certificates": "/nowhere/ca.crt"}
    found = findings({**asked, **of_the_server, "output-dir": "/proc/nowhere"}, node)
    assert [f for f in found.values() if f.verdict == FAIL] == []
    direct = findings({**asked, **of_the_server, "llm.channel": "direct"}, node)["llm.address"]
    assert (direct.verdict, "direct" in direct.remedy) == (FAIL, True), "then the node itself calls it"


def test_who_only_relays_is_asked_for_no_model_and_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PDSS_CACHE_DIR", "/proc/nowhere")
    found = [finding.what for finding in examine(RunSettings(), None, tmp_path / "s")]
    assert found == ["python", "packages", "node-socket"]


def test_a_place_that_cannot_be_written_is_named_once(asked: dict[str, Any]) -> None:
    found = [f for f in examine(RunSettings.from_run_config({**asked, "output-dir": "/proc/x"})) if "output" in f.what]
    assert [finding.verdict for finding in found] == [FAIL]


def test_who_answers_at_a_nodes_socket(asked: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory(prefix="pdss") as made:  # a socket's path has to be short
        path = Path(made) / "s"

        def look() -> tuple[str, str]:
            return told(asked, "--node-socket", path)["node-socket"]

        assert look()[0] == FAIL, "it is not there"
        with listening(policy(Path(made)), path):
            assert look()[0] == OK
        with socket.socket(socket.AF_UNIX) as left_over:
            left_over.bind(str(path))
        verdict, said_of_it = look()
        assert (verdict, "start `pdss node`" in said_of_it) == (FAIL, True)
        path.unlink()
        path.write_text("a file")
        assert look()[0] == FAIL
