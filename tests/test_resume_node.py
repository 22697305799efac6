"""What a deployed node makes of a resumed run: it goes on where it was, and the server gets nothing a second time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from pdss_fl.config import RunSettings
from pdss_fl.direct import Offer
from pdss_fl.llm.service import serve
from pdss_fl.messages import Finish, GenerationSettings, PromptBatch, Rationale, RationaleBatch
from pdss_fl.resume import RunName
from tests.harness import EchoGenerator, LoopbackGrid
from tests.test_direct import grid_of as direct_grid
from tests.test_strategy import ask, grid_of

SLM = "slm/pdss/model.safetensors"


def again(grid: LoopbackGrid, run_id: int = 2) -> LoopbackGrid:
    """Start the run anew: Flower gives it another id."""
    for own in grid.contexts.values():
        own.run_id = run_id
    return grid


def request(kind: str, grid: LoopbackGrid, name: RunName, **records: Any) -> Message:
    """Send a deployed client a message as the strategy of a named run does."""
    config = ConfigRecord({"method": "pdss", "server-round": 1})
    name.add_to(config)
    return grid.app(Message(RecordDict({"config": config, **records}), 1, kind), grid.contexts[1])


def folder(tmp_path: Path, grid: LoopbackGrid, name: RunName) -> Path:
    settings = RunSettings.from_run_config(grid.contexts[1].run_config)
    return tmp_path / "state1" / "runs" / name.folder(settings)


def ledger(tmp_path: Path, node: str = "state1") -> list[str]:
    return (tmp_path / node / "ledger.jsonl").read_text().splitlines()


def payload(reply: Message) -> bytes:
    found = reply.content["prompts"]["payload"]  # type: ignore[index]
    assert isinstance(found, bytes)
    return found


def test_a_named_run_gets_the_same_bytes_again_under_another_id(tmp_path: Path, tiny: Path) -> None:
    grid, name = grid_of(tmp_path, tiny, clients=1), RunName.new(1)
    first = payload(request("query.perturb", grid, name))
    charged = ledger(tmp_path)
    assert payload(request("query.perturb", again(grid), name)) == first
    assert ledger(tmp_path) == charged
    assert folder(tmp_path, grid, name).is_dir()


def test_a_name_opens_nothing_under_other_settings_and_every_fresh_noise_is_charged(tmp_path: Path, tiny: Path) -> None:
    """A server that knows a run's name asks with another epsilon: the node perturbs afresh, and charges that."""
    name = RunName.new(1)
    for epsilon, lines in ((2.0, 8), (3.0, 16), (2.0, 16)):
        grid = again(grid_of(tmp_path, tiny, clients=1, **{"privacy.epsilon": epsilon}))
        assert not request("query.perturb", grid, name).has_error()
        assert len(ledger(tmp_path)) == lines
    assert len(list((tmp_path / "state1" / "runs").iterdir())) == 2


def test_the_same_prompts_in_another_order_are_all_that_another_name_gets(tmp_path: Path, tiny: Path) -> None:
    grid = grid_of(tmp_path, tiny, clients=1)
    batches = [PromptBatch.parse(payload(request("query.perturb", grid, RunName.new(1)))) for _ in range(2)]
    texts = [sorted((p.question, p.choices) for p in batch.prompts) for batch in batches]
    assert texts[0] == texts[1]
    assert len(ledger(tmp_path)) == 8


def test_a_client_that_died_before_its_ledger_was_written_releases_what_it_had_perturbed(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, name = grid_of(tmp_path, tiny, clients=1), RunName.new(1)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    assert not ask("query.perturb", grid).has_error(), "an unnamed run makes the ledger and the model's words"
    (tmp_path / "state1" / "ledger.jsonl").unlink()
    (tmp_path / "state1" / "ledger.jsonl.witness").unlink()
    with monkeypatch.context() as patch:
        patch.setattr("pdss_fl.privacy.ledger.append_lines", full)
        reply = request("query.perturb", grid, name)
        assert reply.error.code == 107
    (plan,) = folder(tmp_path, grid, name).glob("asked/*-plan.json")
    planned = json.loads(plan.read_text())
    assert ledger(tmp_path) == []
    sent = PromptBatch.parse(payload(request("query.perturb", again(grid), name)))
    texts = [" ".join(planned["fresh"][key]["question"]) for key in planned["order"]]
    assert [p.question for p in sent.prompts] == texts
    assert not plan.exists()
    assert len(ledger(tmp_path)) == 8


def test_the_first_rationales_count_and_a_resumed_server_cannot_replace_them(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, name = grid_of(tmp_path, tiny, clients=1, **{"distill.filter": "off"}), RunName.new(1)
    prompts = PromptBatch.parse(payload(request("query.perturb", grid, name))).prompts

    def rationales(text: str) -> ConfigRecord:
        rows = tuple(Rationale(p.ordinal, text, Finish.STOP, 1) for p in prompts)
        return ConfigRecord({"payload": RationaleBatch(rows, "m").serialize()})

    class Off(BaseException):
        """The node went off."""

    def off(*_: Any) -> Callable[[int, float], None]:
        def on_step(step: int, _loss: float) -> None:
            if step == 2:
                raise Off

        return on_step

    with monkeypatch.context() as patch:
        patch.setattr("pdss_fl.client.training_progress", off)
        with pytest.raises(Off):
            request("train.distill", grid, name, rationales=rationales("the first"))
    assert not (folder(tmp_path, grid, name) / SLM).exists()
    reply = request("train.distill", again(grid), name, rationales=rationales("the second"))
    assert dict(reply.content["metrics"]) == {"num-examples": 8}  # type: ignore[call-overload]
    kept = json.loads((folder(tmp_path, grid, name) / "rationales" / "pdss.json").read_text())
    assert {row["raw"] for row in kept.values()} == {"the first"}
    assert (folder(tmp_path, grid, name) / SLM).exists()
    assert list((folder(tmp_path, grid, name) / "training").iterdir()) == []


class DyingLLM(EchoGenerator):
    """Breaks after some answers, once."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def generate(
        self, batch: PromptBatch, settings: GenerationSettings, *rest: Any, **more: Any
    ) -> Iterator[Rationale]:
        for rationale in super().generate(batch, settings, *rest, **more):
            if self.after == 0:
                self.after = -1
                raise RuntimeError("out of memory")
            self.after -= 1
            yield rationale


def test_on_the_direct_channel_a_client_asks_for_the_unanswered_prompts_only(tmp_path: Path, tiny: Path) -> None:
    llm, name = DyingLLM(3), RunName.new(1)
    server = serve(llm, port=0)
    try:
        grid = direct_grid(tmp_path, tiny, server.address)
        config = ConfigRecord({"method": "pdss", "server-round": 1})
        name.add_to(config)
        content = RecordDict({"config": config})
        Offer(server.address, "", GenerationSettings(8)).add_to(content)
        failed = grid.app(Message(content, 1, "train.distill"), grid.contexts[1])
        assert failed.error.code == 106
        done = grid.app(Message(content, 1, "train.distill"), again(grid).contexts[1])
        repeated = grid.app(Message(content, 1, "train.distill"), grid.contexts[1])
    finally:
        server.stop(0)
    assert not done.has_error()
    first, rest = (len(batch.prompts) for batch in llm.seen)
    assert rest == first - 3
    assert 4 <= first <= 8, "equal prompts are asked once"
    assert done.content["usage"] == repeated.content["usage"]
    assert done.content["usage"]["prompts"] == 8  # type: ignore[index]
    assert len(ledger(tmp_path, "s1")) == 8
