"""What a node tells of its test split: bounded by its policy, charged, and the same again for a retry."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message, MetricRecord, RecordDict

from pdss_fl.client import DistillationClient
from pdss_fl.config import RunSettings
from pdss_fl.errors import MessageError, SettingError
from pdss_fl.policy import NodePolicy
from pdss_fl.privacy import Ledger
from pdss_fl.privacy.counts import TEST_SPLIT
from pdss_fl.replies import reported_counts
from pdss_fl.report import render_summary
from pdss_fl.results import accuracy
from tests.harness import node
from tests.test_strategy import grid_of, start

ASKED = {"data.source": "jsonl", "slm.hidden-size": 32, "slm.layers": 1, "privacy.vocabulary-size": 200}
NOTHING = {"num-examples": 0, "correct": 0}


def client(
    folder: Path, tiny: Path, run: str = "1", asked: dict[str, Any] | None = None, questions: int = 50, **policy: Any
) -> DistillationClient:
    path = folder / f"data{questions}.jsonl"
    rows = [{"question": f"is it {i}?", "choices": ["yes", "no"], "answer": "yes"} for i in range(6 * questions)]
    path.write_text("\n".join(map(json.dumps, rows)))
    changes = {"privacy.embeddings": str(tiny), "privacy.vocabulary": "english", "data.test-examples": questions}
    settings = RunSettings.from_run_config({**ASKED, **changes, **(asked or {})})
    config = node(folder / "state", path, **{"allowed-models": f"scratch {tiny}", "metrics": "noisy", **policy})
    return DistillationClient(settings, NodePolicy.from_node_config(config), run)


def spent(folder: Path) -> float:
    return Ledger(folder / "state" / "ledger.jsonl", math.inf).spent(TEST_SPLIT)


def test_noise_is_the_default_of_a_deployed_node() -> None:
    policy = NodePolicy.from_node_config(
        {"state-dir": "/s", "data-path": "/d", "max-epsilon-per-token": 1.0, "max-epsilon-per-example": 1.0}
    )
    assert (policy.metrics, policy.max_epsilon_metrics) == ("noisy", 20.0)
    with pytest.raises(SettingError, match="max-epsilon-metrics"):
        NodePolicy.from_node_config({**node(Path("/s"), Path("/d")), "max-epsilon-metrics": 0.0})


@pytest.mark.parametrize(
    ("allowed", "asked", "told"),
    [
        ("full", "full", "full"), ("full", "noisy", "noisy"), ("full", "none", "none"), ("noisy", "full", "noisy"),
        ("noisy", "none", "none"), ("none", "full", "none"), ("none", "noisy", "none"),
    ],
)  # fmt: skip
def test_a_run_may_ask_for_less_than_the_node_allows_and_never_gets_more(
    tmp_path: Path, tiny: Path, allowed: str, asked: str, told: str
) -> None:
    counts = client(tmp_path, tiny, asked={"metrics": asked}, metrics=allowed).evaluate("untrained")
    assert counts.get("noise-epsilon") == (1.0 if told == "noisy" else None)
    assert (counts == NOTHING) == (told == "none")
    assert spent(tmp_path) == (1.0 if told == "noisy" else 0.0)


def test_counts_without_noise_are_about_twenty_questions_at_least(tmp_path: Path, tiny: Path) -> None:
    assert client(tmp_path, tiny, questions=19, metrics="full").evaluate("untrained") == NOTHING
    assert client(tmp_path, tiny, "2", questions=20, metrics="full").evaluate("untrained")["num-examples"] == 20
    assert client(tmp_path, tiny, "3", questions=19).evaluate("untrained")["num-examples"] == 19, "noise covers few"


def test_a_retry_gets_the_same_noise_and_every_other_evaluation_is_charged(tmp_path: Path, tiny: Path) -> None:
    asked = {"metrics-epsilon": 0.05, "num-server-rounds": 3}
    first = client(tmp_path, tiny, asked=asked).evaluate("untrained")
    assert client(tmp_path, tiny, asked=asked).evaluate("untrained") == first
    assert spent(tmp_path) == 0.05
    (tmp_path / "state" / "runs" / "1" / "evaluations" / "untrained-0.json").unlink()
    assert client(tmp_path, tiny, asked=asked).evaluate("untrained") == first, "the ledger alone keeps it, too"
    others = [client(tmp_path, tiny, asked=asked).evaluate("untrained", n) for n in (1, 2, 3)]
    others += [client(tmp_path, tiny, run, asked=asked).evaluate("untrained") for run in ("2", "3", "4")]
    assert spent(tmp_path) == pytest.approx(7 * 0.05)
    assert len({c["correct"] for c in others}) > 1, "the same model, the same questions, noise of its own"
    with pytest.raises(MessageError, match="server-round = 4"):
        client(tmp_path, tiny, asked=asked).evaluate("untrained", 4)


def test_a_spent_budget_ends_the_counts_and_not_the_run(tmp_path: Path, tiny: Path) -> None:
    told = [client(tmp_path, tiny, f"{n}", **{"max-epsilon-metrics": 2.5}).evaluate("untrained") for n in range(4)]
    assert [c["num-examples"] for c in told] == [50, 50, 0, 0]
    assert spent(tmp_path) == 2.0
    again = client(tmp_path, tiny, "0", **{"max-epsilon-metrics": 2.5})
    assert again.evaluate("untrained") == told[0], "what was told is told again"
    strategy = start(
        grid_of(tmp_path / "run", tiny, clients=2, policy={"metrics": "noisy", "max-epsilon-metrics": 0.5})
    )
    rows = [row for row in strategy.client_metrics if row["phase"] == "evaluate"]
    assert [(row["num-examples"], row["correct"]) for row in rows] == [(0, 0)] * 2


def test_noisy_counts_add_up_to_an_accuracy_that_knows_its_noise(tmp_path: Path, tiny: Path) -> None:
    strategy = start(grid_of(tmp_path, tiny, clients=3, policy={"metrics": "noisy"}))
    rows = [row for row in strategy.client_metrics if row["phase"] == "evaluate"]
    assert [row["num-examples"] for row in rows] == [20] * 3
    assert [row["noise-variance"] for row in rows] == [pytest.approx(1.841347, abs=1e-6)] * 3  # 2 e / (e - 1)^2


def test_an_interval_covers_the_share_in_nineteen_of_twenty_cases_also_with_noise() -> None:
    import numpy as np

    generator, covered, trials = np.random.default_rng(4), 0, 4000
    for share in (0.05, 0.5, 0.9):
        correct = generator.binomial(60, share, trials)
        geometric = [generator.geometric(1 - math.exp(-0.3), trials) for _ in range(2)]
        noisy = correct + geometric[0] - geometric[1]
        variance = 2 * math.exp(-0.3) / (1 - math.exp(-0.3)) ** 2
        rows = [accuracy(int(k), 60, variance) for k in noisy]
        covered += sum(row["low"] <= share <= row["high"] for row in rows)  # type: ignore[operator]
    assert 0.94 < covered / (3 * trials) < 0.975


@pytest.mark.parametrize("correct", [-7, 0, 31, 60, 71])
def test_a_noisy_sum_is_cut_when_it_is_shown_and_not_before(correct: int) -> None:
    row = accuracy(correct, 60, 12.0)
    assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1  # type: ignore[operator]
    assert row["value"] == min(max(correct / 60, 0), 1)
    assert (
        row["high"] - row["low"]
        > accuracy(min(max(correct, 0), 60), 60)["high"]
        - accuracy(  # type: ignore[operator]
            min(max(correct, 0), 60), 60
        )["low"]
    )


def test_what_is_not_reported_is_said_and_noise_is_named() -> None:
    summary = {
        "accuracy": {"untrained": accuracy(0, 0), "pdss": accuracy(31, 60, 4.0)},
        "privacy": None, "seconds": {}, "llm": {"model": "", "prompts": 0, "tokens": 0},
    }  # fmt: skip
    shown = render_summary(summary)
    assert "not reported" in shown
    assert "standard deviation 2.0 questions" in shown


@pytest.mark.parametrize(
    ("report", "counted"),
    [
        ({"num-examples": 20, "correct": -3, "noise-epsilon": 1.0}, True),
        ({"num-examples": 20, "correct": 25, "noise-epsilon": 1.0}, True),
        ({"num-examples": 20, "correct": -51, "noise-epsilon": 1.0}, False),
        ({"num-examples": 20, "correct": 71, "noise-epsilon": 1.0}, False),
        ({"num-examples": 20, "correct": 21, "noise-epsilon": 1e-9}, False),
        ({"num-examples": 20, "correct": 21, "noise-epsilon": math.nan}, False),
        ({"num-examples": -20, "correct": -21, "noise-epsilon": 1.0}, False),
    ],
)
def test_a_report_that_noise_cannot_explain_is_not_counted(report: dict[str, Any], counted: bool) -> None:
    request = Message(RecordDict(), 1, "evaluate")
    reply = Message(RecordDict({"metrics": MetricRecord(report)}), reply_to=request)
    assert bool(reported_counts(reply)) == counted
