"""The journal of a run: nothing that was added is lost, and a record that a crash cut off is not believed."""

from __future__ import annotations

import builtins
import errno
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdss_fl.asking import ask
from pdss_fl.errors import StoreError
from pdss_fl.journal import Journal, digest_of
from pdss_fl.llm.remote import RemoteGenerator
from pdss_fl.llm.service import serve
from pdss_fl.messages import Finish, GenerationSettings, PerturbedPrompt, PrivacyStatement, PromptBatch, Rationale
from tests.harness import EchoGenerator

STATEMENT = PrivacyStatement("staircase", "pure-ldp", 8.0, 80.0, 0.0, 10, "basic", 0.5, "epsilon=8", "00")
ANSWERS = [Rationale(i, text, Finish.LENGTH, i) for i, text in enumerate(("one", "", "zwei\u2028drei \U0001f600"))]


def batch(*questions: str) -> PromptBatch:
    return PromptBatch(tuple(PerturbedPrompt(i, q, ("a", "b")) for i, q in enumerate(questions)), STATEMENT)


def test_what_was_added_is_found_by_the_next_process(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    for answer in ANSWERS:
        journal.add_answer("a", answer)
    journal.add("round", method="pdss", round=1, results={1: {"correct": 3}})
    journal.add("round", method="pdss", round=2, results={2: {"correct": 4}})
    again = Journal(tmp_path / "journal.jsonl")
    assert again.answers("a") == dict(enumerate(ANSWERS))
    assert again.answers("b") == {}
    assert again.last("round", "pdss")["round"] == 2  # type: ignore[index]
    assert again.last("round", "pdss", 1)["results"] == {"1": {"correct": 3}}  # type: ignore[index]
    assert again.last("round", "dss") is again.last("sample", "pdss") is None


@pytest.mark.parametrize("lost", range(1, 90, 4))
def test_a_torn_record_is_dropped_and_the_file_goes_on_behind_the_last_whole_one(tmp_path: Path, lost: int) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    for answer in ANSWERS[:2]:
        journal.add_answer("a", answer)
    whole = path.read_bytes()
    path.write_bytes(whole[:-lost])
    torn = Journal(path)
    assert torn.answers("a") == {0: ANSWERS[0]}
    torn.add_answer("a", ANSWERS[1])
    assert path.read_bytes() == whole
    assert Journal(path).answers("a") == dict(enumerate(ANSWERS[:2]))


@given(st.sets(st.integers(0, 5)))
def test_only_what_is_not_answered_is_asked(tmp_path_factory: pytest.TempPathFactory, answered: set[int]) -> None:
    """Whatever part of two clients' prompts is answered, the LLM sees the rest, once, and each gets its own."""
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    batches = {7: batch("p q", "r s", "t u"), 8: batch("p q", "v w", "x y")}
    journal = Journal(path)
    for place in answered:
        node, ordinal = 7 + place // 3, place % 3
        journal.add_answer(f"pdss/1/{digest_of(batches[node])}", Rationale(ordinal, f"kept {place}", Finish.STOP, 2))
    llm, texts = EchoGenerator(), [prompt.question for node in batches.values() for prompt in node.prompts]
    kept = {texts[place]: f"kept {place}" for place in sorted(answered)}  # an answer is for all who have its text
    for _ in range(2):  # the second time everything is answered
        answers = ask(llm, batches, GenerationSettings(), Journal(path), "pdss/1/")
        for place in range(6):
            (mine,) = (r for r in answers[7 + place // 3].rationales if r.ordinal == place % 3)
            prompt = batches[7 + place // 3].prompts[place % 3]
            said = kept.get(prompt.question, f"{prompt.question} a b")
            assert mine.text == (f"kept {place}" if place in answered else said)
    open_ = set(texts) - kept.keys()
    assert sorted(prompt.question for seen in llm.seen for prompt in seen.prompts) == sorted(open_)
    assert len(llm.seen) == bool(open_)
    ask(llm, batches, GenerationSettings(), Journal(path), "dss/1/")
    assert len(llm.seen[-1].prompts) == 5, "another method asks for itself, and for equal prompts once"


def test_a_file_that_cannot_be_written_is_named_and_its_path_kept_private(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="journal") as refusal:
        Journal(tmp_path / "none" / "journal.jsonl").add("round", method="pdss", round=1)
    assert str(tmp_path) not in refusal.value.public


class FullDisk(io.FileIO):
    """A file on a disk with room for so many more bytes, which it takes before it fails, as a real one does."""

    room = 0

    def write(self, data: Any) -> int:
        taken = memoryview(data)[: FullDisk.room]
        if not taken:
            raise OSError(errno.ENOSPC, "No space left on device")
        FullDisk.room -= len(taken)
        return super().write(taken) or 0


def fill_disk(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    real = builtins.open

    def opened(path: Any, mode: str = "r", **options: Any) -> Any:
        return io.BufferedWriter(FullDisk(path, mode)) if mode == "ab" else real(path, mode, **options)

    FullDisk.room = room
    monkeypatch.setattr(builtins, "open", opened)


@pytest.mark.parametrize("room", [0, 1, 200, 250, 500, 750, 1000])
def test_a_disk_that_fills_up_in_mid_request_costs_no_answer_that_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """Over real gRPC: the write fails, the error is named, and a resume asks for what is not there, each once."""
    path, llm = tmp_path / "journal.jsonl", EchoGenerator()
    batches = {7: batch("p q", "r s", "t u"), 8: batch("p q", "v w", "x y")}
    server = serve(llm, port=0)
    with monkeypatch.context() as patch:
        fill_disk(patch, room)
        with pytest.raises(StoreError, match="free space") as failure:
            ask(RemoteGenerator(server.address), batches, GenerationSettings(), Journal(path), "pdss/1/")
    assert "Errno 28" in failure.value.private
    assert str(tmp_path) not in failure.value.public
    assert path.stat().st_size == room, "the disk took what it had room for, a torn record as well"
    whole = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    assert len(whole) < 6
    llm.seen.clear()
    answers = ask(RemoteGenerator(server.address), batches, GenerationSettings(), Journal(path), "pdss/1/")
    server.stop(grace=5)
    asked = [" ".join((p.question, *p.choices)) for request in llm.seen for p in request.prompts]
    texts = {f"{p.question} a b" for sent in batches.values() for p in sent.prompts}
    assert sorted(asked) == sorted(texts - {record["text"] for record in whole})
    for node, sent in batches.items():
        assert {r.ordinal: r.text for r in answers[node].rationales} == {
            p.ordinal: f"{p.question} a b" for p in sent.prompts
        }
    kept = [(r["batch"], r["ordinal"]) for r in map(json.loads, path.read_bytes().splitlines())]
    assert len(kept) == len(set(kept)) == 6, "each prompt is answered once"
