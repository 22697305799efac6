"""What was spent is on disk before a release, adds up over runs and processes, and is never forgotten."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from pdss_fl.errors import StoreError
from pdss_fl.privacy import Charge, Ledger

PAYLOAD: dict[str, Any] = {"question": ["a", "_"], "choices": [["b"], ["c"]], "order": [1, None, 0]}


def a_charge(
    example: str = "e1", epsilon: float = 1.0, person: str | None = None, recipe: str = "r1", **payload: Any
) -> Charge:
    return Charge(example, person, recipe, epsilon, 1e-5, payload or PAYLOAD)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ledger.jsonl"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_release_is_stored_for_a_free_second_sending(path: Path) -> None:
    ledger = Ledger(path, 10.0)
    assert ledger.lookup("e1", "r1") is None
    assert ledger.charge([a_charge()]) == [True]
    for reader in (ledger, Ledger(path, 10.0)):
        assert reader.lookup("e1", "r1") == PAYLOAD
        assert reader.lookup("e1", "r2") is None
        assert reader.lookup("e2", "r1") is None
        assert reader.spent("e1") == 1.0
        assert reader.spent("e2") == 0.0
    assert ledger.charge([a_charge()]) == [False], "what is stored is looked up, not paid for again"
    assert len(lines(path)) == 1


def test_a_line_holds_charge_and_release_together(path: Path) -> None:
    Ledger(path, math.inf).charge([a_charge(epsilon=2.5, person="Ada Lovelace")])
    (line,) = lines(path)
    assert list(line) == ["time", "example", "person", "recipe", "epsilon", "delta", "released", "hash"]
    assert (line["epsilon"], line["delta"], line["released"]) == (2.5, 1e-5, PAYLOAD)
    assert line["time"].endswith("+00:00")
    assert "Ada" not in path.read_text()


def test_the_file_is_the_owners_alone(path: Path) -> None:
    Ledger(path, 1.0)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    Ledger(path, 1.0)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_an_exhausted_budget_stops_the_example_and_not_the_others(path: Path) -> None:
    ledger = Ledger(path, 2.0)
    batch = [a_charge(recipe=f"r{i}") for i in range(3)] + [
        a_charge("e2", epsilon=2.0),
        a_charge("e3", epsilon=2.1),
    ]
    assert ledger.charge(batch) == [True, True, False, True, False]
    assert Ledger(path, 2.0).charge([a_charge(recipe="later"), a_charge("e2", 1e-9, recipe="r")]) == [
        False,
        False,
    ]
    assert ledger.lookup("e1", "r2") is None, "what was refused is not stored"
    assert [ledger.spent(e) for e in ("e1", "e2", "e3")] == [2.0, 2.0, 0.0]
    assert len(lines(path)) == 3


def test_the_limit_is_the_nodes_at_the_time(path: Path) -> None:
    Ledger(path, 5.0).charge([a_charge(epsilon=5.0)])
    assert Ledger(path, 2.0).charge([a_charge(epsilon=0.5, recipe="r2")]) == [False]
    assert Ledger(path, 6.0).charge([a_charge(epsilon=0.5, recipe="r2")]) == [True]


def test_a_person_pays_for_all_of_their_examples(path: Path) -> None:
    ledger = Ledger(path, 3.0)
    batch = [
        a_charge("e1", 2.0, "ada"),
        a_charge("e2", 2.0, "ada"),
        a_charge("e3", 1.0, "ada"),
        a_charge("e4", 2.0, "bob"),
    ]
    assert ledger.charge(batch) == [True, False, True, True]
    assert [ledger.spent_by_person(person) for person in ("ada", "bob", "eve")] == [3.0, 2.0, 0.0]
    assert Ledger(path, 3.0).charge([a_charge("e5", 1.0, "ada"), a_charge("e6", 1.0)]) == [False, True]


def test_what_an_example_spent_before_its_person_was_known_counts(path: Path) -> None:
    ledger = Ledger(path, 3.0)
    ledger.charge([a_charge("e1", 2.0), a_charge("e2", 1.0, "ada")])
    assert ledger.charge([a_charge("e1", 0.5, "ada", "r2")]) == [False], "2 + 1 + 0.5 of ada's 3"
    assert Ledger(path, 4.0).charge([a_charge("e1", 0.5, "ada", "r2")]) == [True]
    assert Ledger(path, 4.0).spent_by_person("ada") == 3.5


def test_no_guarantee_needs_a_node_without_limit(path: Path) -> None:
    assert Ledger(path, 1e300).charge([a_charge(epsilon=math.inf)]) == [False]
    assert Ledger(path, math.inf).charge([a_charge(epsilon=math.inf)]) == [True]
    assert Ledger(path, math.inf).spent("e1") == math.inf
    assert lines(path)[0]["epsilon"] is None
    assert Ledger(path, 1e300).charge([a_charge(epsilon=0.1, recipe="r2")]) == [False]


@pytest.mark.parametrize("epsilon", [-1.0, math.nan])
def test_no_charge_gives_back(epsilon: float) -> None:
    with pytest.raises(ValueError, match="makes no sense"):
        a_charge(epsilon=epsilon)


def test_two_ledgers_see_each_others_charges(path: Path) -> None:
    first, second = Ledger(path, 2.0), Ledger(path, 2.0)
    assert first.charge([a_charge(recipe="r1")]) == [True]
    assert second.lookup("e1", "r1") == PAYLOAD
    assert second.charge([a_charge(recipe="r2")]) == [True]
    assert first.charge([a_charge(recipe="r3")]) == [False]
    assert first.spent("e1") == 2.0


def _spend(path: Path, worker: int, ready: Any) -> None:
    ledger = Ledger(path, 10.0)
    ready.wait()
    accepted = [
        ledger.charge([a_charge(recipe=f"{worker}-{i}"), a_charge(f"own{worker}", 0.25, recipe=f"{i}")])
        for i in range(8)
    ]
    (path.parent / f"accepted-{worker}").write_text(json.dumps([a for a, _ in accepted]))


def test_processes_that_charge_at_once_cannot_pass_the_limit_together(path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(4)
    workers = [context.Process(target=_spend, args=(path, i, ready)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    accepted = [json.loads((path.parent / f"accepted-{i}").read_text()) for i in range(4)]
    assert sum(map(sum, accepted)) == 10, "32 tried"
    ledger = Ledger(path, 10.0)
    assert ledger.spent("e1") == 10.0
    assert [ledger.spent(f"own{i}") for i in range(4)] == [2.0] * 4
    assert len(lines(path)) == 10 + 32


@pytest.mark.parametrize("torn", [b'{"time": "2026-01-01", "exam', b"\x00" * 4096, b"\xff", b"}"])
def test_a_line_that_a_crash_cut_off_is_dropped_and_no_other(path: Path, torn: bytes) -> None:
    Ledger(path, 10.0).charge([a_charge(), a_charge("e2", 2.0)])
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    ledger = Ledger(path, 10.0)
    assert (ledger.spent("e1"), ledger.spent("e2")) == (1.0, 2.0)
    assert ledger.charge([a_charge(recipe="r2")]) == [True]
    assert path.read_bytes().startswith(whole)
    assert len(lines(path)) == 3
    assert Ledger(path, 10.0).spent("e1") == 2.0


def witness(path: Path) -> Path:
    return path.with_name(path.name + ".witness")


@pytest.fixture
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits for the disk, in tests that put the files of a crash there themselves."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.mark.usefixtures("unsynced")
def test_every_cut_of_a_batch_leaves_a_readable_ledger_with_its_whole_lines(path: Path) -> None:
    """A kill at any byte of what is written: the witness is still the one before."""
    ledger = Ledger(path, 10.0)
    ledger.charge([a_charge()])
    kept, before = path.stat().st_size, witness(path).read_bytes()
    ledger.charge([a_charge("e2"), a_charge("e3")])
    whole = path.read_bytes()
    first = whole.index(b"\n", kept) + 1
    for end in range(kept, len(whole)):
        path.write_bytes(whole[:end])
        witness(path).write_bytes(before)
        again = Ledger(path, 10.0)
        assert [again.spent(e) for e in ("e1", "e2", "e3")] == [1.0, float(end >= first), 0.0]
        assert again.lookup("e3", "r1") is None
        if again.lookup("e2", "r1") is not None:
            assert json.loads(witness(path).read_text())["lines"] == 2, "synced before it can be sent"


@pytest.mark.usefixtures("unsynced")
def test_every_state_that_a_power_cut_can_leave_counts_what_was_released_or_stops(path: Path) -> None:
    """The file at any byte, the witness of before or after, and its next version at any byte: all together.

    A release happens once the new witness is in place; then the file is on disk. From there on nothing may be
    forgotten: either it is counted, or the client stops.
    """
    ledger = Ledger(path, 10.0)
    ledger.charge([a_charge()])
    kept, before = path.stat().st_size, witness(path).read_bytes()
    ledger.charge([a_charge("e2", 2.0)])
    whole, after = path.read_bytes(), witness(path).read_bytes()
    fresh = path.with_name(path.name + ".witness-new")
    for end in range(kept, len(whole) + 1, 5):
        for known, torn in ((before, after[: end % len(after)]), (after, None)):
            path.write_bytes(whole[:end])
            witness(path).write_bytes(known)
            fresh.unlink(missing_ok=True)
            if torn is not None:
                fresh.write_bytes(torn)
            if known == after and end < len(whole):
                broken(path, "1 of the 2 lines are gone")
                continue
            again = Ledger(path, 10.0)
            assert (again.spent("e1"), again.spent("e2")) == (1.0, 2.0 if end == len(whole) else 0.0)
            assert again.charge([a_charge("e2", 2.0)]) == [end < len(whole)]
            assert again.spent("e2") == 2.0


def _killed_in_line(path: Path, number: int, ready: Path) -> None:
    """Charge, and die without any clean-up before the ``number``-th line that the writing executes."""
    seen = 0

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal seen
        if frame.f_code.co_name not in ("append_lines", "sync_directory"):
            return None
        seen += event == "line"
        if seen > number:
            os._exit(9)
        return trace

    ledger = Ledger(path, 10.0)
    sys.settrace(trace)
    accepted = ledger.charge([a_charge("e2"), a_charge("e3", 2.0)])
    sys.settrace(None)
    ready.write_text(json.dumps(accepted))


def test_a_kill_at_any_step_of_writing_forgets_nothing_that_may_be_released(tmp_path: Path) -> None:
    context, survived = multiprocessing.get_context("fork"), False
    for number in range(200):
        path, ready = tmp_path / str(number) / "ledger.jsonl", tmp_path / str(number) / "ready"
        Ledger(path, 10.0).charge([a_charge()])
        child = context.Process(target=_killed_in_line, args=(path, number, ready))
        child.start()
        child.join(60)
        survived = child.exitcode == 0
        assert survived == ready.exists()
        assert survived or child.exitcode == 9
        ledger = Ledger(path, 10.0)
        spent = [ledger.spent(e) for e in ("e1", "e2", "e3")]
        assert spent in ([1.0, 0.0, 0.0], [1.0, 1.0, 2.0])
        assert (ledger.lookup("e3", "r1") is None) == (spent[2] == 0.0)
        assert ledger.charge([a_charge("e1", recipe="later")]) == [True]
        assert Ledger(path, 10.0).spent("e1") == 2.0
        if survived:
            assert spent[2] == 2.0
            break
    assert survived
    assert number > 15, "every step was tried"


def broken(path: Path, why: str) -> None:
    for use in (lambda: Ledger(path, 10.0), lambda: Ledger(path, 10.0)):
        with pytest.raises(StoreError, match=why) as caught:
            use()
        assert str(path) not in str(caught.value)


def test_a_deleted_ledger_does_not_start_anew(path: Path) -> None:
    Ledger(path, 10.0).charge([a_charge(), a_charge("e2")])
    path.unlink()
    broken(path, r"2 of the 2 lines are gone; restore")


def test_an_old_copy_of_the_ledger_is_noticed(path: Path) -> None:
    ledger = Ledger(path, 10.0)
    ledger.charge([a_charge()])
    old = path.read_bytes()
    ledger.charge([a_charge("e2")])
    path.write_bytes(old)
    broken(path, r"1 of the 2 lines are gone")


def test_another_ledger_of_the_same_length_is_noticed(path: Path, tmp_path: Path) -> None:
    Ledger(path, 10.0).charge([a_charge()])
    Ledger(tmp_path / "other.jsonl", 10.0).charge([a_charge("e9", 0.1)])
    path.write_bytes((tmp_path / "other.jsonl").read_bytes())
    broken(path, r"line 1 is not the one that was written")


def test_a_lower_figure_or_a_line_taken_out_breaks_the_running_hash(path: Path) -> None:
    Ledger(path, 10.0).charge([a_charge(epsilon=5.0), a_charge("e2"), a_charge("e3")])
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"epsilon": 5.0', b'"epsilon": 0.5'))
    broken(path, r"line 1 is damaged")
    first, _, third = whole.splitlines(keepends=True)
    path.write_bytes(first + third)
    broken(path, r"line 2 is damaged")


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"lines": -1, "hash": ""}', '{"lines": 1, "hash": 2}', "\x00"])
def test_a_damaged_witness_stops_the_client(path: Path, text: str) -> None:
    Ledger(path, 10.0).charge([a_charge()])
    witness(path).write_text(text)
    broken(path, "the witness is damaged")


def test_a_lost_witness_is_made_again(path: Path) -> None:
    Ledger(path, 10.0).charge([a_charge()])
    known = witness(path).read_bytes()
    witness(path).unlink()
    assert Ledger(path, 10.0).spent("e1") == 1.0
    assert witness(path).read_bytes() == known
    assert stat.S_IMODE(witness(path).stat().st_mode) == 0o600


def test_a_damage_is_reported_at_every_use(path: Path) -> None:
    ledger = Ledger(path, 10.0)
    ledger.charge([a_charge()])
    path.write_bytes(b"damage\n")
    for _ in range(2):
        with pytest.raises(StoreError, match="line 1 is damaged"):
            ledger.lookup("e1", "r1")


@pytest.mark.parametrize(
    "damage",
    [
        "not json",
        "",
        "[]",
        '"text"',
        "{}",
        '{"example": "e1", "person": null, "recipe": "r", "epsilon": NaN, "released": {}}',
        '{"example": "e1", "person": null, "recipe": "r", "epsilon": -1, "released": {}}',
        '{"example": "e1", "person": null, "recipe": "r", "epsilon": "much", "released": {}}',
        '{"example": "e1", "person": null, "recipe": "r", "epsilon": 1}',
        '{"example": 1, "person": null, "recipe": "r", "epsilon": 1, "released": {}}',
        '{"example": "e1", "person": null, "recipe": ["r"], "epsilon": 1, "released": {}}',
    ],
)
def test_any_other_damage_stops_the_client(path: Path, damage: str) -> None:
    ledger = Ledger(path, 10.0)
    ledger.charge([a_charge(), a_charge("e2")])
    first, second = path.read_text().splitlines()
    path.write_text(f"{first}\n{damage}\n{second}\n")
    before = path.read_bytes()
    for use in (
        lambda: Ledger(path, 10.0),
        lambda: ledger.charge([a_charge("e3")]),
        lambda: ledger.lookup("e1", "r1"),
    ):
        with pytest.raises(
            StoreError, match=r"ledger below this node's state-dir .* line 2 is damaged; restore"
        ) as caught:
            use()
        assert str(path) not in str(caught.value)
    assert path.read_bytes() == before


def test_an_unwritable_place_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="state-dir cannot be written") as caught:
        Ledger(tmp_path / "file" / "ledger.jsonl", 1.0)
    assert str(tmp_path) not in str(caught.value)
    assert str(tmp_path) in caught.value.local
    (tmp_path / "ledger.jsonl").mkdir()
    with pytest.raises(StoreError, match="state-dir"):
        Ledger(tmp_path / "ledger.jsonl", 1.0)


def test_a_ledger_that_vanishes_in_use_is_an_error_and_no_new_start(path: Path) -> None:
    ledger = Ledger(path, 10.0)
    ledger.charge([a_charge()])
    path.unlink()
    for use in (
        lambda: ledger.charge([a_charge("e2")]),
        lambda: ledger.lookup("e1", "r1"),
        lambda: ledger.spent("e1"),
    ):
        with pytest.raises(StoreError, match="state-dir"):
            use()
    assert not path.exists()


def test_what_cannot_be_written_is_not_accepted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, as the operating system reports it when the file is synced."""
    ledger = Ledger(path, 10.0)
    ledger.charge([a_charge()])

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="free space"):
            ledger.charge([a_charge("e2")])
    assert Ledger(path, 10.0).spent("e1") == 1.0
    assert Ledger(path, 10.0).spent("e2") in (0.0, 1.0), "counted or not, but readable"


def test_nothing_to_charge_writes_nothing(path: Path) -> None:
    assert Ledger(path, 1.0).charge([]) == []
    assert path.read_bytes() == b""


def test_texts_in_any_script_survive(path: Path) -> None:
    charge = a_charge(person="秘密 \ud800", recipe="日本\u2028語", question=["für", "\u2028"])
    assert Ledger(path, 5.0).charge([charge]) == [True]
    assert Ledger(path, 5.0).lookup("e1", "日本\u2028語") == {"question": ["für", "\u2028"]}
    assert Ledger(path, 5.0).spent_by_person("秘密 \ud800") == 1.0


def test_deltas_add_up_to_a_thousandth_and_no_further_whatever_epsilon_is_left(tmp_path: Path) -> None:
    """Of an example, of a person over all examples, over processes, and not of what has no delta."""
    path = tmp_path / "ledger.jsonl"
    third = 1e-3 / 3
    for i in range(3):
        assert Ledger(path, 100.0).charge([Charge("a", "p", f"r{i}", 0.1, third, {})]) == [True]
    after = [
        Charge("a", None, "r3", 0.1, 1e-5, {}),
        Charge("b", "p", "r3", 0.1, 1e-5, {}),
        Charge("c", None, "r3", 0.1, 1e-5, {}),
        Charge("a", "p", "r4", 0.1, 0.0, {}),
    ]
    assert Ledger(path, 100.0).charge(after) == [False, False, True, True]
    assert Ledger(path, 100.0).charge([Charge("c", "p", "r5", 0.1, 1e-5, {})]) == [False], "what c spent counts to p"
    assert Ledger(path, math.inf).charge([Charge("a", "p", "r6", 0.1, 1e-5, {})]) == [True]
