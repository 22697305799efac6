"""The run's settings about data (``data.*``)."""

from __future__ import annotations

from dataclasses import dataclass

from pdss_fl.rules import AT_LEAST_1, NOT_EMPTY, POSITIVE, one_of, setting

BUILT_IN_DATA = "everyday"


@dataclass(frozen=True)
class DataSettings:
    """Where examples come from (``data.*``); a deployed node says all of it but the numbers and labels itself.

    ``source``: ``everyday`` is built in, ``jsonl`` and ``csv`` are files, ``datasets`` is a Hugging Face data set.
    ``path`` is a file or a folder; for ``datasets`` an id or a folder that ``save_to_disk`` wrote, with ``subset``
    for its configuration and ``train_split`` and ``test_split`` (empty: one split is divided). ``fields`` says
    which column is what (``"question=stem answer=key"``, see ``pdss_fl.data.fields``) and ``answers`` what an
    answer is.

    ``partition`` divides a data set among simulated clients (``pdss_fl.data.division``); ``auto`` is ``iid`` for
    data of one's own, and by the things that its questions are about for the built-in set. ``alpha`` is for
    ``dirichlet`` (by label) and ``size``.
    """

    source: str = setting(BUILT_IN_DATA, one_of(BUILT_IN_DATA, "jsonl", "csv", "datasets"))
    path: str = setting("")
    fields: str = setting("")
    answers: str = setting("auto", one_of("auto", "text", "letter", "index", "index1", "boolean"))
    subset: str = setting("")
    train_split: str = setting("train", NOT_EMPTY)
    test_split: str = setting("")
    partition: str = setting("auto", one_of("auto", "iid", "dirichlet", "entity", "size", "file"))
    alpha: float = setting(0.5, POSITIVE)
    train_examples: int = setting(360, AT_LEAST_1)
    test_examples: int = setting(120, AT_LEAST_1)
    public_choices: bool = setting(False)
