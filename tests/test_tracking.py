"""Tracking: TensorBoard's files hold what clients reported, and a callback that fails ends no run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pdss_fl.client_app import create_client_app
from pdss_fl.config import RunSettings
from pdss_fl.server_app import run_comparison
from tests.harness import LoopbackGrid, context, node, number_questions, small_run


class Told:
    """Keeps what it is told, as the tracker of any other service would send it on."""

    def __init__(self) -> None:
        self.metrics: list[tuple[str, int, str, dict[str, float]]] = []
        self.summary: Mapping[str, Any] | None = None

    def on_metrics(self, method: str, server_round: int, phase: str, metrics: Mapping[str, float]) -> None:
        """Keep one step."""
        self.metrics.append((method, server_round, phase, dict(metrics)))

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """Keep the summary."""
        self.summary = summary


class Broken(Told):
    """Fails at once, like a tracker whose server is away."""

    def on_metrics(self, *_: Any) -> None:
        """Fail."""
        raise ConnectionError("away")


def test_a_run_is_followed_round_by_round(tmp_path: Path, tiny: Path) -> None:
    own = {"methods": "standalone", "num-server-rounds": 2, "min-available-nodes": 1, "tracking": "tensorboard"}
    config = small_run(tiny, **own, **{"output-dir": str(tmp_path / "runs")})
    data = number_questions(tmp_path / "data.jsonl")
    policy = node(tmp_path / "state", data, **{"allowed-models": f"scratch {tiny}"})
    grid = LoopbackGrid(create_client_app(), {1: context(1, policy, config)})
    told, broken = Told(), Broken()
    path = run_comparison(grid, RunSettings.from_run_config(config), 5, [broken, told])

    assert [step[:3] for step in told.metrics] == [
        ("standalone", 1, "distill"), ("standalone", 1, "evaluate"),
        ("standalone", 2, "distill"), ("standalone", 2, "evaluate"),
    ]  # fmt: skip
    last = told.metrics[-1][3]
    assert last["accuracy"] == last["correct"] / 24
    assert told.summary == json.loads((Path(path) / "summary.json").read_text())
    assert broken.summary is None, "after its failure it is told nothing more"

    written = EventAccumulator(str(Path(path) / "tensorboard"))
    written.Reload()
    points = written.Scalars("evaluate/standalone/accuracy")
    assert [point.step for point in points] == [1, 2]
    assert abs(points[-1].value - last["accuracy"]) < 1e-6
