"""``pdss node``: the client behind a socket does what a ClientApp does, and what relays to it knows nothing."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as FlowerMessage

from pdss_fl.client_app import create_client_app
from pdss_fl.errors import SettingError
from pdss_fl.node import listening
from pdss_fl.proto import node_pb2 as pb
from pdss_fl.proto.node_pb2_grpc import NodeServiceStub
from pdss_fl.strategy import StepByStepDistillation
from tests.harness import EchoGenerator, LoopbackGrid, context, payload_bytes, small_run, texts_seen, times_asked

CANARY = "zanzibarqx"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path, since a socket's has to be."""
    with tempfile.TemporaryDirectory(prefix="pdss") as made:
        yield Path(made)


def run_config(folder: Path, tiny: Path) -> dict[str, Any]:
    return small_run(tiny, **{"output-dir": str(folder / "runs"), "distill.filter": "off"})


def policy_file(folder: Path, tiny: Path) -> Path:
    data = folder / "data.jsonl"
    rows = [
        {"question": f"does {CANARY} own number {i}?", "choices": ["yes", "no"], "answer": "no"} for i in range(100)
    ]
    data.write_text("\n".join(map(json.dumps, rows)))
    path = folder / "policy.toml"
    path.write_text(
        f'state-dir = "{folder}/state"\ndata-path = "{data}"\nmax-epsilon-per-token = 100.0\n'
        f'max-epsilon-per-example = 1000.0\nallowed-models = "scratch {tiny}"\n'
    )
    return path


def relaying(folder: Path, tiny: Path, **node_config: Any) -> LoopbackGrid:
    config = {"node-socket": str(folder / "s"), **node_config}
    return LoopbackGrid(create_client_app(), {1: context(1, config, run_config(folder, tiny))})


def ask(grid: LoopbackGrid, message_type: str = "query.perturb", method: str = "pdss") -> Message:
    content = RecordDict({"config": ConfigRecord({"method": method, "server-round": 1})})
    (reply,) = grid.send_and_receive([Message(content, 1, message_type)])
    return reply


RELAYING = """
import sys
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from pdss_fl.client_app import app
TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
message = Message(RecordDict({"config": ConfigRecord({"method": "pdss", "server-round": 1})}), 1, "query.perturb")
message.metadata.__dict__["_message_id"] = "1"
reply = app(message, Context(1, 1, {"node-socket": "s", "data-path": "d"}, RecordDict(), {}))
print(reply.error.code, *{"torch", "transformers", "scipy"} & set(sys.modules))
"""


def test_what_hands_messages_on_needs_none_of_the_libraries_that_take_seconds_to_import() -> None:
    done = subprocess.run([sys.executable, "-c", RELAYING], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(SettingError.code)], "the relay refused a config that names data, and knew how"


def test_a_round_passes_through_the_socket(folder: Path, tiny: Path) -> None:
    llm, grid = EchoGenerator(), relaying(folder, tiny)
    with listening(policy_file(folder, tiny), folder / "s"):
        assert stat.S_IMODE((folder / "s").stat().st_mode) == 0o660, "nobody but the owner and the group may ask"
        strategy = StepByStepDistillation(llm)
        strategy.start(grid, ArrayRecord(), num_rounds=1)
    assert not (folder / "s").exists()
    assert 0 < times_asked(llm.seen) <= 8
    assert [row["phase"] for row in strategy.client_metrics] == ["distill", "evaluate"]
    assert strategy.client_metrics[1]["num-examples"] == 24
    assert len((folder / "state" / "ledger.jsonl").read_text().splitlines()) >= 8
    assert CANARY not in texts_seen(llm.seen)
    for message in (*grid.requests, *grid.replies):
        assert CANARY.encode() not in payload_bytes(message)


def test_a_second_ask_is_answered_from_the_ledger(folder: Path, tiny: Path) -> None:
    with listening(policy_file(folder, tiny), folder / "s"):
        grid = relaying(folder, tiny)
        first, again = (ask(grid).content["prompts"]["payload"] for _ in range(2))
    assert first == again


def test_a_refusal_of_the_policy_arrives_as_it_is(folder: Path, tiny: Path) -> None:
    policy = policy_file(folder, tiny)
    with listening(policy, folder / "s"):
        policy.write_text(policy.read_text().replace("token = 100.0", "token = 1.0"))  # holds from now on
        reply = ask(relaying(folder, tiny))
    assert reply.error.code == 102
    assert "max-epsilon-per-token = 1" in reply.error.reason


def test_an_unknown_message_is_an_error_without_a_trace(folder: Path, tiny: Path) -> None:
    unknown = Message(RecordDict(), 1, "query.read")
    with listening(policy_file(folder, tiny), folder / "s"), grpc.insecure_channel(f"unix:{folder}/s") as channel:
        asked = message_to_proto(unknown).SerializeToString()
        reply = NodeServiceStub(channel).Handle(pb.NodeRequest(schema_version=1, message=asked, run_config="{}"))
    answered = message_from_proto(FlowerMessage.FromString(reply.message))
    assert answered.error.reason == "this node knows no such message"


def test_without_a_node_the_error_says_what_to_start(folder: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pdss_fl.relay._CONNECT_SECONDS", 0.2)
    reply = ask(relaying(folder, tiny))
    assert reply.error.code == 101
    assert "start `pdss node`" in reply.error.reason
    assert str(folder) not in reply.error.reason


def test_a_config_that_tells_the_app_of_data_is_refused(folder: Path, tiny: Path) -> None:
    with listening(policy_file(folder, tiny), folder / "s"):
        reply = ask(relaying(folder, tiny, **{"data-path": str(folder / "data.jsonl")}))
    assert reply.error.code == 101
    assert "also data-path" in reply.error.reason


@pytest.mark.parametrize(
    "request_",
    [
        pb.NodeRequest(schema_version=2),
        pb.NodeRequest(schema_version=1, message=b"\xff" * 9),
        pb.NodeRequest(schema_version=1, run_config="{}"),
        pb.NodeRequest(schema_version=1, run_config="[1]"),
        pb.NodeRequest(schema_version=1, run_config="{"),
    ],
)
def test_what_is_no_message_is_refused(folder: Path, tiny: Path, request_: pb.NodeRequest) -> None:
    with listening(policy_file(folder, tiny), folder / "s"), grpc.insecure_channel(f"unix:{folder}/s") as channel:
        with pytest.raises(grpc.RpcError) as caught:
            NodeServiceStub(channel).Handle(request_)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert not ask(relaying(folder, tiny)).has_error(), "the next message is answered"


def test_a_second_node_at_one_socket_is_refused(folder: Path, tiny: Path) -> None:
    policy = policy_file(folder, tiny)
    with listening(policy, folder / "s"):
        with pytest.raises(SettingError, match="another"), listening(policy, folder / "s"):
            pass
        assert not ask(relaying(folder, tiny)).has_error()


def test_a_socket_that_cannot_be_made(folder: Path, tiny: Path) -> None:
    with pytest.raises(SettingError, match="--socket"), listening(policy_file(folder, tiny), folder / ("s" * 120)):
        pass


def test_a_group_that_is_not_there(folder: Path, tiny: Path) -> None:
    with pytest.raises(SettingError, match="--socket-group"), listening(policy_file(folder, tiny), folder / "s", "qq"):
        pass


def test_a_policy_without_limits_is_refused_before_anything_listens(folder: Path) -> None:
    (folder / "policy.toml").write_text('state-dir = "/x"\n')
    with pytest.raises(SettingError, match="max-epsilon-per-token"), listening(folder / "policy.toml", folder / "s"):
        pass
    assert not (folder / "s").exists()


def test_the_command_listens_and_ends_on_a_signal(folder: Path, tiny: Path) -> None:
    command = [sys.executable, "-m", "pdss_fl.cli", "node", policy_file(folder, tiny), "--socket", folder / "s"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=dict(os.environ)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"node at {folder / 's'}\n".encode()
        assert not ask(relaying(folder, tiny)).has_error()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert not (folder / "s").exists()
