"""Where a client's examples come from: JSON lines on its disk, or the built-in set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pdss_fl.data.everyday import private_examples
from pdss_fl.data.example import Example
from pdss_fl.data.partition import entity_partition, iid_partition, train_test_split
from pdss_fl.errors import DataError

BUILT_IN_PARTS = 4


def read_jsonl(path: Path, answered: bool = True) -> list[Example]:
    """Read one example a line: ``{"question", "choices", "answer", "context"?, "person"?, "rationale"?}``.

    Other keys are ignored, so that common data sets can be read as they are; ``answered=False`` reads
    lines without an ``answer``, too, and takes any.

    Raises
    ------
    DataError
        With the number of the line and what is wrong with it; the path and nothing of the text is in
        its private part.
    """
    examples = [
        _parse_line(line, number, path, answered) for number, line in enumerate(_lines(path), start=1) if line.strip()
    ]
    if not examples:
        raise DataError("the data file holds no example", str(path))
    return examples


def read_questions(path: Path) -> list[Example]:
    """Read questions without known answers, one a line: ``{"question", "choices"?, "context"?}``."""
    return read_jsonl(path, answered=False)


def read_any(path: Path) -> list[Example]:
    """Read questions as JSON lines, or a plain text file with one text a line.

    JSON lines if the name ends in ``.jsonl`` or the first line that is not empty starts with ``{``.

    Raises
    ------
    DataError
        As ``read_jsonl``.
    """
    lines = _lines(path)
    first = next((line.strip() for line in lines if line.strip()), "")
    if path.suffix == ".jsonl" or first.startswith("{"):
        return read_jsonl(path, answered=False)
    if not first:
        raise DataError("the data file holds no text", str(path))
    return [Example(line.strip(), (), "") for line in lines if line.strip()]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as err:
        raise DataError("the data file cannot be read as UTF-8 text", f"{path}: {err}") from None


def _parse_line(line: str, number: int, path: Path, answered: bool) -> Example:
    try:
        record = json.loads(line)
    except ValueError:
        raise DataError("the data file has a line that is not JSON", f"{path}:{number}") from None
    try:
        return _to_example(record, answered)
    except DataError as err:
        raise DataError(err.public, f"{path}:{number}") from None


def _to_example(record: Any, answered: bool) -> Example:
    if not isinstance(record, Mapping):
        raise DataError("the data file has a line that is not a JSON object")
    question = _text(record, "question")
    answer = _text(record, "answer") if answered else str(record.get("answer") or "").strip()
    choices = record.get("choices") or []
    if not isinstance(choices, list) or not all(isinstance(c, str) and c.strip() for c in choices):
        raise DataError("an example's `choices` is not a list of texts")
    choices = list(dict.fromkeys(choice.strip() for choice in choices))  # common data sets have some twice
    if len(choices) == 1:
        raise DataError("an example has fewer than two different choices")
    if answered and choices and answer not in choices:
        raise DataError("an example's `answer` is not among its `choices`")
    optional = {key: _text(record, key) for key in ("context", "person", "rationale") if record.get(key) is not None}
    return Example(question, tuple(choices), answer, **optional)


def _text(record: Mapping[str, Any], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"an example has no `{key}`, or it is not a text")
    return value.strip()


def built_in(
    partition_id: int, num_partitions: int, train: int, test: int, seed: int
) -> tuple[list[Example], list[Example]]:
    """Return a simulated client's training and test examples of the built-in set.

    Each client holds the questions about things of its own, a quarter of the set or less; another seed
    gives it another part. Training and test ask different questions about the same things.
    """
    parts = max(num_partitions, BUILT_IN_PARTS)
    part = entity_partition(private_examples(), (partition_id + seed) % parts, parts)
    return train_test_split(part, train, test, seed)


def from_path(
    path: Path, partition: str, partition_id: int, num_partitions: int, train: int, test: int, seed: int
) -> tuple[list[Example], list[Example]]:
    """Return a client's training and test examples from its disk.

    Parameters
    ----------
    path : Path
        One file, divided into training and test; or a folder with ``train.jsonl`` and ``test.jsonl``
        (or ``dev.jsonl``); with ``partition = "file"`` a folder with one file a client, taken in the
        order of their names.
    partition : str
        ``iid``: clients share the file(s) at random; ``file``: one file each.
    partition_id, num_partitions : int
        Which part; a deployed node passes 0 and 1.
    train, test : int
        At most so many of each.
    seed : int
        Of the divisions.
    """
    if partition == "file":
        examples = read_jsonl(_file_of(path, partition_id))
        return train_test_split(examples, train, test, seed)
    if not path.is_dir():
        part = iid_partition(read_jsonl(path), partition_id, num_partitions, seed)
        return train_test_split(part, train, test, seed)
    sides = [read_jsonl(path / "train.jsonl"), read_jsonl(_test_file(path))]
    train_part, test_part = (iid_partition(side, partition_id, num_partitions, seed) for side in sides)
    if not train_part or not test_part:
        raise DataError(f"client {partition_id} of {num_partitions} gets no example; use fewer clients")
    return train_part[:train], test_part[:test]


def _file_of(path: Path, partition_id: int) -> Path:
    files = sorted(path.glob("*.jsonl"))
    if partition_id >= len(files):
        raise DataError(
            f"data.partition = 'file' needs one .jsonl file a client; client {partition_id} finds {len(files)}",
            str(path),
        )
    return files[partition_id]


def _test_file(path: Path) -> Path:
    for name in ("test.jsonl", "dev.jsonl"):
        if (path / name).is_file():
            return path / name
    raise DataError("the data folder has neither test.jsonl nor dev.jsonl beside train.jsonl", str(path))
