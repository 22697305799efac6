"""The round trip through the real strategy and the real ClientApp, with clients that fail in every way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from pdss_fl.client_app import create_client_app
from pdss_fl.errors import MessageError, QuorumLost
from pdss_fl.messages import Finish, GenerationSettings, PromptBatch, Rationale, RationaleBatch
from pdss_fl.strategy import StepByStepDistillation
from tests.harness import EchoGenerator, LoopbackGrid, context, node, payload_bytes, small_run

WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school")


Fail = Callable[[Message], Message | bool | None]


def grid_of(tmp_path: Path, tiny: Path, clients: int = 3, fail: Fail = lambda _: False, **changes: Any) -> LoopbackGrid:
    contexts = {}
    tmp_path.mkdir(exist_ok=True)
    for i in range(1, clients + 1):
        path = tmp_path / f"data{i}.jsonl"
        records = [
            {"question": f"what {w} has client {i} {j}?", "choices": [w, "other", "new"], "answer": w}
            for w in WORDS
            for j in range(7)
        ]
        path.write_text("\n".join(json.dumps(r) for r in records))
        sent = {"privacy.question-words": 12, "privacy.choices": 4}
        config = small_run(tiny, **{**sent, "data.test-examples": 20, **changes})
        policy = {"allowed-models": f"scratch {tiny}", **changes.get("policy", {})}
        config.pop("policy", None)
        contexts[i] = context(i, node(tmp_path / f"state{i}", path, **policy), config)
    return LoopbackGrid(create_client_app(), contexts, fail)


def start(grid: LoopbackGrid, generator: Any = None, rounds: int = 1, **options: Any) -> StepByStepDistillation:
    strategy = StepByStepDistillation(generator or EchoGenerator(), **{"quorum": 1, **options})
    strategy.start(grid, ArrayRecord(), num_rounds=rounds)
    return strategy


def sent(grid: LoopbackGrid, message_type: str) -> list[Message]:
    return [m for m in grid.requests if m.metadata.message_type == message_type]


def test_every_client_gets_the_answers_to_its_own_prompts(tmp_path: Path, tiny: Path) -> None:
    grid = grid_of(tmp_path, tiny)
    generator = EchoGenerator()
    strategy = start(grid, generator, quorum=3)
    assert len(generator.seen) == 1, "the prompts of all clients go to the LLM together"
    assert strategy.usage.prompts == 24
    shown = [" ".join((p.question, *p.choices)) for p in generator.seen[0].prompts]
    answered = []
    for request in sent(grid, "train.distill"):
        batch = RationaleBatch.parse(request.content["rationales"]["payload"], 8)  # type: ignore[index,arg-type]
        answered += [r.text for r in batch.rationales]
    assert answered == shown
    assert set(strategy.statements) == {1, 2, 3}
    assert set(strategy.usage.seconds) == {"perturb", "llm", "distill", "evaluate"}


def test_each_client_keeps_its_own_model_and_reports_counts(tmp_path: Path, tiny: Path) -> None:
    strategy = start(grid_of(tmp_path, tiny, clients=2))
    rows = [r for r in strategy.client_metrics if r["phase"] == "evaluate"]
    assert [r["num-examples"] for r in rows] == [20, 20]
    for i in (1, 2):
        assert (tmp_path / f"state{i}" / "runs" / "1" / "slm" / "pdss" / "model.safetensors").is_file()


def test_standalone_asks_for_no_prompts_and_charges_nothing(tmp_path: Path, tiny: Path) -> None:
    grid = grid_of(tmp_path, tiny, clients=2)
    strategy = StepByStepDistillation(None, method="standalone")
    strategy.start(grid, ArrayRecord(), num_rounds=1)
    assert not sent(grid, "query.perturb")
    assert len(sent(grid, "train.distill")) == 2
    assert (tmp_path / "state1" / "ledger.jsonl").read_text() == ""


def test_rounds_ask_for_disjoint_parts_and_train_on_all_so_far(tmp_path: Path, tiny: Path) -> None:
    grid = grid_of(tmp_path, tiny, clients=1, **{"num-server-rounds": 2})
    generator = EchoGenerator()
    start(grid, generator, rounds=2)
    assert [len(b.prompts) for b in generator.seen] == [4, 4]
    kept = json.loads((tmp_path / "state1" / "runs" / "1" / "rationales" / "pdss.json").read_text())
    assert len(kept) == 8


def test_a_second_run_sends_the_stored_text_again_and_pays_nothing(tmp_path: Path, tiny: Path) -> None:
    grid = grid_of(tmp_path, tiny, clients=1)
    first, second = EchoGenerator(), EchoGenerator()
    start(grid, first)
    ledger = (tmp_path / "state1" / "ledger.jsonl").read_text()
    start(grid, second)
    assert (tmp_path / "state1" / "ledger.jsonl").read_text() == ledger
    assert {(p.question, p.choices) for p in first.seen[0].prompts} == {
        (p.question, p.choices) for p in second.seen[0].prompts
    }


@pytest.mark.parametrize("step", ["query.perturb", "train.distill", "evaluate"])
@pytest.mark.parametrize("how", ["lost", "error", "garbage"])
def test_a_failing_client_is_named_and_left_out(
    tmp_path: Path, tiny: Path, caplog: pytest.LogCaptureFixture, step: str, how: str
) -> None:
    def fail(message: Message) -> Message | bool | None:
        if message.metadata.dst_node_id != 2 or message.metadata.message_type != step:
            return False
        if how == "lost":
            return None
        if how == "error":
            return Message(Error(102, "no\x1b[31m such budget"), reply_to=message)
        return Message(RecordDict({"prompts": ConfigRecord({"payload": b"\xff\xff"})}), reply_to=message)

    grid = grid_of(tmp_path, tiny, fail=fail)
    strategy = start(grid, quorum=2)
    evaluated = {r["node"] for r in strategy.client_metrics if r["phase"] == "evaluate" and "correct" in r}
    if how == "garbage" and step != "query.perturb":
        assert {1, 3} <= evaluated, "a reply without counts is an answer that adds nothing"
        return
    assert {1, 3} <= evaluated
    assert "client 2" in caplog.text
    assert "\x1b" not in caplog.text
    if step == "query.perturb":
        assert {m.metadata.dst_node_id for m in sent(grid, "train.distill")} == {1, 3}


def test_below_the_quorum_the_run_ends_with_one_clear_line(tmp_path: Path, tiny: Path) -> None:
    def lose_two(message: Message) -> Message | bool | None:
        return None if message.metadata.dst_node_id > 1 else False

    grid = grid_of(tmp_path, tiny, fail=lose_two)
    with pytest.raises(QuorumLost, match=r"1 clients answered query\.perturb, fewer than quorum = 2"):
        start(grid, quorum=2)
    assert not sent(grid, "train.distill")


def test_wrong_ordinals_from_the_server_touch_nothing(tmp_path: Path, tiny: Path) -> None:
    grid = grid_of(tmp_path, tiny, clients=1)
    config = ConfigRecord({"method": "pdss", "server-round": 1})
    ask = Message(RecordDict({"config": config}), 1, "query.perturb")
    assert not grid.app(ask, grid.contexts[1]).has_error()
    foreign = ConfigRecord({"payload": RationaleBatch((), "m").serialize() or b"\x08\x01"})
    reply = grid.app(
        Message(RecordDict({"config": config, "rationales": foreign}), 1, "train.distill"), grid.contexts[1]
    )
    assert reply.has_error()
    assert reply.error.code == 105
    assert not (tmp_path / "state1" / "runs" / "1" / "rationales").exists()
    assert not (tmp_path / "state1" / "runs" / "1" / "slm" / "pdss").exists()


@pytest.mark.parametrize(
    ("changes", "code", "what"),
    [
        ({"privacy.mechanism": "magic"}, 101, "privacy.mechanism"),
        ({"privacy.mechanism": "identity"}, 102, "allowed-mechanisms"),
        ({"privacy.epsilon": 101.0}, 102, "max-epsilon-per-token"),
        ({"privacy.epsilon": 0}, 101, "privacy.epsilon"),
        ({"policy": {"max-epsilon-per-example": 1.0}}, 104, "max-epsilon-per-example"),
        ({"slm.model": "somebody/else"}, 102, "slm.model"),
    ],
)
def test_a_refusal_reaches_the_strategy_as_a_code_and_a_public_line(
    tmp_path: Path, tiny: Path, changes: dict[str, Any], code: int, what: str
) -> None:
    grid = grid_of(tmp_path, tiny, clients=1, **changes)
    with pytest.raises(QuorumLost):
        start(grid)
    (reply,) = grid.replies
    assert reply.error.code == code
    assert what in str(reply.error.reason)


def test_metrics_none_reports_no_count_of_the_private_data(tmp_path: Path, tiny: Path) -> None:
    strategy = start(grid_of(tmp_path, tiny, clients=1, policy={"metrics": "none"}))
    (row,) = (r for r in strategy.client_metrics if r["phase"] == "evaluate")
    assert row["num-examples"] == row["correct"] == 0


def test_the_generation_settings_reach_the_llm(tmp_path: Path, tiny: Path) -> None:
    asked = []

    class Recording(EchoGenerator):
        def generate(self, batch: Any, settings: GenerationSettings, *rest: Any) -> Any:
            asked.append(settings)
            return super().generate(batch, settings, *rest)

    start(grid_of(tmp_path, tiny, clients=1), Recording(), generation=GenerationSettings(7, ("x",)))
    assert asked == [GenerationSettings(7, ("x",))]


def ask(kind: str, grid: LoopbackGrid, **records: ConfigRecord) -> Message:
    config = ConfigRecord({"method": "pdss", "server-round": 1})
    return grid.app(Message(RecordDict({"config": config, **records}), 1, kind), grid.contexts[1])


def test_a_retried_request_gets_the_same_prompts_in_the_same_order(tmp_path: Path, tiny: Path) -> None:
    grid = grid_of(tmp_path, tiny, clients=1)
    first, second = (payload_bytes(ask("query.perturb", grid)) for _ in range(2))
    assert first[first.index(b"payload") :] == second[second.index(b"payload") :]


def test_a_retried_distillation_trains_nothing_again(tmp_path: Path, tiny: Path) -> None:
    grid = grid_of(tmp_path, tiny, clients=1)
    start(grid)
    weights = tmp_path / "state1" / "runs" / "1" / "slm" / "pdss" / "model.safetensors"
    before = weights.read_bytes()
    (request,) = sent(grid, "train.distill")
    assert not grid.app(request, grid.contexts[1]).has_error()
    assert weights.read_bytes() == before


@pytest.mark.parametrize("decision", ["drop", "correct", "agree"])
def test_what_a_client_reports_does_not_tell_which_rationales_it_kept(
    tmp_path: Path, tiny: Path, decision: str
) -> None:
    """A server that writes the answers itself learns no label from the reply to any of them."""
    reports = set()
    for choice in range(3):
        grid = grid_of(tmp_path / str(choice), tiny, clients=1, **{"distill.filter": decision, "slm.max-tokens": 32})
        asked = PromptBatch.parse(ask("query.perturb", grid).content["prompts"]["payload"])  # type: ignore[index,arg-type]
        texts = [f"{'long ' * 60}So the answer is {p.choices[choice % len(p.choices)]}." for p in asked.prompts]
        rows = tuple(Rationale(i, text, Finish.STOP, 1) for i, text in enumerate(texts))
        payload = ConfigRecord({"payload": RationaleBatch(rows, "m").serialize()})
        reply = ask("train.distill", grid, rationales=payload)
        reports.add(str(dict(reply.content["metrics"])))  # type: ignore[call-overload]
    assert reports == {"{'num-examples': 8}"}


def test_a_client_that_has_not_trained_is_not_counted_for_a_method(tmp_path: Path, tiny: Path) -> None:
    def lose_training(message: Message) -> Message | bool | None:
        return None if (message.metadata.dst_node_id, message.metadata.message_type) == (2, "train.distill") else False

    grid = grid_of(tmp_path, tiny, fail=lose_training)
    start(grid, quorum=2)
    assert {m.metadata.dst_node_id for m in sent(grid, "evaluate")} == {1, 3}
    reply = grid.app(sent(grid, "evaluate")[0], grid_of(tmp_path / "new", tiny, clients=1).contexts[1])
    assert reply.has_error(), "a client without the method's model says so"


@pytest.mark.parametrize(
    "report", [{"num-examples": 5, "correct": 9}, {"correct": 3}, {"num-examples": -4, "correct": -5}]
)
def test_counts_that_cannot_be_are_not_counted(tmp_path: Path, tiny: Path, report: dict[str, int]) -> None:
    def lie(message: Message) -> Message | bool | None:
        if (message.metadata.dst_node_id, message.metadata.message_type) != (2, "evaluate"):
            return False
        return Message(RecordDict({"metrics": MetricRecord(dict(report))}), reply_to=message)

    strategy = start(grid_of(tmp_path, tiny, fail=lie), quorum=2)
    rows = [r for r in strategy.client_metrics if r["phase"] == "evaluate"]
    assert sum(int(r.get("num-examples", 0)) for r in rows) == 40


def test_a_client_whose_prompts_the_llm_refuses_is_left_out_alone(
    tmp_path: Path, tiny: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Choosy(EchoGenerator):
        def generate(self, batch: PromptBatch, *rest: Any) -> Any:
            if len(batch.prompts) != 8 or len(self.seen) == 1:
                self.seen.append(batch)
                raise MessageError("too long")
            return super().generate(batch, *rest)

    grid = grid_of(tmp_path, tiny)
    strategy = start(grid, Choosy(), quorum=1)
    assert "the LLM refuses its prompts: too long" in caplog.text
    for row in strategy.left_out:
        assert {**row, "node": 0} == {
            "method": "pdss", "round": 1, "step": "query.perturb", "node": 0,
            "why": "left out: the LLM refuses its prompts: too long",
        }  # fmt: skip
    assert (
        len({row["node"] for row in strategy.left_out} | {m.metadata.dst_node_id for m in sent(grid, "train.distill")})
        == 3
    )
    assert len(sent(grid, "train.distill")) < 3


def test_more_rounds_than_examples_are_named(tmp_path: Path, tiny: Path) -> None:
    grid = grid_of(tmp_path, tiny, clients=1, **{"num-server-rounds": 9})
    config = ConfigRecord({"method": "pdss", "server-round": 9})
    reply = grid.app(Message(RecordDict({"config": config}), 1, "query.perturb"), grid.contexts[1])
    assert "num-server-rounds = 9" in str(reply.error.reason)


def test_a_lost_ledger_is_named_and_nothing_is_trained(tmp_path: Path, tiny: Path) -> None:
    grid = grid_of(tmp_path, tiny, clients=1)
    count = len(PromptBatch.parse(ask("query.perturb", grid).content["prompts"]["payload"]).prompts)  # type: ignore[index,arg-type]
    (tmp_path / "state1" / "ledger.jsonl").unlink()
    rows = tuple(Rationale(i, "text", Finish.STOP, 1) for i in range(count))
    payload = ConfigRecord({"payload": RationaleBatch(rows, "m").serialize()})
    reply = ask("train.distill", grid, rationales=payload)
    assert reply.error.code == 107
    assert "ledger" in str(reply.error.reason)
