"""The journal of a run: nothing that was added is lost, and a record that a crash cut off is not believed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdss_fl.asking import ask
from pdss_fl.errors import StoreError
from pdss_fl.journal import Journal, digest_of
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
    llm = EchoGenerator()
    for _ in range(2):  # the second time everything is answered
        answers = ask(llm, batches, GenerationSettings(), Journal(path), "pdss/1/")
        for place in range(6):
            (mine,) = (r for r in answers[7 + place // 3].rationales if r.ordinal == place % 3)
            prompt = batches[7 + place // 3].prompts[place % 3]
            assert mine.text == (f"kept {place}" if place in answered else f"{prompt.question} a b")
    texts = [prompt.question for node in batches.values() for prompt in node.prompts]
    open_ = {text for place, text in enumerate(texts) if place not in answered}
    assert sorted(prompt.question for seen in llm.seen for prompt in seen.prompts) == sorted(open_)
    assert len(llm.seen) == (len(answered) < 6)
    ask(llm, batches, GenerationSettings(), Journal(path), "dss/1/")
    assert len(llm.seen[-1].prompts) == 5, "another method asks for itself, and for equal prompts once"


def test_a_file_that_cannot_be_written_is_named_and_its_path_kept_private(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="journal") as refusal:
        Journal(tmp_path / "none" / "journal.jsonl").add("round", method="pdss", round=1)
    assert str(tmp_path) not in refusal.value.public
