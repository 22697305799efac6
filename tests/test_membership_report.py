"""``pdss audit --slm`` on a model that learned its members by heart, and on one that saw nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from flwr.app import ArrayRecord
from typer.testing import CliRunner

from pdss_fl.cli import app
from pdss_fl.client import DistillationClient
from pdss_fl.client_app import create_client_app
from pdss_fl.config import RunSettings
from pdss_fl.data.example import Example
from pdss_fl.policy import NodePolicy
from pdss_fl.slm.model import SlmSettings, create_slm
from pdss_fl.slm.trainer import TrainingItem, TrainSettings, train
from pdss_fl.strategy import StepByStepDistillation
from tests.harness import EchoGenerator, LoopbackGrid, context, node, small_run


def example(i: int) -> Example:
    word = ["time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school"][i % 12]
    return Example(f"what is number {i}?", (), f"{word} {(i * 7919) % 97}")


LEARN_BY_HEART = {
    "data.train-examples": 40, "data.test-examples": 20, "slm.hidden-size": 64, "slm.max-tokens": 48,
    "distill.steps": 300, "distill.batch-size": 20, "distill.learning-rate": 5e-3, "num-server-rounds": 2,
}  # fmt: skip


def write(path: Path, numbers: range) -> str:
    rows = [{"question": example(i).question, "answer": example(i).answer} for i in numbers]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model before and after it was trained on the examples 0 to 39."""
    folder = tmp_path_factory.mktemp("models")
    slm = create_slm(SlmSettings(hidden_size=64, layers=1, max_tokens=48), ["what is number time year people"])
    slm.save(folder / "before")
    items = [TrainingItem(example(i), None) for i in range(40)]
    train(slm, items, TrainSettings(steps=150, batch_size=20, learning_rate=5e-3, rationale_weight=0.0))
    slm.save(folder / "after")
    return folder


def audit(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["audit", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output


def aucs(output: str) -> list[float]:
    return [float(found) for found in re.findall(r"([01]\.\d{3}) \(", output)]


def test_members_of_an_overfitted_model_are_found_and_others_are_not(models: Path, tmp_path: Path) -> None:
    members, others = write(tmp_path / "m.jsonl", range(40)), write(tmp_path / "o.jsonl", range(40, 80))
    files = ["--members", members, "--non-members", others]
    told = audit("--slm", str(models / "after"), *files, "--reference", str(models / "before"))
    by_loss, against_reference = aucs(told)
    assert by_loss > 0.9
    assert against_reference > 0.7
    assert "This model tells members" in told
    untold = audit("--slm", str(models / "before"), *files)
    assert 0.2 < aucs(untold)[0] < 0.8
    assert "not seen to tell" in untold


def test_what_is_in_both_files_is_a_member(models: Path, tmp_path: Path) -> None:
    members, others = write(tmp_path / "m.jsonl", range(40)), write(tmp_path / "o.jsonl", range(30, 60))
    assert "40 members, 20 others" in audit(
        "--slm", str(models / "before"), "--members", members, "--non-members", others
    )


def test_what_is_missing_is_named(models: Path, tmp_path: Path) -> None:
    members = write(tmp_path / "m.jsonl", range(4))
    few = write(tmp_path / "f.jsonl", range(40, 41))
    for arguments, what in (
        (["--slm", str(models / "after")], "--non-members"),
        (["--policy", members], "--slm DIR"),
        (["--slm", str(models / "after"), "--members", members], "both"),
        (["--slm", str(tmp_path), "--members", members, "--non-members", write(tmp_path / "n", range(9, 19))],
         "no saved small model"),
        (["--slm", str(models / "after"), "--members", members, "--non-members", few], "at least two"),
    ):  # fmt: skip
        result = CliRunner().invoke(app, ["audit", *arguments])
        assert result.exit_code != 0
        assert what in result.output + str(result.exception)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """Two deployed nodes after a FedAvg run; ``policy.toml`` is that of the first, which holds most examples."""
    folder = tmp_path_factory.mktemp("shared")
    contexts = {}
    for i, numbers in enumerate((range(80), range(100, 116)), start=1):
        write(folder / f"data{i}.jsonl", numbers)
        limits = {"allowed-models": f"scratch {tiny}", "allow-sharing": "any"}
        keys = node(folder / f"state{i}", folder / f"data{i}.jsonl", **limits)
        (folder / f"policy{i}.toml").write_text("".join(f"{key} = {json.dumps(keys[key])}\n" for key in keys))
        run = small_run(tiny, **{"sharing.mode": "fedavg", **LEARN_BY_HEART})
        contexts[i] = context(i, {"policy": str(folder / f"policy{i}.toml")}, run)
    strategy = StepByStepDistillation(EchoGenerator(), method="standalone", quorum=2, sharing=True)
    strategy.start(LoopbackGrid(create_client_app(), contexts), ArrayRecord(), num_rounds=2)
    return folder


def test_a_node_has_the_model_of_a_run_attacked_without_knowing_its_split(shared: Path) -> None:
    slm = shared / "state1" / "runs" / "1" / "slm"
    told = audit("--slm", str(slm / "standalone"), "--policy", str(shared / "policy1.toml"))
    assert "40 members, 20 others" in told
    assert aucs(told)[0] > 0.9
    untold = audit("--slm", str(slm / "untrained"), "--policy", str(shared / "policy1.toml"))
    assert 0.2 < aucs(untold)[0] < 0.8


def test_what_left_the_data_since_the_run_is_said(shared: Path, tmp_path: Path) -> None:
    now = range(30, 90)
    changed, data = tmp_path / "policy.toml", write(tmp_path / "data.jsonl", now)
    changed.write_text((shared / "policy1.toml").read_text().replace(str(shared / "data1.jsonl"), data))
    run = shared / "state1" / "runs" / "1"
    split = json.loads((run / "split.json").read_text())
    gone = {*split["train"], *split["test"]} - {example(i).key for i in now}
    told = audit("--slm", str(run / "slm" / "standalone"), "--policy", str(changed))
    assert f"Left out: {len(gone)} examples" in told
    assert len(gone) >= 10, "sixty of eighty are in the split"


@pytest.mark.parametrize("choices", ["", "ward.jsonl"])
def test_the_model_of_a_simulated_client_needs_nothing_but_its_folder(tmp_path: Path, tiny: Path, choices: str) -> None:
    """By hand, since a simulation takes a minute: the client as the ClientApp makes it, and the run's settings."""
    write(tmp_path / "data.jsonl", range(160))
    write(tmp_path / "ward.jsonl", range(200, 360))
    asked = small_run(tiny, **{**LEARN_BY_HEART, "num-server-rounds": 1, "data.path": str(tmp_path / "data.jsonl")})
    if choices:
        (tmp_path / "choices.toml").write_text(f'[client-1]\ndata-path = "{tmp_path / choices}"\n')
        asked["client-choices"] = str(tmp_path / "choices.toml")
    settings = RunSettings.from_run_config(asked)
    (tmp_path / "settings.json").write_text(json.dumps(settings.flat()))
    folder = tmp_path / "clients" / "client-1"
    client = DistillationClient(settings, NodePolicy.simulation(folder, settings, 1), "1", 1, 2)
    client.distill("standalone", 1, None)
    told = audit("--slm", str(folder / "slm" / "standalone"))
    assert "40 members, 20 others" in told
    assert aucs(told)[0] > 0.9
