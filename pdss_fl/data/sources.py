"""Where a client's examples come from: files on its disk, a Hugging Face data set, or the built-in set."""

from __future__ import annotations

from pathlib import Path

from pdss_fl.data.division import Division, divide, divide_sides
from pdss_fl.data.everyday import private_examples
from pdss_fl.data.example import Example
from pdss_fl.data.partition import entity_partition, train_test_split
from pdss_fl.data.tables import SUFFIXES, DataFormat, read_datasets, read_file, text_of
from pdss_fl.errors import DataError, SettingError

EACH_ITS_OWN, PLAIN = Division("auto"), DataFormat()
BUILT_IN_PARTS = 4


def read_jsonl(path: Path, answered: bool = True) -> list[Example]:
    """Read one example a line: ``{"question", "choices", "answer", "context"?, "person"?, "rationale"?, "entity"?}``.

    Other keys are ignored, so that common data sets can be read as they are; ``answered=False`` reads
    lines without an ``answer``, too, and takes any.

    Raises
    ------
    DataError
        With the number of the line and what is wrong with it; the path and nothing of the text is in
        its private part.
    """
    return read_file(path, DataFormat(), answered)


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
    lines = text_of(path).split("\n")
    first = next((line.strip() for line in lines if line.strip()), "")
    if path.suffix == ".jsonl" or first.startswith("{"):
        return read_jsonl(path, answered=False)
    if not first:
        raise DataError("the data file holds no text", str(path))
    return [Example(line.strip(), (), "") for line in lines if line.strip()]


def built_in(
    partition_id: int, num_partitions: int, train: int, test: int, seed: int, division: Division = EACH_ITS_OWN
) -> tuple[list[Example], list[Example]]:
    """Return a simulated client's training and test examples of the built-in set.

    By default each client holds the questions about things of its own, a quarter of the set or less; another
    seed gives it another part. Training and test ask different questions about the same things.
    """
    if division.kind != "auto":
        part = divide(private_examples(), division, num_partitions, seed)[partition_id]
        return train_test_split(part, train, test, seed)
    parts = max(num_partitions, BUILT_IN_PARTS)
    part = entity_partition(private_examples(), (partition_id + seed) % parts, parts)
    return train_test_split(part, train, test, seed)


def from_path(
    path: Path,
    division: Division,
    partition_id: int,
    num_partitions: int,
    train: int,
    test: int,
    seed: int,
    form: DataFormat = PLAIN,
) -> tuple[list[Example], list[Example]]:
    """Return a client's training and test examples from its disk.

    Parameters
    ----------
    path : Path
        One file, divided into training and test; or a folder with ``train.jsonl`` and ``test.jsonl``
        (or ``dev.jsonl``); with ``division.kind = "file"`` a folder with one file a client, taken in the
        order of their names. The same with ``.csv``. For ``form.source = "datasets"`` an id or a saved folder.
    division : Division
        How simulated clients share it.
    partition_id, num_partitions : int
        Which part; a deployed node passes 0 and 1.
    train, test : int
        At most so many of each.
    seed : int
        Of the divisions.
    form : DataFormat
        How it is written.
    """
    if division.kind == "file" and form.source == "datasets":
        raise SettingError("data.partition = 'file' is for jsonl and csv; found data.source = 'datasets'")
    if division.kind == "file":
        return train_test_split(read_file(_file_of(path, partition_id, form), form), train, test, seed)
    sides = _sides(path, form)
    if len(sides) == 1:
        part = divide(sides[0], division, num_partitions, seed)[partition_id]
        return train_test_split(part, train, test, seed)
    train_part, test_part = divide_sides(sides[0], sides[1], division, num_partitions, seed)[partition_id]
    if not train_part or not test_part:
        raise DataError(f"client {partition_id} of {num_partitions} gets no example; use fewer clients")
    return train_part[:train], test_part[:test]


def whole_data(path: Path, form: DataFormat) -> dict[str, list[Example]]:
    """Return all examples of a data path, undivided, by the name of their file or split; empty without a file."""
    if form.source == "datasets":
        return dict(zip((form.train_split, form.test_split), _sides(path, form), strict=False))
    files = sorted(path.glob(f"*{SUFFIXES[form.source]}")) if path.is_dir() else [path]
    return {file.name: read_file(file, form) for file in files}


def _sides(path: Path, form: DataFormat) -> list[list[Example]]:
    """Return the whole data set: one list, or where it has a division of its own the training and the test side."""
    if form.source == "datasets":
        splits = [form.train_split, *filter(None, [form.test_split])]
        return [read_datasets(str(path), form, split) for split in splits]
    if not path.is_dir():
        return [read_file(path, form)]
    suffix = SUFFIXES[form.source]
    return [read_file(path / f"train{suffix}", form), read_file(_test_file(path, suffix), form)]


def _file_of(path: Path, partition_id: int, form: DataFormat) -> Path:
    suffix = SUFFIXES[form.source]
    files = sorted(path.glob(f"*{suffix}"))
    if partition_id >= len(files):
        raise DataError(
            f"data.partition = 'file' needs one {suffix} file a client; client {partition_id} finds {len(files)}",
            str(path),
        )
    return files[partition_id]


def _test_file(path: Path, suffix: str) -> Path:
    for name in ("test", "dev"):
        if (path / f"{name}{suffix}").is_file():
            return path / f"{name}{suffix}"
    raise DataError(f"the data folder has neither test{suffix} nor dev{suffix} beside train{suffix}", str(path))
