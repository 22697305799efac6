"""Experiments: paired cells through the client's own code, resumed where they stopped, and their statistics."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from scipy import stats

from pdss_fl.reproduce import ablation
from pdss_fl.reproduce.cells import ATTACK, FEW_SHOT, FEW_SHOT_LLM, GIVEN, Cell, run_cell
from pdss_fl.reproduce.runner import RESULTS, run_cells
from pdss_fl.reproduce.statistics import accuracies, mean, paired_difference
from tests.experiments import questions, small


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return questions(tmp_path)


@pytest.mark.parametrize("method", ["untrained", "standalone", "pdss", "dss", GIVEN, FEW_SHOT, FEW_SHOT_LLM])
def test_a_cell_runs_the_clients_own_code(tiny: Path, data: Path, method: str) -> None:
    outcome = run_cell(Cell("group", method, 1, settings=small(tiny, data)))
    assert 0 <= outcome["correct"] <= outcome["total"] == 3
    assert outcome["prompts"] == (8 if method in ("pdss", "dss", GIVEN) else 0)
    assert outcome["rationales"] == (8 if method == GIVEN else outcome["rationales"])
    if outcome["prompts"] == 0:
        assert outcome["rationales"] == 0
    else:
        assert 0 <= outcome["right"] <= outcome["rationales"]  # the filter is off: all are kept


def test_an_attack_cell_tells_what_the_mechanism_releases(tiny: Path, data: Path) -> None:
    low, high = (
        run_cell(Cell("group", ATTACK, 0, settings={**small(tiny, data), "privacy.epsilon": epsilon}))
        for epsilon in (0.01, 20.0)
    )
    assert 0 < low["document"] <= 3 * 0.01 < high["document"] <= 3 * 20
    assert low["overlap"] < 0.1 < low["attack"] < high["attack"]
    # At epsilon 20 a word stays in its nearest set of 6, itself included; a few words are drawn, once each.
    assert 0.02 < high["overlap"] < 0.5


def test_a_key_names_everything_that_the_result_depends_on(tiny: Path, data: Path) -> None:
    cell = Cell("group", "pdss", 1, settings=small(tiny, data))
    others = [
        replace(cell, method="dss"), replace(cell, seed=2), replace(cell, partition=1), replace(cell, partitions=2),
        replace(cell, settings={**cell.settings, "privacy.epsilon": 3.0}),
    ]  # fmt: skip
    assert len({c.key for c in (cell, *others)}) == 6
    assert replace(cell, group="renamed").key == cell.key


def test_an_experiment_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    arguments = ["--methods", "zero-shot SLM", "--seeds", "3", "--workers", "1", "--output", str(tmp_path)]
    command = [sys.executable, "-m", "pdss_fl.reproduce.comparison", *arguments]
    experiment = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (tmp_path / RESULTS).exists() or not (tmp_path / RESULTS).read_text():
        assert experiment.poll() is None
        time.sleep(0.05)
    workers = [p for p in experiment.children() if "spawn_main" in " ".join(p.cmdline())]
    experiment.kill()
    experiment.wait()
    assert workers
    assert psutil.wait_procs(workers, timeout=60)[1] == []  # they end with their experiment
    before = (tmp_path / RESULTS).read_text()
    assert before.count("\n") < 3
    (tmp_path / RESULTS).write_text(before + '{"key": "cut in the midd')
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert f"{before.count(chr(10))} of 3 cells are done" in told
    after = (tmp_path / RESULTS).read_text()
    assert after.startswith(before)
    assert len([line for line in after.splitlines() if line.endswith("}")]) == 3
    assert "| zero-shot SLM |" in (tmp_path / "table.md").read_text()


def test_what_is_done_is_not_done_again(tiny: Path, data: Path, tmp_path: Path) -> None:
    wanted = [Cell("untrained", "untrained", seed, settings=small(tiny, data)) for seed in (0, 1)]
    lines = [{"key": cell.key, "correct": 1, "total": 2, "seconds": 0.1} for cell in wanted]
    (tmp_path / RESULTS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [o["correct"] for _, o in run_cells(wanted, tmp_path)] == [1, 1]
    assert len((tmp_path / RESULTS).read_text().splitlines()) == 2


def outcomes(shares: dict[str, list[int]]) -> list[tuple[Cell, dict[str, Any]]]:
    return [
        (Cell(group, "standalone", seed), {"correct": correct, "total": 100})
        for group, counts in shares.items()
        for seed, correct in enumerate(counts)
    ]


def test_differences_are_paired_by_seed_and_their_interval_is_students() -> None:
    found = outcomes({"base": [40, 50, 60], "ours": [45, 57, 66]})
    gain = paired_difference(found, "ours", "base")
    expected = stats.ttest_1samp([0.05, 0.07, 0.06], 0).confidence_interval(0.95)
    assert (gain.value, gain.low, gain.high, gain.n) == pytest.approx((0.06, expected.low, expected.high, 3))
    assert accuracies(found, "base") == {0: 0.4, 1: 0.5, 2: 0.6}
    assert mean([0.5]).high == math.inf
    assert mean([0.5]).interval == ""
    assert gain.interval == f"{100 * expected.low:+.1f} to {100 * expected.high:+.1f}"


def test_a_seed_that_one_side_lacks_is_left_out() -> None:
    assert paired_difference(outcomes({"base": [40], "ours": [45, 99]}), "ours", "base").n == 1


def test_clients_of_one_seed_count_by_their_questions() -> None:
    cells = [(Cell("a", "pdss", 0, p), {"correct": c, "total": t}) for p, (c, t) in enumerate([(1, 10), (9, 30)])]
    assert accuracies(cells, "a") == {0: 0.25}


def test_the_ablation_changes_one_thing_at_a_time() -> None:
    cells = ablation.cells(2)
    default = next(c for c in cells if c.group == ablation.DEFAULT)
    for cell in cells:
        if cell.method == "pdss" and cell.seed == default.seed and cell.group != ablation.DEFAULT:
            differing = dict(cell.run_settings().flat().items() ^ default.run_settings().flat().items())
            assert len({key.split(".")[0] for key in differing}) == 1
