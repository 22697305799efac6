"""The run directory and the table, from known numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from pdss_fl.errors import SettingError, StoreError
from pdss_fl.messages import PrivacyStatement
from pdss_fl.report import render_summary
from pdss_fl.results import RunDirectory, accuracy, privacy_summary, versions, weakest


def statement(epsilon: float, kind: str = "pure-ldp") -> PrivacyStatement:
    return PrivacyStatement("staircase", kind, epsilon, 10 * epsilon, 1e-5, 20, "basic composition", 0.3, "k=3", "ab")


def test_the_interval_is_wilsons() -> None:
    found = accuracy(50, 100)
    assert found["value"] == 0.5
    assert found["low"] == pytest.approx(0.4038315, abs=1e-6)  # z = 1.959964
    assert found["high"] == pytest.approx(0.5961685, abs=1e-6)
    assert accuracy(0, 7)["low"] == 0.0


def test_the_run_claims_no_more_than_its_weakest_client() -> None:
    assert weakest([statement(2.0), statement(8.0), statement(4.0)]) == statement(8.0)
    assert weakest([]) is None


def test_infinity_becomes_null_and_the_file_stays_json(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    path = directory.write("privacy.json", privacy_summary(statement(math.inf, "none")))
    assert json.loads(path.read_text())["epsilon_per_token"] is None
    directory.write_metrics([{"loss": math.nan, "n": 3}, {"n": 4}])
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows == [{"loss": None, "n": 3}, {"n": 4}]


def test_an_output_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingError, match="output-dir"):
        RunDirectory(tmp_path / "file" / "run")


def test_a_full_disk_is_said_in_one_line_and_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run-1")
    path = directory.write("summary.json", {"whole": True})
    path.with_name("summary.json.partial").symlink_to("/dev/full")
    with pytest.raises(StoreError, match=r"summary.json cannot be written below output-dir .*resume=true"):
        directory.write("summary.json", {"whole": False})
    assert json.loads(path.read_text()) == {"whole": True}


def test_the_table_shows_every_number_of_the_summary() -> None:
    summary = {
        "accuracy": {"untrained": accuracy(24, 100), "pdss": accuracy(47, 100), "dss": None},
        "left-out": [{"method": "pdss", "round": 1, "step": "distill", "node": 7, "why": "was lost"}] * 12,
        "unshared": [{"method": m, "round": 1, "node": 8, "why": "another model"} for m in ("standalone", "pdss")],
        "privacy": privacy_summary(statement(8.0)),
        "seconds": {"llm": 61.0},
        "llm": {"model": "tiny", "prompts": 200, "tokens": 4000},
        "versions": versions(),
    }
    text = render_summary(summary)
    for part in (
        "24.0%",
        "47.0%",
        "100",
        "left out",
        "without client 7 in pdss, round 1, distill: was lost",
        "and 2 more, all of them in summary.json",
        "client 8 not averaged, 2 times: another model",
        "epsilon per token 8",
        "per document 80",
        "30.0%",
        "200 prompts",
    ):
        assert part in text
    assert "no guarantee" in render_summary({**summary, "privacy": privacy_summary(statement(math.inf, "none"))})
    assert "no prompt was sent" in render_summary({**summary, "privacy": None})
