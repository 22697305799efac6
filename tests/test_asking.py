"""What the LLM is asked: equal texts once, whoever sent them, and no more at a time than it takes."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from pdss_fl.asking import ask
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
