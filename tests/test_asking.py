"""What the LLM is asked: equal texts once, whoever sent them, and no more at a time than it takes."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pdss_fl.asking import ask
from pdss_fl.journal import Journal
from pdss_fl.messages import GenerationSettings, PerturbedPrompt, PrivacyStatement, PromptBatch
from tests.harness import EchoGenerator

STATEMENT = PrivacyStatement("staircase", "pure-ldp", 4.0, 12.0, 0.0, 3, "basic composition", 0.5, "epsilon=4", "00")


def batch(questions: list[str]) -> PromptBatch:
    return PromptBatch(tuple(PerturbedPrompt(i, q, ("a", "b")) for i, q in enumerate(questions)), STATEMENT)


@given(
    st.dictionaries(st.sampled_from("xyz"), st.lists(st.sampled_from("pqrs"), min_size=1, max_size=9), min_size=1),
    st.integers(1, 5),
)  # fmt: skip
def test_distinct_texts_are_asked_once_and_everybody_is_answered(sent: dict[str, list[str]], limit: int) -> None:
    llm = EchoGenerator()
    llm.info = replace(llm.info, max_prompts=limit)
    answers = ask(llm, {owner: batch(questions) for owner, questions in sent.items()}, GenerationSettings(), None)
    asked = [prompt.question for request in llm.seen for prompt in request.prompts]
    assert sorted(asked) == sorted({q for questions in sent.values() for q in questions})
    assert max(len(request.prompts) for request in llm.seen) <= limit
    for owner, questions in sent.items():
        said = {r.ordinal: r.text for r in answers[owner].rationales}
        assert said == {i: f"{q} a b" for i, q in enumerate(questions)}
    generated = sum(r.tokens for found in answers.values() for r in found.rationales)
    assert generated == 3 * len(asked), "what was written once is counted once"


@given(st.integers(0, 6))
def test_an_answer_that_some_owners_of_a_text_have_is_not_asked_for_again(whole: int) -> None:
    """Whoever asks dies after any number of lines of the journal, which has one for every owner of a text."""
    sent = {owner: batch(["p", "q", "p"]) for owner in ("x", "y")}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.jsonl"
        expected = ask(EchoGenerator(), sent, GenerationSettings(), Journal(path))
        lines = path.read_bytes().splitlines(keepends=True)
        assert len(lines) == 6
        path.write_bytes(b"".join(lines[:whole]))
        told = {json.loads(line)["text"] for line in lines[:whole]}
        llm = EchoGenerator()
        answers = ask(llm, sent, GenerationSettings(), Journal(path))
        asked = [f"{prompt.question} a b" for request in llm.seen for prompt in request.prompts]
        assert sorted(asked) == sorted({"p a b", "q a b"} - told)
        for owner in sent:
            texts = {r.ordinal: r.text for r in answers[owner].rationales}
            assert texts == {r.ordinal: r.text for r in expected[owner].rationales}
