"""A charge is never forgotten: over instances, processes, crashes and damage."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdss_fl.errors import StoreError
from pdss_fl.privacy import Charge, Ledger

ROOT = Path(__file__).parent.parent.parent


def charge(example: str = "e1", epsilon: float = 3.0, recipe: str = "r1", person: str | None = None) -> Charge:
    return Charge(example, person, recipe, epsilon, 1e-5, {"question": ["a", example]})


def ledger(folder: Path, limit: float = 10.0) -> Ledger:
    return Ledger(folder / "ledger.jsonl", limit)


def test_charges_outlive_the_process_and_stored_text_is_free(tmp_path: Path) -> None:
    assert ledger(tmp_path).charge([charge()]) == [True]
    again = ledger(tmp_path)
    assert again.spent("e1") == 3.0
    assert again.lookup("e1", "r1") == {"question": ["a", "e1"]}
    assert again.lookup("e1", "r2") is None
    assert again.charge([charge()]) == [False], "what is stored is looked up, not paid twice"
    assert again.spent("e1") == 3.0


def test_the_limit_stops_the_example_and_not_the_others(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    asked = [charge(recipe=f"r{i}") for i in range(4)] + [charge("e2")]
    assert book.charge(asked) == [True, True, True, False, True]
    assert book.spent("e1") == 9.0


def test_a_person_is_limited_over_all_examples(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    assert book.charge([charge(f"e{i}", 4.0, person="Ann") for i in range(3)]) == [True, True, False]
    assert ledger(tmp_path).spent_by_person("Ann") == 8.0
    assert book.charge([charge("e9", 4.0, person="Bob")]) == [True]
    assert "Ann" not in (tmp_path / "ledger.jsonl").read_text()


def test_an_infinite_charge_needs_an_infinite_limit(tmp_path: Path) -> None:
    assert ledger(tmp_path).charge([charge(epsilon=math.inf)]) == [False]
    assert ledger(tmp_path, math.inf).charge([charge(epsilon=math.inf)]) == [True]
    assert ledger(tmp_path, math.inf).spent("e1") == math.inf
    assert ledger(tmp_path).charge([charge(recipe="r2")]) == [False]


@pytest.mark.parametrize("epsilon", [math.nan, -1.0])
def test_a_charge_without_meaning_is_refused(tmp_path: Path, epsilon: float) -> None:
    with pytest.raises(ValueError, match="makes no sense"):
        ledger(tmp_path).charge([charge(epsilon=epsilon)])


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(1, 10_000))
def test_a_crash_at_any_byte_of_a_write_forgets_nothing_that_was_released(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    folder = tmp_path_factory.mktemp("crash")
    book = ledger(folder)
    book.charge([charge("before")])
    path = folder / "ledger.jsonl"
    before = path.read_bytes()
    book.charge([charge("torn", 4.0), charge("torn2", 4.0)])
    after = path.read_bytes()
    path.write_bytes(after[: len(before) + cut % (len(after) - len(before))])
    survivor = ledger(folder)
    assert survivor.spent("before") == 3.0
    for example in ("torn", "torn2"):
        assert survivor.spent(example) in (0.0, 4.0)
        assert (survivor.lookup(example, "r1") is None) == (survivor.spent(example) == 0.0)
    assert survivor.charge([charge("later")]) == [True]
    assert ledger(folder).spent("later") == 3.0
    assert all(json.loads(line) for line in path.read_text().splitlines())


@pytest.mark.parametrize("damage", [b"{}\n", b"garbage\n", b'{"example": "e1"}\n', b"\n"])
def test_damage_before_the_end_stops_the_client(tmp_path: Path, damage: bytes) -> None:
    ledger(tmp_path).charge([charge()])
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(damage + path.read_bytes())
    with pytest.raises(StoreError, match="damaged; restore it") as refusal:
        ledger(tmp_path)
    assert str(tmp_path) not in refusal.value.public


def test_a_ledger_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="state-dir"):
        Ledger(tmp_path / "file" / "ledger.jsonl", 1.0)


def test_only_its_owner_reads_it(tmp_path: Path) -> None:
    ledger(tmp_path).charge([charge()])
    assert (tmp_path / "ledger.jsonl").stat().st_mode & 0o077 == 0


def test_processes_that_charge_at_once_do_not_pass_the_limit_together(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from pdss_fl.privacy import Charge, Ledger\n"
        "book = Ledger(Path(sys.argv[1]), 10.0)\n"
        "sys.stdin.readline()\n"
        "ok = [book.charge([Charge('e', None, f'{sys.argv[2]}-{i}', 1.0, 0.0, {})])[0] for i in range(8)]\n"
        "print(sum(ok))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "ledger.jsonl")]
    processes = [
        subprocess.Popen([*command, str(i)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for i in range(3)
    ]
    accepted = [int(process.communicate("go\n")[0]) for process in processes]
    assert sum(accepted) == 10
    assert ledger(tmp_path).spent("e") == 10.0
