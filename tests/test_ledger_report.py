"""What a person reads of a ledger: sums, what is left, and whether the file is all there."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from pdss_fl.errors import StoreError
from pdss_fl.ledger_report import describe_ledger
from pdss_fl.privacy import Charge, Ledger
from pdss_fl.privacy.counts import TEST_SPLIT

ADA, BOB = "a" * 64, "b" * 64


def charge(example: str, epsilon: float, person: str | None = None, recipe: str = "staircase epsilon=8") -> Charge:
    return Charge(example, person, recipe, epsilon, 1e-6, {"question": ["secretword"]})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.jsonl"
    Ledger(path, 300.0).charge(
        [
            charge(ADA, 128.0, "ada"),
            charge(ADA, 64.0, "ada", "blocks epsilon=4"),
            charge(BOB, 32.0),
            charge("c" * 64, 16.5, "ada"),
        ]
    )
    return path


def row(text: str, start: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith(f"│ {start}"))
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_each_example_shows_its_releases_and_what_is_left(path: Path) -> None:
    shown = describe_ledger(path, limit=300.0)
    assert row(shown, "aaaa")[2:7] == ["staircase, blocks", "2", "192", "108", "2e-06"]
    assert row(shown, "bbbb")[1:7] == ["-", "staircase", "1", "32", "268", "1e-06"]
    assert "epsilon left" not in describe_ledger(path)
    assert row(describe_ledger(path), "aaaa")[3:6] == ["2", "192", "2e-06"]


def test_totals_add_a_persons_examples_up_and_no_others(path: Path) -> None:
    shown = describe_ledger(path, limit=200.0)
    person = row(shown, "aaaa")[1]
    assert row(shown, person) == [person, "2", "208.5", "0"]
    assert "releases     4 of 3 examples, 1 persons named" in shown
    assert "sum          epsilon 240.5" in shown
    assert "data set     epsilon 208.5 at delta 3e-06" in shown
    assert "running hash ok" in shown


def test_nothing_private_is_shown(path: Path) -> None:
    shown = describe_ledger(path, limit=300.0)
    assert "secretword" not in shown
    assert "ada" not in shown.replace("data", "")


def test_the_biggest_spenders_are_shown_first_and_the_rest_counted(path: Path) -> None:
    shown = describe_ledger(path, rows=1)
    assert "the 1 of 3 that spent most" in shown
    assert "aaaaaaaaaaaa" in shown
    assert "bbbb" not in shown


def test_no_guarantee_reads_infinite(tmp_path: Path) -> None:
    Ledger(tmp_path / "l", math.inf).charge([charge(ADA, math.inf, recipe="identity")])
    assert row(describe_ledger(tmp_path / "l", limit=math.inf), "aaaa")[2:6] == [
        "identity",
        "1",
        "infinite",
        "infinite",
    ]


def test_a_damaged_file_is_shown_up_to_the_damage(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"32.0", b"3.20"))
    shown = describe_ledger(path)
    assert "running hash DAMAGED: line 3 is damaged" in shown
    assert "aaaaaaaaaaaa" in shown
    assert "bbbb" not in shown
    path.write_bytes(b"")
    assert "DAMAGED: 4 of the 4 lines are gone" in describe_ledger(path)


def test_noisy_counts_are_shown_apart(path: Path) -> None:
    without = describe_ledger(path)
    Ledger(path, 300.0).charge([charge(TEST_SPLIT, 1.0, recipe=f"geometric {i}") for i in range(3)])
    shown = describe_ledger(path).splitlines()
    (added,) = (line for line in shown if line.startswith("counts"))
    assert "epsilon 3 of each question of the test split, in 3 noisy counts" in added
    assert [line for line in shown if line != added] == without.splitlines()


def test_it_only_reads(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b'{"time": "cut off')
    before = {p.name: p.read_bytes() for p in path.parent.iterdir()}
    assert "running hash ok" in describe_ledger(path)
    assert {p.name: p.read_bytes() for p in path.parent.iterdir()} == before


def test_an_empty_ledger_has_spent_nothing(tmp_path: Path) -> None:
    Ledger(tmp_path / "l", 1.0)
    shown = describe_ledger(tmp_path / "l")
    assert "data set     epsilon 0 at delta 0 " in shown
    assert "Persons" not in shown


def test_a_missing_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no ledger can be read at"):
        describe_ledger(tmp_path / "nowhere")
    with pytest.raises(StoreError):
        describe_ledger(tmp_path)
