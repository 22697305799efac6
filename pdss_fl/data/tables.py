"""Records of a client's data as they lie on its disk: JSON lines, CSV, or a Hugging Face data set."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pdss_fl.data.example import Example
from pdss_fl.data.fields import Fields, to_example
from pdss_fl.errors import DataError, SettingError

SUFFIXES = {"jsonl": ".jsonl", "csv": ".csv"}


@dataclass(frozen=True)
class DataFormat:
    """How a client's data is written.

    Parameters
    ----------
    source : str (default: "jsonl")
        ``jsonl``, ``csv`` (with a line of column names), or ``datasets`` (a folder that ``save_to_disk`` wrote,
        or an id; ``HF_HUB_OFFLINE=1`` takes ids from the local cache only).
    fields : Fields
        Which column is what.
    subset, train_split, test_split : str
        Of a Hugging Face data set: its configuration, and the splits to train on and to be asked from; without
        ``test_split`` one split is divided into both.
    """

    source: str = "jsonl"
    fields: Fields = field(default_factory=Fields)
    subset: str = ""
    train_split: str = "train"
    test_split: str = ""


def read_file(path: Path, form: DataFormat, answered: bool = True) -> list[Example]:
    """Read the examples of one JSON lines or CSV file.

    Raises
    ------
    DataError
        With what is wrong; the path and the line are in its private part, and nothing of the text is.
    """
    records = _csv(path) if form.source == "csv" else _json_lines(path)
    return _examples(records, form.fields, answered, path)


def read_datasets(path: str, form: DataFormat, split: str) -> list[Example]:
    """Read one split of a Hugging Face data set (needs the extra ``datasets``).

    Integer labels with names (``ClassLabel``) become their names, which are the choices where the data has none.

    Parameters
    ----------
    path : str
        Absolute path of a folder that ``save_to_disk`` wrote, or an id.
    form : DataFormat
        Its ``subset`` and ``fields`` are read.
    split : str
        Not read for a folder with a single data set.

    Raises
    ------
    SettingError
        If the library is missing, or the data set or the split.
    DataError
        As ``read_file``, with the row's number.
    """
    table = _load(path, form.subset, split)
    names = {column: feature.names for column, feature in table.features.items() if hasattr(feature, "names")}
    fixed = names.get(form.fields.answer)
    if fixed and form.fields.choices not in table.column_names:
        table = table.add_column(form.fields.choices, [list(fixed)] * len(table))
    rows = ((i, _named(row, names)) for i, row in enumerate(table))
    return _examples(rows, form.fields, True, Path(path))


def _load(path: str, subset: str, split: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise SettingError(
            "data.source = 'datasets' needs the Hugging Face library: pip install 'pdss-fl[datasets]'"
        ) from None
    try:
        if Path(path).is_absolute():
            loaded = datasets.load_from_disk(path)
        else:
            loaded = datasets.load_dataset(path, subset or None)
    except Exception as err:  # the library has no common base for what a wrong id, folder or network can raise
        raise SettingError(
            f"the data set that data.path names cannot be loaded ({type(err).__name__}): give the id of one, with "
            "data.subset if it has several, or the absolute path of a folder that save_to_disk wrote",
            f"{path}: {err}",
        ) from None
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded
    if split not in loaded:
        raise SettingError(
            "the data set has no such split: set data.train-split or data.test-split to one that it has",
            f"{split}; it has {', '.join(sorted(loaded))}",
        )
    return loaded[split]


def _named(row: Mapping[str, Any], names: Mapping[str, list[str]]) -> dict[str, Any]:
    """Put names in place of numbered classes; -1 means that a row has none."""
    return {k: (names[k][v] if v is not None and v >= 0 else None) if k in names else v for k, v in row.items()}


def _examples(records: Iterator[tuple[int, Any]], names: Fields, answered: bool, path: Path) -> list[Example]:
    examples = []
    for number, record in records:
        try:
            examples.append(to_example(record, names, answered))
        except DataError as err:
            raise DataError(err.public, f"{path}:{number}") from None
    if not examples:
        raise DataError("the data file holds no example", str(path))
    return examples


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text_of(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            raise DataError("the data file has a line that is not JSON", f"{path}:{number}") from None
        yield number, record


def _csv(path: Path) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(text_of(path).splitlines(keepends=True))
    try:
        for row in reader:
            if None in row or None in row.values():
                raise DataError(
                    "the data file has a line with another number of cells than its first", f"{path}:{reader.line_num}"
                )
            yield reader.line_num, {column.strip(): cell.strip() for column, cell in row.items()}
    except csv.Error:
        raise DataError("the data file has a line that is not CSV", f"{path}:{reader.line_num}") from None


def text_of(path: Path) -> str:
    """Return a file's text; raises ``DataError`` if it is not there or cannot be read as UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        raise DataError("the data file is not there: correct the path that names it", str(path)) from None
    except PermissionError:
        raise DataError("the data file may not be read by this user: correct its permissions", str(path)) from None
    except (OSError, UnicodeDecodeError) as err:
        raise DataError("the data file cannot be read as UTF-8 text", f"{path}: {err}") from None
