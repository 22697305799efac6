"""Which columns of a record are which part of an example, and what its answer column means.

A client's data need not look like this project's own JSON lines: a mapping names its columns, and answers may be
letters, numbers or truth values. The mapping is the node's own (or, in a simulation, the run's): a run that could
say which column of a private file is the question could ask for any column.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from pdss_fl.data.example import Example
from pdss_fl.errors import DataError, SettingError

ANSWERS = ("auto", "text", "letter", "index", "index1", "boolean")
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_PAIRS = (("yes", "no"), ("true", "false"))
_NAMES = ("person", "entity")  # which may be numbers


@dataclass(frozen=True)
class Fields:
    """Names of the columns that make an example.

    A name may lead into nested records with dots (``question.stem``; through a list it takes that part of each
    item), and ``+`` joins several columns: ``choices=option1+option2``, ``question=premise+question``. Only
    ``question`` and ``answer`` have to be there.

    Parameters
    ----------
    labels : str (default: "")
        The column with the choices' labels, which the answer then names.
    entity : str (default: "entity")
        What an example is about, for ``data.partition = "entity"``.
    answers : str (default: "auto")
        What an answer is. ``text``: a choice, or free text. ``letter``: A is the first choice. ``index``: 0 is
        the first; ``index1``: 1 is. ``boolean``: true or false, which choose yes or no. ``auto``: a text, a capital
        letter, or JSON's own truth value, in this order; numbers have to be named, since 1 may be either choice.
    """

    question: str = "question"
    choices: str = "choices"
    answer: str = "answer"
    labels: str = ""
    context: str = "context"
    person: str = "person"
    rationale: str = "rationale"
    entity: str = "entity"
    answers: str = "auto"


def parse_fields(text: str, answers: str = "auto") -> Fields:
    """Return the mapping that ``data.fields`` states: ``"question=stem answer=key"``; other columns keep their names.

    Raises
    ------
    SettingError
        Naming the part that is not ``part=column`` with a known part, each once.
    """
    known = {item.name for item in fields(Fields)} - {"answers"}
    found: dict[str, str] = {}
    try:
        items = shlex.split(text)
    except ValueError:
        raise SettingError(f"data.fields = {text!r} has a quote that does not end") from None
    for item in items:
        part, _, column = item.partition("=")
        if part not in known or not column or part in found:
            raise SettingError(
                f"data.fields = {text!r}: {item!r} is not part=column, each part once; "
                f"parts are {', '.join(sorted(known))}"
            )
        found[part] = column
    return replace(Fields(answers=answers), **found)


def to_example(record: Any, names: Fields, answered: bool = True) -> Example:
    """Make an example of one record.

    Parameters
    ----------
    record : Any
        A mapping from column to value, else refused.
    names : Fields
        Which column is what.
    answered : bool (default: True)
        Whether the record must have an answer.

    Raises
    ------
    DataError
        Naming the part and what is wrong with it; never its content, nor the node's own name of the column.
    """
    if not isinstance(record, Mapping):
        raise DataError("the data file has a line that is not a JSON object")
    question = _text(record, names.question, "question")
    choices, labels = _choices(record, names)
    answer = ""
    if answered:
        choices, answer = _answer(_find(record, names.answer), choices, labels, names)
    elif isinstance(given := _find(record, names.answer), str):
        answer = given.strip()
    unique = tuple(dict.fromkeys(choices))  # common data sets have some choices twice
    if len(unique) == 1:
        raise DataError("an example has fewer than two different choices")
    optional = {
        key: _text(record, name, key)
        for key in ("context", "person", "rationale", "entity")
        if _find(record, name := getattr(names, key)) not in (None, "")
    }
    return Example(question, unique, answer, **optional)


def _find(value: Any, path: str) -> Any:
    """Return what a dotted name leads to; of a list, that part of each item; ``None`` where there is nothing."""
    if isinstance(value, list):
        return [_find(item, path) for item in value]
    if not isinstance(value, Mapping):
        return None
    if path in value:
        return value[path]
    head, dot, rest = path.partition(".")
    return _find(value.get(head), rest) if dot else None


def _text(record: Mapping[str, Any], name: str, part: str) -> str:
    values = [_find(record, column) for column in name.split("+")]
    if part in _NAMES:
        values = [str(value) if type(value) is int else value for value in values]
    text = " ".join(value.strip() for value in values if isinstance(value, str))
    if not text.strip() or not all(isinstance(value, str) for value in values):
        raise DataError(f"an example has no `{part}`, or it is not a text")
    return text.strip()


def _choices(record: Mapping[str, Any], names: Fields) -> tuple[list[str], list[str]]:
    """Return the choices and, where the data has them, their labels."""
    found: list[Any] = []
    labels = _find(record, names.labels) if names.labels else None
    for column in names.choices.split("+"):
        value = _find(record, column)
        if isinstance(value, Mapping):  # {"A": "a robin", "B": "a car"}
            labels, value = list(value), list(value.values())
        found += value if isinstance(value, list) else _split(value)
    if not all(isinstance(choice, str) and choice.strip() for choice in found):
        raise DataError("an example's `choices` is not a list of texts")
    if labels is not None and (not isinstance(labels, list) or len(labels) != len(found)):
        raise DataError("an example's `labels` is not one label for each choice")
    return [choice.strip() for choice in found], [str(label).strip() for label in labels or ()]


def _split(cell: Any) -> list[Any]:
    """Return the choices of one cell: none, a JSON list, texts between ``|``, or the only text."""
    if cell is None or cell == "":
        return []
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        try:
            return list(json.loads(cell))
        except (ValueError, TypeError):
            return [None]  # refused by the caller like any other choice that is no text
    return cell.split("|") if isinstance(cell, str) and "|" in cell else [cell]


def _answer(value: Any, choices: list[str], labels: list[str], names: Fields) -> tuple[list[str], str]:
    how, text = names.answers, str(value).strip() if isinstance(value, str | int | float) else ""
    if how == "boolean" or (how == "auto" and isinstance(value, bool)):
        return _boolean(text, choices)
    if labels and text in labels and how in ("auto", "text"):
        return choices, choices[labels.index(text)]
    if how in ("index", "index1"):
        return choices, _at(int(text) - (how == "index1") if text.isdecimal() else -1, choices)
    if not isinstance(value, str) or not text:
        raise DataError("an example has no `answer`, or it is not a text")
    if how == "letter" or (how == "auto" and choices and text not in choices and _is_letter(text)):
        return choices, _at(ord(text.upper()) - ord("A") if _is_letter(text.upper()) else -1, choices)
    if choices and text not in choices:
        raise DataError("an example's `answer` is not among its `choices`")
    return choices, text


def _boolean(text: str, choices: list[str]) -> tuple[list[str], str]:
    truth = _TRUTH.get(text.lower())
    pair = _pair(choices)
    if truth is None or pair is None:
        raise DataError("an example's `answer` is not true or false, or its choices are not yes and no")
    return list(choices or pair), pair[0] if truth else pair[1]


def _pair(choices: Sequence[str]) -> tuple[str, str] | None:
    """Return the words for true and false among the choices, as they are written there."""
    if not choices:
        return _PAIRS[0]
    written = {choice.lower(): choice for choice in choices}
    return next(((written[a], written[b]) for a, b in _PAIRS if set(written) == {a, b}), None)


def _at(index: int, choices: list[str]) -> str:
    if not 0 <= index < len(choices):
        raise DataError("an example's `answer` names none of its `choices`")
    return choices[index]


def _is_letter(text: str) -> bool:
    return len(text) == 1 and "A" <= text <= "Z"
