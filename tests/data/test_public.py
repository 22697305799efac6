"""Public examples cannot be made of private ones."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from pdss_fl.data.everyday import private_examples, public_examples
from pdss_fl.data.example import Example
from pdss_fl.data.public import PublicExample, public_built_in, public_from_path, require_public
from pdss_fl.errors import DataError, SettingError

SECRET = "which syndrome does Alma have"


def write(path: Path, *questions: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"question": q, "choices": ["yes", "no"], "answer": "no"} for q in questions]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_built_in_split_shares_no_question_with_the_private_one() -> None:
    examples = [p.example for p in public_built_in()]
    assert examples == list(public_examples())
    assert not {e.question for e in examples} & {e.question for e in private_examples()}


def test_nothing_else_makes_one() -> None:
    private = private_examples()[0]
    with pytest.raises(TypeError):
        PublicExample(private, "mine")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"public_built_in\(\) or public_from_path\(\)"):
        PublicExample(private, "mine", object())
    with pytest.raises((TypeError, ValueError)):
        dataclasses.replace(public_built_in()[0], example=private)


def test_examples_and_look_alikes_are_refused_at_run_time() -> None:
    require_public(public_built_in()[:2])
    with pytest.raises(TypeError, match="this is a Example"):
        require_public([public_built_in()[0], private_examples()[0]])

    class Disguised(PublicExample):
        def __post_init__(self, seal: object) -> None:
            pass

    with pytest.raises(TypeError, match="this is a Disguised"):
        require_public([Disguised(private_examples()[0], "built-in", None)])


def test_declared_public_files_are_read_in_order(tmp_path: Path) -> None:
    write(tmp_path / "public" / "b.jsonl", "what is a kite")
    write(tmp_path / "public" / "a.jsonl", "what is a boat")
    node = write(tmp_path / "node" / "mine.jsonl", SECRET)
    found = public_from_path(tmp_path / "public", [node])
    assert [(p.example.question, p.source) for p in found] == [
        ("what is a boat", "public"),
        ("what is a kite", "public"),
    ]


@pytest.mark.parametrize("how", ["itself", "inside", "around", "symlink", "hard link"])
def test_a_nodes_own_path_is_refused(tmp_path: Path, how: str) -> None:
    data = write(tmp_path / "all" / "node" / "mine.jsonl", SECRET)
    link = tmp_path / "public.jsonl"
    if how == "symlink":
        link.symlink_to(data)
    if how == "hard link":
        link.hardlink_to(data)
    public, private = {
        "itself": (data, data), "inside": (data, data.parent), "around": (tmp_path / "all", data),
        "symlink": (link, data.parent), "hard link": (link, data),
    }[how]  # fmt: skip
    with pytest.raises(SettingError, match="a node's data-path") as caught:
        public_from_path(public, [private])
    assert str(tmp_path) not in caught.value.public


def test_a_copy_of_private_questions_is_refused_whatever_its_case_and_choices(tmp_path: Path) -> None:
    node = write(tmp_path / "node" / "mine.jsonl", SECRET, "what is a boat")
    copy = tmp_path / "public.jsonl"
    copy.write_text(
        json.dumps({"question": "Which syndrome, does ALMA have?", "choices": ["a", "b"], "answer": "a"})
        + "\n"
        + json.dumps({"question": "what is a kite", "answer": "toy"})
    )
    with pytest.raises(DataError, match="1 of 2 examples of --public are among the node's private ones") as caught:
        public_from_path(copy, [node.parent])
    assert "syndrome" not in str(caught.value).lower()


def test_private_examples_hold_no_public_type() -> None:
    assert not isinstance(Example("q", (), "a"), PublicExample)


def test_a_path_without_data_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--public names no \.jsonl file"):
        public_from_path(tmp_path / "none", [])
