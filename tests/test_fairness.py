"""Accuracy by client, worst, best and gain, from known counts."""

from __future__ import annotations

from typing import Any

import pytest

from pdss_fl.fairness import SHOWN, by_client, spread
from pdss_fl.messages import PrivacyStatement
from pdss_fl.report import render_summary
from pdss_fl.results import accuracy

CLAIM = PrivacyStatement("staircase", "pure-ldp", 2.5, 25, 1e-5, 10, "basic composition", 0.3, "k=3", "ab")


def row(method: str, node: int, correct: int, total: int = 100, **more: Any) -> dict[str, Any]:
    return {"method": method, "round": 1, "phase": "evaluate", "node": node, "num-examples": total,
            "correct": correct, **more}  # fmt: skip


ROWS = [
    {"method": "standalone", "round": 1, "phase": "distill", "node": 7, "num-examples": 50},
    row("standalone", 7, 40), row("standalone", 8, 50), row("standalone", 9, 0, 0),
    row("pdss", 7, 10), row("pdss", 7, 55), row("pdss", 8, 48), row("pdss", 9, 0, 0),
]  # fmt: skip


def test_each_client_has_its_accuracy_its_gain_and_its_epsilon() -> None:
    first, second, third = by_client(ROWS, {"pdss": {7: CLAIM}})
    assert first["accuracy"]["pdss"] == accuracy(55, 100), "the last evaluation counts"
    assert first["gain"] == {"pdss": pytest.approx(15.0)}
    assert second["gain"] == {"pdss": pytest.approx(-2.0)}
    assert first["privacy"]["epsilon_per_token"] == 2.5
    assert (third["client"], third["accuracy"], third["gain"]) == (9, {"standalone": None, "pdss": None}, {})


def test_worst_and_best_leave_out_who_reports_nothing_and_say_how_many() -> None:
    found = spread(by_client(ROWS, {}))
    assert (found["pdss"]["worst"], found["pdss"]["best"]) == (0.48, 0.55)
    assert (found["pdss"]["least_gain"], found["pdss"]["most_gain"]) == (pytest.approx(-2.0), pytest.approx(15.0))
    assert (found["pdss"]["reported"], found["pdss"]["silent"]) == (2, 1)


def test_a_report_without_right_answers_is_none() -> None:
    (entry,) = by_client([{"method": "pdss", "phase": "evaluate", "node": 1, "num-examples": 5}], {})
    assert entry["accuracy"] == {"pdss": None}


def shown(rows: list[dict[str, Any]]) -> str:
    clients = by_client(rows, {"pdss": {7: CLAIM}})
    used = {"model": "", "prompts": 0, "tokens": 0}
    return render_summary(
        {"accuracy": {}, "clients": clients, "fairness": spread(clients), "privacy": None, "seconds": {}, "llm": used}
    )


def test_the_printed_report_shows_it() -> None:
    text = shown(ROWS)
    for part in ("not told", "+15.0", "-2.0", "2.5", "worst client 48.0%, best 55.0%", "-2.0 to +15.0 points",
                 "1 clients report nothing"):  # fmt: skip
        assert part in text
    assert "pdss: no client reports its accuracy" in shown([row("pdss", 1, 0, 0)])


def test_of_many_clients_those_that_gained_least_are_printed() -> None:
    rows = [row(m, node, 30 + (node if m == "pdss" else 0)) for node in range(50) for m in ("standalone", "pdss")]
    text = shown(rows)
    assert f"{SHOWN} of 50" in text
    assert "+0.0" in text
    assert "+49.0 " not in text.split("worst client")[0]
