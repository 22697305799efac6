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

from pdss_fl.reproduce import ablation, everyday, real_data
from pdss_fl.reproduce.cells import GIVEN, Cell, run_cell
from pdss_fl.reproduce.runner import RESULTS, run_cells
from pdss_fl.reproduce.statistics import accuracies, mean, paired_difference


def small(tiny: Path, data: Path) -> dict[str, Any]:
    return {
        "data.source": "jsonl", "data.path": str(data), "data.train-examples": 8, "data.test-examples": 3,
        "privacy.vocabulary": "english", "privacy.vocabulary-size": 300, "privacy.embeddings": str(tiny),
        "llm.model": str(tiny), "llm.max-new-tokens": 4, "slm.hidden-size": 32, "slm.layers": 1, "distill.steps": 2,
        "distill.batch-size": 4, "distill.filter": "off", "distill.decoder": "none",
    }  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [
        {"question": f"what is {w}", "choices": ["man", "time"], "answer": "man", "rationale": f"{w} is a man"}
        for w in ["one", "two", "who", "she", "they", "when", "our", "all", "more", "new", "people", "year"]
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.mark.parametrize("method", ["untrained", "standalone", "pdss", "dss", GIVEN])
def test_a_cell_runs_the_clients_own_code(tiny: Path, data: Path, method: str) -> None:
    outcome = run_cell(Cell("group", method, 1, settings=small(tiny, data)))
    assert 0 <= outcome["correct"] <= outcome["total"] == 3
    assert outcome["prompts"] == (8 if method in ("pdss", "dss", GIVEN) else 0)
    assert outcome["rationales"] == (8 if method == GIVEN else outcome["rationales"])
    if method in ("untrained", "standalone"):
        assert outcome["rationales"] == 0


def test_a_key_names_everything_that_the_result_depends_on(tiny: Path, data: Path) -> None:
    cell = Cell("group", "pdss", 1, settings=small(tiny, data))
    others = [
        replace(cell, method="dss"), replace(cell, seed=2), replace(cell, partition=1), replace(cell, partitions=2),
        replace(cell, settings={**cell.settings, "privacy.epsilon": 3.0}),
    ]  # fmt: skip
    assert len({c.key for c in (cell, *others)}) == 6
    assert replace(cell, group="renamed").key == cell.key


def test_an_experiment_goes_on_where_it_was_killed(tiny: Path, data: Path, tmp_path: Path) -> None:
    wanted = [Cell("untrained", "untrained", seed, settings=small(tiny, data)) for seed in (0, 1)]
    first = run_cells(wanted[:1], tmp_path / "out", workers=1)
    lines = (tmp_path / "out" / RESULTS).read_text()
    (tmp_path / "out" / RESULTS).write_text(lines + '{"key": "cut in the midd')
    both = run_cells(wanted, tmp_path / "out", workers=1)
    assert both[0][1] == first[0][1]
    assert (tmp_path / "out" / RESULTS).read_text().startswith(lines)
    again = run_cells(wanted, tmp_path / "out", workers=1)
    assert [o for _, o in again] == [o for _, o in both]


def test_workers_end_with_an_experiment_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pdss_fl.reproduce.everyday", "--output", str(tmp_path), "--workers", "1"]
    experiment = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not experiment.children(recursive=True) or not (tmp_path / RESULTS).exists():
        assert experiment.poll() is None
        time.sleep(0.1)
    while len(workers := [p for p in experiment.children() if "spawn_main" in " ".join(p.cmdline())]) < 1:
        time.sleep(0.1)
    while not (tmp_path / RESULTS).read_text():  # the first cell is done, so the worker has started
        time.sleep(0.1)
    experiment.kill()
    experiment.wait()
    assert psutil.wait_procs(workers, timeout=60)[1] == []


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


def test_the_table_of_the_built_in_set_names_price_and_gain_of_every_method(tmp_path: Path) -> None:
    wanted = everyday.cells([0.1, 8.0], 2)
    assert {c.method for c in wanted} == {"untrained", "standalone", "dss", "pdss"}
    counts = {"untrained": 20, "standalone": 40, "dss": 60, "pdss": 50}
    found = everyday.rows([(c, {"correct": counts[c.method] + c.seed, "total": 100}) for c in wanted])
    everyday.write(found, tmp_path)
    table = (tmp_path / "table.md").read_text().splitlines()
    assert len(table) == 2 + 5
    eps = {row.group: row for row in found}
    assert eps["PDSS, epsilon 0.1"].attack < eps["PDSS, epsilon 8"].attack < eps["DSS"].attack == 1  # type: ignore[operator]
    assert eps["PDSS, epsilon 0.1"].document < 1 < 8 < eps["PDSS, epsilon 8"].document <= 24  # type: ignore[operator]
    assert eps["DSS"].gain is not None
    assert eps["DSS"].gain.value == pytest.approx(0.2)
    for name in ("document-epsilon", "attack-success"):
        assert (tmp_path / f"accuracy-over-{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_ablation_changes_one_thing_at_a_time() -> None:
    cells = ablation.cells(2)
    default = next(c for c in cells if c.group == ablation.DEFAULT)
    for cell in cells:
        if cell.method == "pdss" and cell.seed == default.seed and cell.group != ablation.DEFAULT:
            differing = dict(cell.run_settings().flat().items() ^ default.run_settings().flat().items())
            assert len({key.split(".")[0] for key in differing}) == 1


def test_real_data_runs_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "arc_easy").mkdir()
    cells = real_data.cells(tmp_path, tmp_path / "none", 1, {"slm.model": "some/model"})
    assert {c.group.split(":")[0] for c in cells} == {"ARC-Easy"}
    assert all(c.run_settings().slm.model == "some/model" for c in cells)
    with pytest.raises(SystemExit):
        real_data.main([str(tmp_path / "nowhere")])
