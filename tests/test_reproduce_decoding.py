"""The ablation of the decoders: what it counts, and what it gives them."""

from __future__ import annotations

from pathlib import Path

from pdss_fl.config import RunSettings
from pdss_fl.reproduce.decoding import NONE, REAL, UNRELATED, ask, choose, judge, measure, sources
from pdss_fl.slm.decoder import align
from pdss_fl.vocabularies import load_perturber
from tests.harness import EchoGenerator


def test_a_rationale_is_right_by_its_statement_and_by_its_kind() -> None:
    fact, example = asked = choose(7)[0]
    assert judge(str(example.rationale), asked) == (True, True)
    wrong = next(choice for choice in example.choices if choice != example.answer)
    assert judge(f"it is something. So the answer is {wrong}.", asked) == (False, False)
    assert judge(f"IT IS {fact.kind.upper()}.", asked)[0] is False
    assert judge("", asked) == (False, False)


def test_the_other_rationale_is_of_another_kind_and_the_rest_stays(tiny: Path) -> None:
    asked = choose(12)
    settings = RunSettings.from_run_config({"privacy.embeddings": str(tiny)})
    llm = EchoGenerator()
    requests, pairs = ask(asked, load_perturber(settings, "staircase", 0), llm, 8)
    given = sources(requests, asked)
    assert given[REAL] == requests
    by_text = {request.rationale: fact.kind for request, (fact, _) in zip(requests, asked, strict=True)}
    for mine, other, none, (fact, _) in zip(requests, given[UNRELATED], given[NONE], asked, strict=True):
        assert other.rationale != mine.rationale
        assert by_text[other.rationale] != fact.kind
        assert (none.rationale, none.question, none.example) == ("", mine.question, mine.example)
    told = {
        "told": lambda requests, _: [str(r.example.rationale) if r.rationale else "" for r in requests],
        "align": lambda requests, pairs: [align(r.rationale, p) for r, p in zip(requests, pairs, strict=True)],
    }
    lines = measure(requests, pairs, asked, told).splitlines()
    assert lines[0] == "| decoder | rationale | right answer | right kind | questions |"
    assert [line.split("| ")[3].strip() for line in lines[2:5]] == ["100.0%", "100.0%", "0.0%"]
    assert len(lines) == 2 + 2 * 3
