"""``pdss audit --slm`` on a model that learned its members by heart, and on one that saw nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pdss_fl.cli import app
from pdss_fl.data.example import Example
from pdss_fl.slm.model import SlmSettings, create_slm
from pdss_fl.slm.trainer import TrainingItem, TrainSettings, train


def example(i: int) -> Example:
    word = ["time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school"][i % 12]
    return Example(f"what is number {i}?", (), f"{word} {(i * 7919) % 97}")


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
        (["--slm", str(models)], "--non-members"),
        (["--slm", str(tmp_path), "--members", members, "--non-members", write(tmp_path / "n", range(9, 19))],
         "no saved small model"),
        (["--slm", str(models / "after"), "--members", members, "--non-members", few], "at least two"),
    ):  # fmt: skip
        result = CliRunner().invoke(app, ["audit", *arguments])
        assert result.exit_code != 0
        assert what in result.output + str(result.exception)
