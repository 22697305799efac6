"""CSV files and Hugging Face data sets are read like JSON lines; everything is made here and needs no network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from pdss_fl.data.division import Division
from pdss_fl.data.example import Example
from pdss_fl.data.fields import parse_fields
from pdss_fl.data.sources import from_path
from pdss_fl.data.tables import DataFormat, read_datasets, read_file
from pdss_fl.errors import DataError, SettingError

ARC = "choices=choices.text labels=choices.label answer=answerKey"


def rows(count: int, tag: str) -> list[dict[str, Any]]:
    choices = {"text": ["a robin", "a car"], "label": ["A", "B"]}
    return [{"question": f"{tag} {i}?", "choices": choices, "answerKey": "AB"[i % 2]} for i in range(count)]


def hub(mapping: str = ARC, **more: Any) -> DataFormat:
    return DataFormat("datasets", parse_fields(mapping), **more)


def test_a_csv_file_with_names_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text('stem, first ,second,key\n"What, then?",a robin,a car,A\nwho?,"a ""red"" robin",a car,B\n')
    form = DataFormat("csv", parse_fields("question=stem choices=first+second answer=key"))
    assert read_file(path, form) == [
        Example("What, then?", ("a robin", "a car"), "a robin"),
        Example("who?", ('a "red" robin', "a car"), "a car"),
    ]


def test_a_csv_line_of_another_length_is_named_and_not_quoted(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("question,answer\nwhat?,robin\nwhat?\n")
    with pytest.raises(DataError, match="number of cells") as refusal:
        read_file(path, DataFormat("csv"))
    assert f"{path}:3" in refusal.value.local
    path.write_text("question,answer\nwhat?,robin\n,robin\n")
    with pytest.raises(DataError, match="question") as refusal:
        read_file(path, DataFormat("csv"))
    assert f"{path}:3" in refusal.value.local


def test_a_folder_of_csv_files_keeps_its_division(tmp_path: Path) -> None:
    for side in ("train", "test"):
        lines = [f"{side} {i}?,yes" for i in range(8)]
        (tmp_path / f"{side}.csv").write_text("\n".join(["question,answer", *lines]))
    train, test = from_path(tmp_path, Division("iid"), 1, 2, 9, 9, 0, DataFormat("csv"))
    assert ({e.question[:5] for e in train}, {e.question[:4] for e in test}) == ({"train"}, {"test"})


def test_a_saved_data_set_with_splits(tmp_path: Path) -> None:
    made = {split: datasets.Dataset.from_list(rows(12, split)) for split in ("train", "validation")}
    datasets.DatasetDict(made).save_to_disk(tmp_path / "set")
    form = hub(test_split="validation")
    train, test = from_path(tmp_path / "set", Division("iid"), 0, 2, 9, 9, 0, form)
    assert ({e.question.split()[0] for e in train}, {e.question.split()[0] for e in test}) == (
        {"train"},
        {"validation"},
    )
    assert {e.answer for e in train} == {"a robin", "a car"}
    divided = from_path(tmp_path / "set", Division("iid"), 0, 1, 99, 99, 0, hub())
    assert [len(side) for side in divided] == [9, 3]
    with pytest.raises(SettingError, match=r"data\.test-split"):
        from_path(tmp_path / "set", Division("iid"), 0, 2, 9, 9, 0, hub(test_split="tests"))


def test_an_id_is_read_from_the_local_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    source = tmp_path / "questions"
    source.mkdir()
    (source / "train.jsonl").write_text("\n".join(json.dumps(r) for r in rows(10, "train")))
    datasets.load_dataset(str(source))  # fills the cache, under the folder's name
    (tmp_path / "cache" / "questions").rename(tmp_path / "cache" / "someone___questions")
    examples = read_datasets("someone/questions", hub(), "train")
    assert [e.question for e in examples] == [f"train {i}?" for i in range(10)]
    with pytest.raises(SettingError, match=r"data\.path") as refusal:
        read_datasets("someone/else", hub(), "train")
    assert "someone/else" not in refusal.value.public


def test_named_classes_are_choices_and_answers(tmp_path: Path) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    made = {"text": ["it was fine", "it was not"], "label": [1, 0]}
    datasets.Dataset.from_dict(made, features=features).save_to_disk(tmp_path / "set")
    found = read_datasets(str(tmp_path / "set"), hub("question=text answer=label"), "train")
    assert found == [Example("it was fine", ("bad", "good"), "good"), Example("it was not", ("bad", "good"), "bad")]


def test_a_row_without_a_label_is_named_by_its_number(tmp_path: Path) -> None:
    datasets.Dataset.from_list([*rows(3, "a"), {**rows(1, "secret")[0], "answerKey": ""}]).save_to_disk(
        tmp_path / "set"
    )
    with pytest.raises(DataError, match="`answer`") as refusal:
        read_datasets(str(tmp_path / "set"), hub(), "train")
    assert refusal.value.local.endswith("set:3)")
    assert "secret" not in refusal.value.local
