"""The comparison: its cells, table, verdicts, pictures and page, and how long it says that it will take."""

from __future__ import annotations

import argparse
import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pdss_fl.config import RunSettings
from pdss_fl.data.everyday import facts, private_examples
from pdss_fl.data.example import Example
from pdss_fl.reproduce import comparison
from pdss_fl.reproduce.cells import ATTACK, Cell, run_cell
from pdss_fl.reproduce.estimate import Costs, duration
from pdss_fl.reproduce.expectations import HELD, NOT_HELD, NOT_MEASURED, UNDECIDED, above, equal, expectations
from pdss_fl.reproduce.few_shot import raw_questions, with_demonstrations
from pdss_fl.reproduce.methods import (
    ADAPTIVE,
    DSS,
    ENCODERS,
    EVERYDAY,
    GRADED,
    METHODS,
    PDSS,
    STANDALONE,
    TRAINED,
    DataSet,
    Entry,
    Method,
    cells,
    entries,
    real_data,
)
from pdss_fl.reproduce.quality import names_kind, rationale_quality
from pdss_fl.reproduce.runner import RESULTS, what_is_left
from pdss_fl.reproduce.statistics import Mean
from pdss_fl.reproduce.table import rows
from pdss_fl.slm.prompts import label_prompt
from tests.experiments import questions, small

MADE = DataSet("a <set> & more", {}, METHODS, (1.0, 7.0), 7.0)


Run = tuple[Method, float | None]


def made(shares: dict[Run, list[int]], attacks: dict[Run, float]) -> tuple[list[Entry], list[tuple[Cell, Any]]]:
    """Make outcomes of 100 questions a seed by (method, epsilon)."""
    plan = [Entry(MADE, method, epsilon) for method, epsilon in shares]
    outcomes: list[tuple[Cell, Any]] = []
    for entry, counts in zip(plan, shares.values(), strict=True):
        attack = attacks.get((entry.method, entry.epsilon))
        if attack is not None:
            told = {"attack": attack, "overlap": 0.1, "document": 3 * (entry.epsilon or 0), "delta": 0.0}
            outcomes.append((Cell(entry.group, ATTACK, 0), told))
        for seed, correct in enumerate(counts):
            own = {"prompts": 50, "rationales": 40, "right": 30, "kind": 20} if attack else {"prompts": 0}
            outcomes.append((Cell(entry.group, entry.method.kind, seed), {"correct": correct, "total": 100, **own}))
    return plan, outcomes


def typical(adaptive: list[int], attack: float = 0.2) -> tuple[list[Entry], list[tuple[Cell, Any]]]:
    shares = {
        (STANDALONE, None): [50, 40, 45], (DSS, None): [80, 71, 76],
        (PDSS, 1.0): [50, 41, 45], (PDSS, 7.0): [60, 51, 56],
        (GRADED, 1.0): [50, 40, 47], (GRADED, 7.0): [70, 62, 66], (ADAPTIVE, 7.0): adaptive,
    }  # fmt: skip
    attacks = {(PDSS, 1.0): 0.1, (PDSS, 7.0): 0.3, (GRADED, 1.0): 0.1, (GRADED, 7.0): 0.2}
    return made(shares, {**attacks, (ADAPTIVE, 7.0): attack})


def verdicts(plan: list[Entry], outcomes: list[tuple[Cell, Any]]) -> dict[str, str]:
    return {e.what: e.verdict for e in expectations(rows(plan, outcomes), outcomes, 7.0)}


def test_a_verdict_needs_the_whole_interval() -> None:
    assert above(Mean(0.1, 0.01, 0.2, 3)) == HELD
    assert above(Mean(0.1, -0.01, 0.2, 3)) == UNDECIDED
    assert above(Mean(-0.1, -0.2, -0.01, 3)) == NOT_HELD
    assert above(None) == NOT_MEASURED
    nothing = Mean(0.0, 0.0, 0.0, 3)
    assert (above(nothing), above(nothing, or_equal=True)) == (NOT_HELD, HELD)
    assert (equal(nothing), equal(Mean(0.01, -0.04, 0.06, 3))) == (HELD, UNDECIDED)
    assert (equal(Mean(0.1, 0.05, 0.2, 3)), equal(None)) == (NOT_HELD, NOT_MEASURED)


def test_expectations_are_judged_from_paired_outcomes() -> None:
    found = verdicts(*typical(adaptive=[66, 56, 62]))
    assert found["DSS is not below PDSS at epsilon 7"] == HELD
    assert found["PDSS at epsilon 7 is above Standalone"] == HELD
    assert found["PDSS at epsilon 1 is not above PDSS at epsilon 7"] == HELD
    assert found["at epsilon 1 PDSS equals Standalone within 3 points"] == HELD
    assert found["the staircase is above the graded mechanism at epsilon 7"] == NOT_HELD
    assert found["the staircase is above the graded mechanism at epsilon 1"] == UNDECIDED
    rival = "an encoder-decoder guarantee or the adaptive budget is above the staircase at equal attack success"
    assert found[rival] == HELD  # half way between 1 and 7 the staircase has 55, 46, 50.5
    assert verdicts(*typical(adaptive=[45, 36, 40]))[rival] == NOT_HELD
    assert verdicts(*typical(adaptive=[56, 45, 52]))[rival] == UNDECIDED
    assert verdicts(*typical(adaptive=[66, 56, 62], attack=0.5))[rival] == NOT_MEASURED


def test_a_rival_is_held_against_the_best_staircase_that_gives_attackers_no_more() -> None:
    shares = {(PDSS, 1.0): [60, 61, 62], (PDSS, 7.0): [40, 41, 42], (ADAPTIVE, 7.0): [55, 56, 56]}
    plan, outcomes = made(shares, dict(zip(shares, (0.1, 0.3, 0.2), strict=True)))
    found = verdicts(plan, outcomes)
    what = "an encoder-decoder guarantee or the adaptive budget is above the staircase at "
    assert found[what + "equal attack success"] == HELD  # the staircase has 50, 51, 52 there
    assert found[what + "equal or less attack success"] == NOT_HELD  # and 60, 61, 62 at 0.1


def test_one_seed_and_missing_methods_decide_nothing() -> None:
    plan, outcomes = made({(STANDALONE, None): [50], (PDSS, 7.0): [60]}, {})
    found = verdicts(plan, outcomes)
    assert found["PDSS at epsilon 7 is above Standalone"] == UNDECIDED
    assert set(found.values()) == {UNDECIDED, NOT_MEASURED}


def test_table_pictures_and_page_tell_what_was_measured(tmp_path: Path) -> None:
    plan, outcomes = typical(adaptive=[66, 56, 62])
    told = comparison.report(plan, outcomes, tmp_path, "3 <cells> left", "made by --output '<x>'", quick=False)
    table = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert len(table) == len(plan) == len((tmp_path / "table.md").read_text().splitlines()) - 2
    row = next(r for r in table if r["method"] == "PDSS, staircase" and r["epsilon per token"] == "7")
    assert row["epsilon per document"] == "21"
    assert (row["attack success"], row["token overlap"]) == ("30.0%", "10.0%")
    assert (row["accuracy"], row["minus Standalone"], row["seeds"]) == ("55.7%", "+10.7", "3")
    assert re.fullmatch(r"\d+\.\d% to \d+\.\d%", row["95 % interval"])
    assert (row["rationales right"], row["kept"], row["right kind"]) == ("60.0%", "80.0%", "40.0%")
    dss = next(r for r in table if r["method"] == "DSS")
    assert (dss["epsilon per document"], dss["attack success"]) == ("infinite", "100.0%")
    for price in ("epsilon", "document-epsilon", "attack-success"):
        picture = (tmp_path / f"a--set----more-accuracy-over-{price}.png").read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert len(picture) > 10_000
    page = (tmp_path / "page.html").read_text()
    assert page.count('src="data:image/svg+xml;base64,') == page.count("<img") == 3
    assert re.search(r"(src|href|url\()\s*=?\s*[\"']?(https?:|//|file:)", page) is None
    assert "<script" not in page
    assert "<set>" not in page
    assert "a &lt;set&gt; &amp; more" in page
    assert "3 &lt;cells&gt; left" in page
    assert "PDSS answers 55.7% of" in page
    assert "PDSS answers 55.7% of" in told
    assert page.count('class="text held"') == sum(v == HELD for v in verdicts(plan, outcomes).values())


def test_every_method_runs_end_to_end(tiny: Path, tmp_path: Path) -> None:
    made_of = replace(MADE, settings=small(tiny, questions(tmp_path)), epsilons=(2.0,))
    plan = entries(made_of, made_of.epsilons)
    wanted = cells(plan, 1)
    assert len({cell.key for cell in wanted}) == len(wanted) == 15 + 10
    outcomes = [(cell, run_cell(cell)) for cell in wanted]
    comparison.report(plan, outcomes, tmp_path, "", "", quick=True)
    table = {row["method"]: row for row in csv.DictReader((tmp_path / "table.csv").open())}
    assert list(table) == [method.name for method in METHODS]
    for method in (PDSS, GRADED, ADAPTIVE, *ENCODERS, *TRAINED):
        row = table[method.name]
        assert all(row[c] for c in ("epsilon per document", "attack success", "token overlap", "rationales right"))
    assert table["Standalone"]["attack success"] == ""


def test_what_does_not_depend_on_epsilon_runs_once_a_seed() -> None:
    plan = entries(EVERYDAY, EVERYDAY.epsilons)
    assert len(EVERYDAY.epsilons) >= 4
    assert len(plan) == 5 + 1 + 9 * 4 + 1  # bounds, what has no epsilon, what has one, the LLM itself
    swept = {entry.method.name for entry in plan if entry.epsilon is not None}
    assert swept == {PDSS.name, GRADED.name, ADAPTIVE.name, *(m.name for m in (*ENCODERS[1:], *TRAINED))}
    assert {m.settings["privacy.mechanism"] for m in ENCODERS} == {
        "encoder-empirical", "encoder-dp-decoding", "encoder-difference-clipping", "encoder-top", "encoder-composed",
    }  # fmt: skip


def asked(**given: Any) -> argparse.Namespace:
    nothing = dict.fromkeys(("data", "sets", "methods", "epsilons", "llm", "slm", "encoder"))
    return argparse.Namespace(**{**nothing, "quick": False, **given})


def hours(plan: list[Entry], seeds: int) -> float:
    """Return the estimate for two processes; an encoder's cells are taken for those of the staircase."""
    known = [
        replace(e, method=PDSS, epsilon=e.epsilon or 7.0) if e.method in (*ENCODERS, *TRAINED) else e for e in plan
    ]
    return sum(Costs([]).seconds(cell) for cell in cells(known, seeds)) / 2 / 3600


def test_the_quick_form_is_two_epsilons_and_minutes() -> None:
    quick, whole = comparison.plan_of(asked(quick=True)), comparison.plan_of(asked())
    assert {entry.epsilon for entry in quick} == {None, 0.1, 7.0}
    assert {entry.label.split(",")[0] for entry in quick} == {entry.label.split(",")[0] for entry in whole}
    assert hours(quick, comparison.QUICK_SEEDS) < 10 / 60
    assert comparison.SEEDS >= 5
    assert hours(whole, comparison.SEEDS) < 4


def test_an_estimate_follows_what_was_measured() -> None:
    one, two = (Entry(EVERYDAY, PDSS, 7.0).cell(seed) for seed in (0, 1))
    slow = [(one, {"seconds": 500.0})]
    assert Costs(slow).seconds(two) == 500
    assert Costs(slow).seconds(Entry(EVERYDAY, STANDALONE, None).cell(0)) == Costs([]).seconds(
        Entry(EVERYDAY, STANDALONE, None).cell(0)
    )
    assert (
        what_is_left([one, two], slow, 1) == "1 of 2 cells are done, 1 left, about 8 min with 1 processes on idle cores"
    )
    assert what_is_left([one], slow, 1) == "1 of 1 cells are done, 0 left"
    assert (duration(20), duration(3600 + 120)) == ("a minute", "1 h 02 min")


def test_what_is_done_can_be_shown_without_running(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cell = Entry(EVERYDAY, METHODS[0], None).cell(0)
    line = {"key": cell.key, "correct": 20, "total": 100, "prompts": 0, "rationales": 0, "seconds": 2.0}
    (tmp_path / RESULTS).write_text(json.dumps(line) + "\n")
    comparison.main(["--show", "--methods", "zero-shot SLM", "--seeds", "3", "--output", str(tmp_path)])
    assert "1 of 3 cells are done, 2 left, about a minute" in capsys.readouterr().out
    assert "2 left" in (tmp_path / "page.html").read_text()


def test_unknown_names_are_refused() -> None:
    with pytest.raises(SystemExit, match=r"--methods: there is no magic; there are .*Standalone"):
        comparison.plan_of(asked(methods=["magic"]))
    with pytest.raises(SystemExit, match="--sets: there is no BoolQ; there are everyday"):
        comparison.plan_of(asked(sets=["BoolQ"]))


def test_real_data_runs_what_is_there_with_any_models(tmp_path: Path) -> None:
    for name in ("arc_easy", "boolq", "commonsenseqa", "openbookqa"):
        (tmp_path / name).mkdir()
    plan = comparison.plan_of(asked(data=tmp_path, llm="big/llm", slm="big/slm", output=tmp_path / "out"))
    assert {e.data.name for e in plan} == {"everyday", "ARC-Easy", "OpenBookQA", "CommonsenseQA", "BoolQ"}
    for entry in plan:
        if entry.data.name != "everyday":
            assert entry.method not in (*ENCODERS, *TRAINED)
            settings = entry.cell(0).run_settings()
            assert (settings.llm.model, settings.slm.model, settings.llm.dtype) == ("big/llm", "big/slm", "auto")
            assert settings.data.public_choices == (entry.data.name == "BoolQ")
    with_encoder = comparison.plan_of(asked(data=tmp_path, sets=["BoolQ"], encoder="/some/encoder", output=tmp_path))
    assert {e.method for e in with_encoder} == set(METHODS)
    assert real_data(tmp_path / "nowhere", tmp_path / "links", {}) == []
    for name in ("train_palm540b_rationales.jsonl", "dev.jsonl"):
        (tmp_path / "commonsenseqa" / name).write_text("{}")
    control = real_data(tmp_path, tmp_path / "links", {})[-1]
    assert {method.kind for method in control.methods} == {"standalone", "given"}
    assert (tmp_path / "links" / "train.jsonl").read_text() == "{}"


def test_links_to_other_data_are_not_taken_for_this(tmp_path: Path) -> None:
    """Else its results were those of the data before, and a folder that had moved ended in a traceback."""
    for folder, text in (("old", "{}"), ("moved", "{}"), ("other", "[]")):
        (tmp_path / folder / "commonsenseqa").mkdir(parents=True)
        for name in ("train_palm540b_rationales.jsonl", "dev.jsonl"):
            (tmp_path / folder / "commonsenseqa" / name).write_text(text)
    for folder in ("old", "moved"):
        assert real_data(tmp_path / folder, tmp_path / "links", {})[-1].name == "CommonsenseQA-PaLM"
        assert (tmp_path / "links" / "dev.jsonl").resolve().is_relative_to(tmp_path / folder)
    with pytest.raises(SystemExit, match="of other data than"):
        real_data(tmp_path / "other", tmp_path / "links", {})
    shutil.rmtree(tmp_path / "moved")
    with pytest.raises(SystemExit, match="give another --output"):
        real_data(tmp_path / "old", tmp_path / "links", {})


ROW = json.dumps({"question": "is ice hot", "choices": ["yes", "no"], "answer": "no"}) + "\n"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "there is no folder arc_easy, openbookqa, commonsenseqa, boolq in it"),
        ({"arc_easy/train.jsonl": ROW}, r"ARC-Easy: .*neither test\.jsonl nor dev\.jsonl.*arc_easy"),
        ({"boolq/dev.jsonl": ROW}, r"BoolQ: .*is not there.*boolq/train\.jsonl"),
        ({"boolq/train.jsonl": ROW + '{"question"', "boolq/dev.jsonl": ROW}, r"BoolQ: .*not JSON: .*train\.jsonl:2"),
        ({"boolq/train.jsonl": ROW, "boolq/dev.jsonl": ROW + "{}"}, r"BoolQ: .*dev\.jsonl:2"),
    ],
)
def test_wrong_real_data_is_told_by_name(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text(text)
    with pytest.raises(SystemExit, match=message):
        comparison.main([str(tmp_path / "data"), "--show", "--output", str(tmp_path / "out")])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "-2"], "argument --seeds: '-2' is no whole number of at least 1"),
        (["--workers", "0"], "argument --workers: '0' is no whole number of at least 1"),
        (["--epsilons", "-1"], "privacy.epsilon = -1.0 is out of range"),
    ],
)
def test_a_wrong_number_ends_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        comparison.main(["--show", "--output", str(tmp_path), *words])
    assert message in f"{caught.value} {capsys.readouterr().err}"


SHOWN = Example("what is ice", ("cold", "hot"), "cold")
ASKED = Example("what is fire", ("cold", "hot"), "hot", context="It burns.")


def test_demonstrations_are_label_prompts_with_their_answers() -> None:
    (example,) = with_demonstrations([ASKED], [SHOWN])
    first, second = (str(label_prompt(e)) for e in (SHOWN, ASKED))
    assert str(label_prompt(example)) == f"{first} cold {second}"


def test_the_llm_reads_the_questions_themselves() -> None:
    (prompt,) = raw_questions([ASKED], RunSettings()).prompts
    assert (prompt.question, prompt.choices) == ("It burns. what is fire", ("cold", "hot"))


def test_the_quality_of_rationales_is_that_before_the_filter() -> None:
    fact, example = next(
        (f, e) for f, e in zip(facts("private"), private_examples(), strict=True) if f.relation == "part"
    )
    wrong = next(choice for choice in example.choices if choice != example.answer)
    texts = [str(example.rationale), f"It is a thing. So the answer is {wrong}."]
    for text, right in zip(texts, (1, 0), strict=True):
        stored = {example.key: {"raw": "", "unfiltered": text, "decoded": None if right else "kept"}}
        assert rationale_quality(stored, [example]) == {"rationales": 1 - right, "right": right, "kind": right}
    assert names_kind(texts[0], fact)
    assert not names_kind(f"So the answer is {fact.kind}.", fact)
    assert rationale_quality({ASKED.key: stored[example.key]}, [ASKED]) == {"rationales": 1, "right": 0}
