"""JSON lines are read as they are commonly written; what is wrong is named by its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pdss_fl.data.division import Division
from pdss_fl.data.example import Example
from pdss_fl.data.sources import from_path, read_any, read_jsonl, read_questions
from pdss_fl.errors import DataError

GOOD = {"id": "7", "question": "What has feathers?", "choices": ["a robin", "a car"], "answer": "a robin"}


def write(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def many(count: int, tag: str) -> list[dict[str, object]]:
    return [{**GOOD, "question": f"{tag} question {i}?"} for i in range(count)]


def test_a_line_becomes_an_example_and_other_keys_are_ignored(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", {**GOOD, "rationale": None, "person": "p1"})
    assert read_jsonl(path) == [Example("What has feathers?", ("a robin", "a car"), "a robin", person="p1")]


def test_an_open_question_has_no_choices(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", {"question": "How many legs has a cat?", "answer": "four"})
    assert read_jsonl(path)[0].choices == ()


def test_a_choice_that_stands_there_twice_counts_once(tmp_path: Path) -> None:
    twice = {**GOOD, "choices": ["a boat", "a robin ", "a boat", "a robin"], "answer": "a robin"}
    assert read_jsonl(write(tmp_path / "d.jsonl", twice))[0].choices == ("a boat", "a robin")


@pytest.mark.parametrize(
    ("record", "what"),
    [
        ({**GOOD, "question": ""}, "question"),
        ({k: v for k, v in GOOD.items() if k != "question"}, "question"),
        ({**GOOD, "answer": "a boat"}, "answer"),
        ({**GOOD, "answer": 3}, "answer"),
        ({**GOOD, "choices": ["a robin"]}, "two different choices"),
        ({**GOOD, "choices": ["a robin", "a robin"]}, "two different choices"),
        ({**GOOD, "choices": "a robin"}, "choices"),
        ({**GOOD, "choices": ["a robin", 3]}, "choices"),
        ([1, 2], "object"),
    ],
)
def test_a_malformed_example_is_named_by_its_line_and_never_quoted(tmp_path: Path, record: object, what: str) -> None:
    path = write(tmp_path / "d.jsonl", GOOD, record)
    with pytest.raises(DataError, match=what) as refusal:
        read_jsonl(path)
    assert str(path) not in refusal.value.public
    assert "robin" not in refusal.value.local
    assert f"{path}:2" in refusal.value.local


def test_a_line_that_is_not_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n{half")
    with pytest.raises(DataError, match="not JSON") as refusal:
        read_jsonl(path)
    assert f"{path}:3" in refusal.value.local


def test_missing_empty_and_binary_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("missing", "empty", "binary"):
        with pytest.raises(DataError):
            read_jsonl(tmp_path / name)


def test_questions_need_no_answer(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", {"question": "What has feathers?", "choices": ["a robin", "a car"]})
    assert read_questions(path)[0].answer == ""


def test_one_file_is_divided_into_disjoint_sides(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", *many(50, "a"))
    clients = [from_path(path, Division("iid"), i, 2, train=15, test=6, seed=1) for i in range(2)]
    questions = [e.question for train, test in clients for e in (*train, *test)]
    assert [len(train) for train, _ in clients] == [15, 15]
    assert [len(test) for _, test in clients] == [6, 6]
    assert len(set(questions)) == len(questions)


def test_a_folder_keeps_its_own_division(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", *many(20, "train"))
    write(tmp_path / "dev.jsonl", *many(10, "dev"))
    train, test = from_path(tmp_path, Division("iid"), 1, 2, train=100, test=100, seed=0)
    assert {e.question.split()[0] for e in train} == {"train"}
    assert {e.question.split()[0] for e in test} == {"dev"}
    assert (len(train), len(test)) == (10, 5)


def test_a_file_per_client(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", *many(6, "a"))
    write(tmp_path / "b.jsonl", *many(6, "b"))
    train, test = from_path(tmp_path, Division("file"), 1, 2, train=4, test=2, seed=0)
    assert {e.question.split()[0] for e in (*train, *test)} == {"b"}
    with pytest.raises(DataError, match="finds 2"):
        from_path(tmp_path, Division("file"), 2, 3, train=4, test=2, seed=0)


def test_a_folder_without_test_side_and_a_part_without_examples_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", *many(3, "train"))
    with pytest.raises(DataError, match=r"neither test\.jsonl nor dev\.jsonl"):
        from_path(tmp_path, Division("iid"), 0, 1, train=4, test=2, seed=0)
    write(tmp_path / "dev.jsonl", *many(3, "dev"))
    with pytest.raises(DataError, match="use fewer clients"):
        from_path(tmp_path, Division("iid"), 4, 5, train=4, test=2, seed=0)


def test_a_users_file_is_questions_or_plain_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"question": "what?", "answer": ""}\n{"question": "who?", "answer": "me"}\n')
    (tmp_path / "b.txt").write_text("one text \r\n\n  and another\n")
    (tmp_path / "c.txt").write_text('\n{"question": "what?"}\n')
    (tmp_path / "d.jsonl").write_text("no json\n")
    (tmp_path / "e").write_text(" \n")
    assert [(e.question, e.answer) for e in read_any(tmp_path / "a.jsonl")] == [("what?", ""), ("who?", "me")]
    assert [(e.question, e.choices) for e in read_any(tmp_path / "b.txt")] == [("one text", ()), ("and another", ())]
    assert [e.question for e in read_any(tmp_path / "c.txt")] == ["what?"]
    for wrong in ("d.jsonl", "e", "missing"):
        with pytest.raises(DataError):
            read_any(tmp_path / wrong)
