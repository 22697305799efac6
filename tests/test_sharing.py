"""Clients that share their small model: the average is FedAvg's, everybody goes on from it, and nobody has to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from pdss_fl.averages import keep_average, kept_average
from pdss_fl.averaging import average_weights
from pdss_fl.client_app import create_client_app
from pdss_fl.config import RunSettings
from pdss_fl.errors import MessageError, QuorumLost, SettingError, StoreError
from pdss_fl.journal import Journal
from pdss_fl.privacy import Ledger
from pdss_fl.slm.model import SlmSettings, SmallModel, create_slm
from pdss_fl.slm.sharing import load_shared, shared_state
from pdss_fl.strategy import StepByStepDistillation
from tests.harness import EchoGenerator, LoopbackGrid, context, node, small_run

WORDS = ("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school")
CANARY = "zanzibarqx"


def grid_of(tmp_path: Path, tiny: Path, policies: list[dict[str, Any]], **changes: Any) -> LoopbackGrid:
    contexts = {}
    for i, policy in enumerate(policies, start=1):
        path = tmp_path / f"data{i}.jsonl"
        rows = [
            {"question": f"what {w} has {CANARY} {i} {j}?", "choices": [w, "other"], "answer": w}
            for w in WORDS
            for j in range(7)
        ]
        path.write_text("\n".join(json.dumps(row) for row in rows))
        sizes = {"data.train-examples": 8 * i, "data.test-examples": 20, "distill.steps": 4, "num-server-rounds": 2}
        config = small_run(tiny, **{**sizes, "sharing.mode": "fedavg", **changes})
        limits = {"allowed-models": f"scratch {tiny}", "allow-sharing": "any", **policy}
        contexts[i] = context(i, node(tmp_path / f"s{i}", path, **limits), config)
    return LoopbackGrid(create_client_app(), contexts)


def start(grid: LoopbackGrid, method: str = "standalone", sharing: bool = True, quorum: int = 2) -> Any:
    strategy = StepByStepDistillation(EchoGenerator(), method=method, quorum=quorum, sharing=sharing)
    return strategy.start(grid, ArrayRecord(), num_rounds=2)


def weights(tmp_path: Path, client: int, method: str) -> dict[str, torch.Tensor]:
    return load_file(tmp_path / f"s{client}" / "runs" / "1" / "slm" / method / "model.safetensors")


def trained(grid: LoopbackGrid) -> list[dict[str, np.ndarray[Any, Any]]]:
    """What clients sent after training, by round and client."""
    replies = [m for m in grid.replies if m.metadata.message_type == "train.distill"]
    replies.sort(key=lambda m: (m.metadata.group_id, m.metadata.src_node_id))
    records = [m.content["arrays"] for m in replies]
    return [{name: array.numpy() for name, array in record.items()} for record in records]  # type: ignore[union-attr]


@pytest.mark.parametrize("method", ["standalone", "pdss"])
def test_all_clients_end_with_the_average_by_numbers_of_examples(tmp_path: Path, tiny: Path, method: str) -> None:
    grid = grid_of(tmp_path, tiny, [{}, {}])
    result = start(grid, method)
    sent = trained(grid)
    assert len(sent) == 4
    for name, value in result.arrays.items():
        np.testing.assert_allclose(value.numpy(), sent[2][name] / 3 + sent[3][name] * 2 / 3, atol=1e-6)
    one, two = (weights(tmp_path, i, method) for i in (1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not np.allclose(sent[2]["model.embed_tokens.weight"], sent[3]["model.embed_tokens.weight"])


def test_the_second_round_goes_on_from_the_average(tmp_path: Path, tiny: Path) -> None:
    grid = grid_of(tmp_path, tiny, [{}, {}])
    start(grid)
    asked = [m for m in grid.requests if m.metadata.message_type == "train.distill"]
    assert ["arrays" in m.content for m in asked] == [False, False, True, True]
    first = trained(grid)[:2]
    carried = {name: array.numpy() for name, array in asked[2].content["arrays"].items()}  # type: ignore[union-attr]
    for name, value in carried.items():
        np.testing.assert_allclose(value, first[0][name] / 3 + first[1][name] * 2 / 3, atol=1e-6)


def test_a_shared_model_knows_no_private_word(tmp_path: Path, tiny: Path) -> None:
    start(grid_of(tmp_path, tiny, [{}, {}]))
    tokens = json.loads((tmp_path / "s1/runs/1/slm/standalone/tokenizer.json").read_text())["model"]["vocab"]
    assert not any(CANARY in token for token, _ in tokens)
    alone = tmp_path / "alone"
    alone.mkdir()
    start(grid_of(alone, tiny, [{}, {}], **{"sharing.mode": "off"}), sharing=False)
    kept = json.loads((alone / "s1/runs/1/slm/standalone/tokenizer.json").read_text())["model"]["vocab"]
    assert any(CANARY in token for token, _ in kept), "a model that stays has its client's words"


def test_without_sharing_no_weights_leave(tmp_path: Path, tiny: Path) -> None:
    grid = grid_of(tmp_path, tiny, [{}, {}], **{"sharing.mode": "off"})
    start(grid, sharing=False)
    assert not any("arrays" in m.content for m in (*grid.requests, *grid.replies))
    config = ConfigRecord({"method": "standalone", "server-round": 1})
    content = RecordDict({"config": config, "arrays": ArrayRecord({"w": Array(np.zeros(1, np.float32))})})
    reply = grid.app(Message(content, 1, "evaluate"), grid.contexts[1])
    assert reply.error.code == 105, "a server cannot have its own weights tried on private questions"


def test_the_model_that_all_methods_start_from_is_not_the_servers_to_replace(tmp_path: Path, tiny: Path) -> None:
    grid = grid_of(tmp_path, tiny, [{}, {}])
    result = start(grid)
    config = ConfigRecord({"method": "untrained", "server-round": 0})
    reply = grid.app(Message(RecordDict({"config": config, "arrays": result.arrays}), 1, "evaluate"), grid.contexts[1])
    assert reply.error.code == 105


@pytest.mark.parametrize(
    ("policy", "code", "what"),
    [
        ({"allow-sharing": "none"}, 102, "allow-sharing"),
        ({"allow-sharing": "dp-sgd"}, 102, "without privacy"),
    ],
)
def test_who_may_not_share_is_refused_before_any_work(
    tmp_path: Path, tiny: Path, policy: dict[str, Any], code: int, what: str
) -> None:
    grid = grid_of(tmp_path, tiny, [{}, policy])
    with pytest.raises(QuorumLost):
        start(grid)
    (refused,) = (m for m in grid.replies if m.has_error())
    assert (refused.error.code, what in str(refused.error.reason)) == (code, True)
    assert not (tmp_path / "s2" / "runs").exists()


@pytest.mark.parametrize("late", [False, True], ids=["", "first seen in round 2"])
def test_who_chose_another_model_takes_part_without_sharing(tmp_path: Path, tiny: Path, late: bool) -> None:
    """Also where the strategy cannot know of it yet, and sends the average of the others."""
    own = {"slm-layers": 2, "allow-sharing": "none"}
    grid = grid_of(tmp_path, tiny, [{}, {}, own])
    if late:
        grid.fail = lambda m: None if (m.metadata.group_id, m.metadata.dst_node_id) == ("1", 3) else False
    strategy = StepByStepDistillation(EchoGenerator(), method="standalone", quorum=2, sharing=True)
    result = strategy.start(grid, ArrayRecord(), num_rounds=2)
    got = {
        (m.metadata.message_type, m.metadata.group_id) for m in grid.requests
        if m.metadata.dst_node_id == 3 and "arrays" in m.content
    }  # fmt: skip
    assert got == ({("train.distill", "2")} if late else set())
    assert not any("arrays" in m.content for m in grid.replies if m.metadata.src_node_id == 3)
    assert [row["num-examples"] for row in strategy.client_metrics if row["node"] == 3][-1] == 20, "it evaluated"
    sent, alone = trained_by(grid, "2"), weights(tmp_path, 3, "standalone")
    for name, value in result.arrays.items():
        np.testing.assert_allclose(value.numpy(), sent[1][name] / 3 + sent[2][name] * 2 / 3, atol=1e-6)
    assert any(".layers.1." in name for name in alone), "its model is the one that it chose"
    whom = {(row["round"], row["node"], "of its own" in row["why"]) for row in strategy.unshared}
    assert whom == {(r, 3, True) for r in ((2,) if late else (1, 2))}


def trained_by(grid: LoopbackGrid, server_round: str) -> dict[int, dict[str, np.ndarray[Any, Any]]]:
    return {
        m.metadata.src_node_id: numbers(m)
        for m in grid.replies
        if (m.metadata.message_type, m.metadata.group_id) == ("train.distill", server_round) and "arrays" in m.content
    }


def test_one_clients_weights_are_handed_to_nobody(tmp_path: Path, tiny: Path) -> None:
    """After a round in which one alone shared, the average of the round before is still what all have."""
    grid = grid_of(tmp_path, tiny, [{}, {}, {"slm-layers": 2}])
    grid.fail = lambda m: None if (m.metadata.group_id, m.metadata.dst_node_id) == ("2", 2) else False
    strategy = StepByStepDistillation(EchoGenerator(), method="standalone", quorum=2, sharing=True)
    result = strategy.start(grid, ArrayRecord(), num_rounds=2)
    first = trained_by(grid, "1")
    for name, value in result.arrays.items():
        np.testing.assert_allclose(value.numpy(), first[1][name] / 3 + first[2][name] * 2 / 3, atol=1e-6)
    assert [row["node"] for row in strategy.unshared if "no average" in row["why"]] == [1]
    alone = tmp_path / "alone"
    alone.mkdir()
    grid = grid_of(alone, tiny, [{}, {"slm-layers": 2}])
    assert not start(grid).arrays
    assert not any("arrays" in m.content for m in grid.requests)


def test_what_was_trained_while_a_client_did_not_share_never_leaves(tmp_path: Path, tiny: Path) -> None:
    """Its model knows its private words; then its owner takes back the choice that kept it from sharing."""
    grid = grid_of(tmp_path, tiny, [{"slm-layers": 2}])
    assert not ask(grid, 1, "train.distill", 1).has_error()
    del grid.contexts[1].node_config["slm-layers"]
    assert ask(grid, 1, "train.distill", 1).error.code == 105
    assert ask(grid, 1, "evaluate", 1).error.code == 105


def test_a_resumed_run_knows_who_does_not_share_and_what_the_last_average_was(tmp_path: Path, tiny: Path) -> None:
    grid = grid_of(tmp_path, tiny, [{}, {}, {"slm-layers": 2}], **{"num-server-rounds": 4})
    grid.fail = lambda m: None if m.metadata.group_id in ("2", "3") and m.metadata.dst_node_id == 2 else False

    def resumed(rounds: int) -> tuple[StepByStepDistillation, Any]:
        journal = Journal(tmp_path / "journal.jsonl")
        one = StepByStepDistillation(EchoGenerator(), method="standalone", quorum=2, journal=journal, sharing=True)
        return one, one.start(grid, ArrayRecord(), num_rounds=rounds)

    _, before = resumed(3)
    asked = len(grid.requests)
    strategy, after = resumed(4)
    handed = [m for m in grid.requests[asked:] if m.metadata.message_type == "train.distill"]
    assert {m.metadata.dst_node_id: "arrays" in m.content for m in handed} == {1: True, 2: True, 3: False}
    sent = {name: array.numpy() for name, array in handed[0].content["arrays"].items()}  # type: ignore[union-attr]
    assert all(np.array_equal(before.arrays[name].numpy(), value) for name, value in sent.items())
    assert after.arrays
    assert [row["round"] for row in strategy.unshared if row["node"] == 3] == [1, 2, 3, 4]


DP = {"sharing.epsilon": 4.0, "distill.filter": "off"}


def charges(tmp_path: Path, client: int = 1) -> list[dict[str, Any]]:
    lines = (tmp_path / f"s{client}" / "ledger.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["recipe"].startswith("dp-sgd")]


@pytest.mark.parametrize("method", ["standalone", "pdss"])
def test_private_training_is_charged_to_every_example_in_the_same_ledger(
    tmp_path: Path, tiny: Path, method: str
) -> None:
    grid = grid_of(tmp_path, tiny, [{"allow-sharing": "dp-sgd"}, {}], **DP)
    start(grid, method)
    lines = charges(tmp_path)
    assert len(lines) == 2 * 8, "two rounds, eight examples"
    ledger = Ledger(tmp_path / "s1" / "ledger.jsonl", 1e6)
    for example in {line["example"] for line in lines}:
        own = [line for line in lines if line["example"] == example]
        assert sum(line["epsilon"] for line in own) == pytest.approx(4.0)
        assert sum(line["delta"] for line in own) == pytest.approx(1e-5)
        perturbed = 7.0 * 3 if method == "pdss" else 0.0  # three words at the default epsilon
        assert ledger.spent(example) == pytest.approx(4.0 + perturbed)


def test_who_cannot_pay_sends_no_weights(tmp_path: Path, tiny: Path) -> None:
    grid = grid_of(tmp_path, tiny, [{"max-epsilon-per-example": 3.0}, {}], **DP)
    result = start(grid, quorum=1)
    errors = [str(m.error.reason) for m in grid.replies if m.has_error()]
    assert len(errors) == 1
    assert "sharing.epsilon" in errors[0]
    assert "max-epsilon-per-example" in errors[0]
    assert len(charges(tmp_path)) == 8, "the first round, and nothing for the second"
    assert result.arrays


def test_a_training_that_is_repeated_pays_again_and_a_retried_request_does_not(tmp_path: Path, tiny: Path) -> None:
    grid = grid_of(tmp_path, tiny, [{}], **DP)
    start(grid, quorum=1)
    last = [m for m in grid.requests if m.metadata.message_type == "train.distill"][-1]
    assert not grid.app(last, grid.contexts[1]).has_error()
    assert len(charges(tmp_path)) == 16
    files = tmp_path / "s1" / "runs" / "1"  # as if it had crashed before these were written
    (files / "metrics" / "standalone-2.json").unlink()
    shutil.rmtree(files / "slm" / "standalone")
    assert not grid.app(last, grid.contexts[1]).has_error()
    assert len(charges(tmp_path)) == 24


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"sharing.epsilon": 1.0, "distill.filter": "off"}, "sharing.mode"),
        ({"sharing.epsilon": 1.0, "sharing.mode": "fedavg"}, "distill.filter"),
        ({"sharing.mode": "average"}, "sharing.mode"),
    ],
)
def test_settings_under_which_epsilon_would_not_hold_are_refused(config: dict[str, Any], what: str) -> None:
    with pytest.raises(SettingError, match=what):
        RunSettings.from_run_config(config)


def replies(*contents: dict[str, Any]) -> dict[int, Message]:
    ask = Message(RecordDict(), 1, "train.distill")
    return {i: Message(RecordDict(content), reply_to=ask) for i, content in enumerate(contents)}


def update(value: float, examples: int, shape: tuple[int, ...] = (2,), name: str = "w") -> dict[str, Any]:
    array = Array(np.full(shape, value, np.float32))
    return {"arrays": ArrayRecord({name: array}), "metrics": MetricRecord({"num-examples": examples})}


def test_what_cannot_be_averaged_is_left_out_and_named(caplog: pytest.LogCaptureFixture) -> None:
    broken = {**update(0.0, 1), "arrays": ArrayRecord({"w": Array("float32", (2,), "numpy.ndarray", b"junk")})}
    other = [update(9.0, 5, (3,)), update(9.0, 5, name="v"), update(np.nan, 5), update(9.0, 0)]
    silent = {"metrics": MetricRecord({"num-examples": 3})}
    found, unshared = average_weights(replies(update(1.0, 30), update(4.0, 10), *other, silent, broken))
    assert found is not None
    np.testing.assert_allclose(found.arrays["w"].numpy(), [1.75, 1.75])
    assert {i for i in range(8) if f"client {i}:" in caplog.text} == {2, 3, 4, 5, 6, 7} == set(unshared)
    assert len(set(unshared.values())) == 3, "of another model, no example, none sent"
    assert average_weights(replies(silent))[0] is None
    assert average_weights(replies(update(1.0, 30), silent))[0] is None, "one client is no average"
    assert average_weights(replies(update(1.0, 30), update(1.0, 30, (3,))))[0] is None


def test_an_average_is_kept_as_it_is(tmp_path: Path) -> None:
    """Also where the arrays that a client sent lie in memory column by column."""
    columns = Array(np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)))
    content: dict[str, Any] = {"arrays": ArrayRecord({"w": columns}), "metrics": MetricRecord({"num-examples": 1})}
    average, _ = average_weights(replies(content, content))
    assert average is not None
    keep_average(tmp_path / "a", 1, average)
    kept = kept_average(tmp_path / "a", 1)
    assert kept is not None
    np.testing.assert_array_equal(kept.arrays["w"].numpy(), average.arrays["w"].numpy())
    assert kept_average(tmp_path / "a", 2) is None
    for server_round in (9, 10):  # rounds between them had none
        keep_average(tmp_path / "a", server_round, average)
    assert {path.stem for path in (tmp_path / "a").iterdir()} == {"9", "10"}
    (tmp_path / "a" / "9.safetensors").write_bytes(b"torn")
    with pytest.raises(StoreError, match="damaged"):
        kept_average(tmp_path / "a", 9)


def test_a_name_that_cannot_be_kept_is_left_out() -> None:
    found, _ = average_weights(replies(update(1.0, 5, name="__metadata__"), *[update(2.0, 5)] * 2))
    assert found is not None
    assert list(found.arrays) == ["w"]


@given(st.permutations(range(4)))
def test_the_average_does_not_depend_on_who_has_which_node_id(order: list[int]) -> None:
    values = np.random.default_rng(0).normal(size=(4, 50)).astype(np.float32)
    contents: list[dict[str, Any]] = [
        {"arrays": ArrayRecord({"w": Array(row)}), "metrics": MetricRecord({"num-examples": 3})} for row in values
    ]
    first, _ = average_weights(replies(*contents))
    other, _ = average_weights(replies(*(contents[i] for i in order)))
    assert first is not None
    assert other is not None
    np.testing.assert_array_equal(first.arrays["w"].numpy(), other.arrays["w"].numpy())


def small(layers: int = 1, seed: int = 0) -> SmallModel:
    return create_slm(SlmSettings(hidden_size=32, layers=layers, seed=seed), ["some words"])


def test_shared_weights_are_all_weights_and_come_back() -> None:
    one, two = small(seed=0), small(seed=1)
    load_shared(two, shared_state(one))
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True))


LOW_RANK = {"slm.lora-rank": 2, "distill.learning-rate": 0.02}


def low_rank_grid(tmp_path: Path, tiny: Path, clients: int = 2, **changes: Any) -> LoopbackGrid:
    return grid_of(tmp_path, tiny, [{}] * clients, **{**LOW_RANK, "slm.model": str(tiny), **changes})


def test_of_low_rank_training_the_updates_alone_travel_and_are_averaged(tmp_path: Path, tiny: Path) -> None:
    """The first weights stay as they are for all rounds; a client's model is those and the averaged updates."""
    grid = low_rank_grid(tmp_path, tiny)
    result = start(grid)
    sent = trained(grid)
    assert len(sent) == 4
    assert all(".lora_A." in name or ".lora_B." in name for update in sent for name in update)
    whole = sum(tensor.numel() for tensor in load_file(tiny / "model.safetensors").values())
    assert sum(array.size for array in sent[0].values()) < whole / 4
    for name, value in result.arrays.items():
        np.testing.assert_allclose(value.numpy(), sent[2][name] / 3 + sent[3][name] * 2 / 3, atol=1e-6)
    updates = {name: value.numpy() for name, value in result.arrays.items()}
    one, two, first = weights(tmp_path, 1, "standalone"), weights(tmp_path, 2, "standalone"), initial(tmp_path)
    assert all(torch.equal(one[name], two[name]) for name in one)
    changed = 0
    for name, before in first.items():
        down, up = (updates.get(name.replace(".weight", f".lora_{x}.default.weight")) for x in "AB")
        expected = before.numpy() + (0 if down is None or up is None else 2 * up @ down)
        np.testing.assert_allclose(one[name].numpy(), expected, atol=1e-6)
        changed += not np.allclose(expected, before.numpy())
    assert changed


def initial(tmp_path: Path) -> dict[str, torch.Tensor]:
    return load_file(tmp_path / "s1" / "runs" / "1" / "slm" / "untrained" / "model.safetensors")


def ask(grid: LoopbackGrid, client: int, kind: str, server_round: int, arrays: Any = None) -> Message:
    content = RecordDict({"config": ConfigRecord({"method": "standalone", "server-round": server_round})})
    if arrays is not None:
        content["arrays"] = arrays
    return grid.app(Message(content, client, kind), grid.contexts[client])


def numbers(reply: Message) -> dict[str, np.ndarray[Any, Any]]:
    return {name: array.numpy() for name, array in reply.content.array_records["arrays"].items()}


@pytest.mark.parametrize("low_rank", [False, True])
def test_what_a_client_trained_is_sent_and_never_an_average_in_its_place(
    low_rank: bool, tmp_path: Path, tiny: Path
) -> None:
    grid = low_rank_grid(tmp_path, tiny) if low_rank else grid_of(tmp_path, tiny, [{}, {}])
    own = numbers(ask(grid, 1, "train.distill", 1))
    average = ask(grid, 2, "train.distill", 1).content.array_records["arrays"]
    kept = tmp_path / "s1" / "runs" / "1" / "sent"
    shutil.rmtree(kept)  # the client died after it had trained, before that was kept; the others went on
    assert not ask(grid, 1, "evaluate", 1, average).has_error()
    again = numbers(ask(grid, 1, "train.distill", 1))
    assert all(np.array_equal(own[name], again[name]) for name in own)
    second = numbers(ask(grid, 1, "train.distill", 2, average))
    assert ask(grid, 1, "train.distill", 1).error.code == 105, "a round that is over is not sent again"
    assert not ask(grid, 1, "evaluate", 2, average).has_error()
    again = numbers(ask(grid, 1, "train.distill", 2))
    assert all(np.array_equal(second[name], again[name]) for name in second)


def test_nobody_trains_the_model_that_all_methods_start_from(tmp_path: Path, tiny: Path) -> None:
    grid = grid_of(tmp_path, tiny, [{}])
    content = RecordDict({"config": ConfigRecord({"method": "untrained", "server-round": 1})})
    assert grid.app(Message(content, 1, "train.distill"), grid.contexts[1]).error.code == 105
    assert not (tmp_path / "s1" / "runs" / "1" / "slm").exists()


def test_who_missed_the_first_round_knows_the_model_by_its_updates(tmp_path: Path, tiny: Path) -> None:
    grid = low_rank_grid(tmp_path, tiny, 3)
    grid.fail = lambda m: None if (m.metadata.group_id, m.metadata.dst_node_id) == ("1", 3) else False
    result = start(grid)
    assert len(trained(grid)) == 2 + 3
    late = weights(tmp_path, 3, "standalone")
    assert all(torch.equal(values, late[name]) for name, values in weights(tmp_path, 1, "standalone").items())
    assert result.arrays


@pytest.mark.parametrize("noisy", [True, False])
def test_noise_is_in_every_low_rank_update_that_leaves(
    noisy: bool, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two federations from the same start, in which every step draws every example: only noise can tell them apart."""
    if not noisy:
        monkeypatch.setattr("pdss_fl.slm.private_trainer.noise_for", lambda *_: 0.0)
    sent = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        grid = low_rank_grid(tmp_path / name, tiny, 1, **DP, **{"distill.batch-size": 64})
        if sent:  # the same examples are trained on
            (tmp_path / name / "s1").mkdir()
            shutil.copy(tmp_path / "one" / "s1" / "order.key", tmp_path / name / "s1")
        start(grid, quorum=1)
        assert len(charges(tmp_path / name)) == 2 * 8
        sent.append(trained(grid)[0])
    assert all("lora_" in name for name in sent[0])
    equal = [np.array_equal(sent[0][name], sent[1][name]) for name in sent[0]]
    assert not any(equal) if noisy else all(equal)


def test_whole_weights_are_refused_where_updates_are_shared(tmp_path: Path, tiny: Path) -> None:
    grid = low_rank_grid(tmp_path, tiny)
    start(grid)
    record = ArrayRecord({name: Array(value.numpy()) for name, value in initial(tmp_path).items()})
    config = ConfigRecord({"method": "standalone", "server-round": 2})
    before = weights(tmp_path, 1, "standalone")
    reply = grid.app(Message(RecordDict({"config": config, "arrays": record}), 1, "evaluate"), grid.contexts[1])
    assert reply.error.code == 105
    assert all(torch.equal(before[name], values) for name, values in weights(tmp_path, 1, "standalone").items())


def test_weights_of_another_model_change_nothing() -> None:
    slm = small()
    before = shared_state(slm)
    name = next(iter(before))
    for wrong in (shared_state(small(layers=2)), {**before, name: torch.full_like(before[name], torch.inf)}):
        with pytest.raises(MessageError, match="averaged weights"):
            load_shared(slm, wrong)
    assert all(torch.equal(before[k], v) for k, v in shared_state(slm).items())


def test_what_was_trained_without_privacy_is_not_sent_under_other_settings(tmp_path: Path, tiny: Path) -> None:
    """Who reaches `pdss node` names run ids and settings: first none are shared, then the same run shares."""
    private = {"sharing.mode": "fedavg", **DP}
    grid = grid_of(
        tmp_path, tiny, [{"allow-sharing": "dp-sgd"}], **{**private, "sharing.mode": "off", "sharing.epsilon": 0.0}
    )
    ask = RecordDict({"config": ConfigRecord({"method": "standalone", "server-round": 1})})
    told = grid.contexts[1]
    assert not grid.app(Message(ask, 1, "train.distill"), told).has_error()
    told.run_config.update(private)
    reply = grid.app(Message(ask, 1, "train.distill"), told)
    assert reply.has_error()
    assert reply.error.code == 105


@pytest.mark.parametrize(
    ("changes", "names"),
    [({"sharing.clip": 1e-44}, "sharing.clip"), ({"sharing.clip": 1e38}, "sharing.clip"),
     ({"slm.dtype": "bfloat16"}, "slm.dtype")],
)  # fmt: skip
def test_numbers_in_which_the_noise_would_be_rounded_away_are_refused(changes: dict[str, Any], names: str) -> None:
    with pytest.raises(SettingError, match=names):
        RunSettings.from_run_config({"sharing.mode": "fedavg", **DP, **changes})


def test_weights_at_which_some_examples_overflow_tell_nothing_of_who_holds_them(tmp_path: Path, tiny: Path) -> None:
    """Under finite weights of a server's choice, only examples with one word have gradients that are no numbers."""
    grid = grid_of(tmp_path, tiny, [{"allow-sharing": "dp-sgd"}], **DP)
    config = {"method": "standalone", "server-round": 1}
    first = grid.app(Message(RecordDict({"config": ConfigRecord(config)}), 1, "train.distill"), grid.contexts[1])
    arrays = {name: array.numpy().copy() for name, array in first.content["arrays"].items()}
    slm = SmallModel.load(tmp_path / "s1" / "runs" / "1" / "slm" / "standalone")
    for word in WORDS:
        arrays["model.embed_tokens.weight"][slm.encode_next(word)[0]] = 3e38
    record = ArrayRecord({name: Array(value) for name, value in arrays.items()})
    content = RecordDict({"config": ConfigRecord({**config, "server-round": 2}), "arrays": record})
    second = grid.app(Message(content, 1, "train.distill"), grid.contexts[1])
    assert all(np.isfinite(array.numpy()).all() for array in second.content["arrays"].values())
    content = RecordDict({"config": ConfigRecord({**config, "server-round": 1}), "arrays": record})
    assert not grid.app(Message(content, 1, "evaluate"), grid.contexts[1]).has_error()


def test_a_round_is_a_number_and_not_a_truth_value(tmp_path: Path, tiny: Path) -> None:
    """True equals 1, but the files of that round would have another name."""
    grid = grid_of(tmp_path, tiny, [{}])
    ask = RecordDict({"config": ConfigRecord({"method": "standalone", "server-round": True})})
    assert grid.app(Message(ask, 1, "train.distill"), grid.contexts[1]).error.code == 105
