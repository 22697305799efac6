"""Clients that differ take part in one run: small model, data format, mechanism and epsilon are each one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict

import pdss_fl.client_app
from pdss_fl.client import DistillationClient
from pdss_fl.client_app import create_client_app
from pdss_fl.config import RunSettings
from pdss_fl.errors import PolicyRefusal, QuorumLost, SettingError, StoreError
from pdss_fl.fairness import by_client
from pdss_fl.messages import Finish, PromptBatch, Rationale, RationaleBatch
from pdss_fl.policy import NodePolicy
from pdss_fl.strategy import StepByStepDistillation
from tests.harness import EchoGenerator, LoopbackGrid, context, node, payload_bytes, small_run

WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school")


def write_data(directory: Path) -> tuple[Path, Path]:
    """Write questions as JSON lines and, with other column names, other labels and letters for answers, as CSV."""
    rows = [(f"what {w} has it {j}?", (w, "other", "new")) for w in WORDS for j in range(7)]
    plain, table = directory / "plain.jsonl", directory / "table.csv"
    plain.write_text("\n".join(json.dumps({"question": q, "choices": c, "answer": c[0]}) for q, c in rows))
    lines = [f"{q},yes|no|perhaps|never,{'ABCD'[i % 4]},zanzibar" for i, (q, _) in enumerate(rows)]
    table.write_text("\n".join(["stem,options,key,secret", *lines]))
    return plain, table


def run_config(tiny: Path, **changes: Any) -> dict[str, Any]:
    return small_run(tiny, **{"data.test-examples": 20, **changes})


CSV = {"data-format": "csv", "data-fields": "question=stem choices=options answer=key"}


def start(contexts: dict[int, Context], quorum: int = 2) -> tuple[StepByStepDistillation, LoopbackGrid]:
    grid = LoopbackGrid(create_client_app(), contexts)
    strategy = StepByStepDistillation(EchoGenerator(), quorum=quorum)
    strategy.start(grid, ArrayRecord(), num_rounds=1)
    return strategy, grid


def test_nodes_with_choices_of_their_own_run_together(tmp_path: Path, tiny: Path) -> None:
    plain, table = write_data(tmp_path)
    limits = {"allowed-models": f"scratch {tiny}"}
    own = {
        **CSV, "slm-model": str(tiny), "privacy-mechanism": "randomized-response", "privacy-epsilon": 1.5,
        "max-epsilon-per-token": 2.0,
    }  # fmt: skip
    config = run_config(tiny, **{"privacy.epsilon": 6.0, "data.fields": "question=none"})
    strategy, grid = start(
        {
            1: context(1, node(tmp_path / "s1", plain, **limits), config),
            2: context(2, node(tmp_path / "s2", table, **{"allowed-models": "scratch " + str(tiny), **own}), config),
        }
    )
    said = {i: (s.mechanism, s.epsilon_per_token) for i, s in strategy.statements.items()}
    assert said[1] == ("staircase", 6.0)
    assert said[2][0] == "randomized-response"
    assert said[2][1] <= 1.5
    architectures = {
        i: json.loads((tmp_path / f"s{i}/runs/1/slm/pdss/config.json").read_text())["vocab_size"] for i in (1, 2)
    }
    assert architectures[2] == json.loads((tiny / "config.json").read_text())["vocab_size"] != architectures[1]
    entries = by_client(strategy.client_metrics, {"pdss": strategy.statements})
    assert [e["privacy"]["mechanism"] for e in entries] == ["staircase", "randomized-response"]
    assert [e["accuracy"]["pdss"]["n"] for e in entries] == [20, 20]
    assert not any(b"zanzibar" in payload_bytes(m) for m in grid.replies)


def test_a_run_cannot_say_which_column_of_a_nodes_file_is_the_question(tmp_path: Path, tiny: Path) -> None:
    plain, _ = write_data(tmp_path)
    contexts = {}
    for i, fields in ((1, ""), (2, "question=answer answer=question")):
        config = run_config(tiny, **{"data.fields": fields, "data.answers": "letter"})
        policy = node(tmp_path / f"s{i}", plain, **{"allowed-models": f"scratch {tiny}"})
        contexts[i] = context(i, policy, config)
    strategy, _ = start(contexts)
    assert set(strategy.statements) == {1, 2}, "the run's mapping would have refused every line"


def test_a_choice_leads_nowhere_beyond_the_nodes_own_limits(tmp_path: Path, tiny: Path) -> None:
    plain, _ = write_data(tmp_path)
    limits = {"allowed-models": f"scratch {tiny}", "max-epsilon-per-token": 2.0}
    for own, what in (
        ({"privacy-epsilon": 3.0}, "max-epsilon-per-token"),
        ({"privacy-mechanism": "identity"}, "allowed-mechanisms"),
    ):
        contexts = {1: context(1, node(tmp_path / what, plain, **{**limits, **own}), run_config(tiny))}
        grid = LoopbackGrid(create_client_app(), contexts)
        with pytest.raises(QuorumLost):
            StepByStepDistillation(EchoGenerator()).start(grid, ArrayRecord(), num_rounds=1)
        assert what in str(grid.replies[0].error.reason)


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"privacy-epsilon": 2.0}, StoreError, r"put back what of this node's own privacy-\* choices was changed"),
        ({"max-epsilon-per-token": 2.0}, PolicyRefusal, "above this node's max-epsilon-per-token = 2"),
    ],
)
def test_a_policy_that_changes_while_a_run_is_on_holds_from_then_on_and_says_so(
    tmp_path: Path, tiny: Path, changed: dict[str, float], error: type[Exception], said: str
) -> None:
    plain, _ = write_data(tmp_path)
    settings = RunSettings.from_run_config(run_config(tiny))

    def client(**own: Any) -> DistillationClient:
        policy = node(tmp_path / "s1", plain, **{"allowed-models": f"scratch {tiny}", **own})
        return DistillationClient(settings, NodePolicy.from_node_config(policy), "1")

    prompts = PromptBatch.parse(client().perturb("pdss", 1)).prompts
    ledger = (tmp_path / "s1" / "ledger.jsonl").read_bytes()
    answers = RationaleBatch(tuple(Rationale(p.ordinal, "so it is", Finish.STOP, 3) for p in prompts), "an-llm")
    with pytest.raises(error, match=said):
        client(**changed).distill("pdss", 1, answers.serialize())
    assert (tmp_path / "s1" / "ledger.jsonl").read_bytes() == ledger
    assert client().distill("pdss", 1, answers.serialize())["num-examples"] == len(prompts), "put back, it goes on"


@pytest.mark.parametrize(
    ("own", "what"),
    [
        ({"privacy-epsilon": -1.0}, "privacy.epsilon"),
        ({"slm-layers": "two"}, "slm.layers"),
        ({"data-format": "everyday"}, "data-format"),
        ({"data-format": "xml"}, "data.source"),
        ({"privacy-epsilons": 1.0}, "unknown keys"),
    ],
)
def test_a_bad_choice_is_refused_by_name(tmp_path: Path, own: dict[str, Any], what: str) -> None:
    with pytest.raises(SettingError, match=what):
        NodePolicy.from_node_config(node(tmp_path, tmp_path / "d.jsonl", **own))


@pytest.mark.parametrize("chosen", [True, False])
def test_the_place_of_a_nodes_own_model_stays_with_it(tmp_path: Path, tiny: Path, chosen: bool) -> None:
    """A path that the run names, as far as the node allows it, is the run's to hear of again."""
    model, (plain, _) = str(tmp_path / "kanarienvogel"), write_data(tmp_path)
    own = {"slm-model": model} if chosen else {"allowed-models": f"{tiny} {model}"}
    policy = node(tmp_path / "s1", plain, **{"allowed-models": f"scratch {tiny}", **own})
    config = run_config(tiny, **({} if chosen else {"slm.model": model}))
    ask = Message(RecordDict({"config": ConfigRecord({"method": "standalone", "server-round": 1})}), 1, "train.distill")
    reply = create_client_app()(ask, context(1, policy, config))
    assert reply.error.code == 101
    assert "slm.model" in str(reply.error.reason)
    assert ("kanarienvogel" in str(reply.error.reason)) is not chosen


def test_a_data_set_may_be_an_id_and_nothing_else_may(tmp_path: Path) -> None:
    policy = NodePolicy.from_node_config(node(tmp_path, Path("someone/else"), **{"data-format": "datasets"}))
    assert str(policy.data_path) == "someone/else"
    with pytest.raises(SettingError, match="relative path"):
        NodePolicy.from_node_config(node(tmp_path, Path("someone/else"), **CSV))
    with pytest.raises(PolicyRefusal, match="client-choices"):
        policy.check_run(RunSettings.from_run_config({"client-choices": "/c.toml"}))


def test_simulated_clients_differ_by_a_file(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, table = write_data(tmp_path)
    choices = tmp_path / "clients.toml"
    choices.write_text(
        f'[client-1]\nslm-model = "{tiny}"\nprivacy-epsilon = 2.0\nmetrics = "none"\ndata-path = "{table}"\n'
        + "\n".join(f'{key} = "{value}"' for key, value in CSV.items())
    )
    monkeypatch.setattr(pdss_fl.client_app, "in_simulation", lambda: True)
    config = run_config(
        tiny, **{"data.path": str(plain), "client-choices": str(choices), "output-dir": str(tmp_path / "out")}
    )
    contexts = {11 + i: context(11 + i, {"partition-id": i, "num-partitions": 2}, config) for i in range(2)}
    strategy, _ = start(contexts)
    entries = by_client(strategy.client_metrics, {"pdss": strategy.statements})
    assert [(e["client"], e["privacy"]["epsilon_per_token"]) for e in entries] == [(0, 7.0), (1, 2.0)]
    assert entries[0]["accuracy"]["pdss"]["n"] > 0
    assert entries[1]["accuracy"]["pdss"] is None
    saved = tmp_path / "out" / "run-1" / "clients" / "client-1" / "slm" / "pdss" / "config.json"
    assert json.loads(saved.read_text())["vocab_size"] == json.loads((tiny / "config.json").read_text())["vocab_size"]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[client-0]\nslm-modell = 'x'", "slm-modell"),
        ("[hospital]\nslm-model = 'x'", "hospital"),
        ("[client-0]\nmetrics = 'loud'", "metrics"),
        ("[client-0]\nprivacy-epsilon = 0.0", "privacy.epsilon"),
        ("[client-0", "not readable TOML"),
    ],
)
def test_a_file_of_choices_that_nobody_reads_is_refused(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "clients.toml"
    path.write_text(text)
    settings = RunSettings.from_run_config({"client-choices": str(path)})
    with pytest.raises(SettingError, match=what):
        NodePolicy.simulation(tmp_path, settings, 0)
