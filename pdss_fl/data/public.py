"""Public examples: the only ones that an encoder-decoder may be trained on.

A ``PublicExample`` is made by ``public_built_in`` and ``public_from_path`` and by nothing else: its constructor
refuses every other caller, and what trains on public data takes this type alone, so a type checker refuses an
``Example`` and ``require_public`` refuses it at run time. No code that a run executes on a client makes one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import InitVar, dataclass
from pathlib import Path

from pdss_fl.data.everyday import public_examples
from pdss_fl.data.example import Example
from pdss_fl.data.sources import read_jsonl
from pdss_fl.errors import DataError, SettingError

BUILT_IN = "built-in"
_SEAL = object()


@dataclass(frozen=True)
class PublicExample:
    """An example that anyone may see.

    Parameters
    ----------
    example : Example
        The question with its answer.
    source : str
        Where it is from, for the model card; never a path.
    seal : object
        Known to this module alone.

    Raises
    ------
    TypeError
        If anything but ``public_built_in`` or ``public_from_path`` makes one.
    """

    example: Example
    source: str
    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        if seal is not _SEAL:
            raise TypeError("a PublicExample comes from public_built_in() or public_from_path() only")


def require_public(examples: Iterable[object]) -> None:
    """Raise ``TypeError`` unless everything in ``examples`` is a ``PublicExample``, by its very type."""
    for example in examples:
        if type(example) is not PublicExample:
            raise TypeError(
                f"an encoder-decoder is trained on PublicExample only, and this is a {type(example).__name__}: "
                "load public data with public_built_in() or public_from_path()"
            )


def public_built_in() -> tuple[PublicExample, ...]:
    """Return the public split of the built-in set; it shares no thing with the private one."""
    return tuple(PublicExample(example, BUILT_IN, seal=_SEAL) for example in public_examples())


def public_from_path(path: Path, private: Sequence[Path], held: Iterable[Example] = ()) -> tuple[PublicExample, ...]:
    """Read examples that their owner declares public.

    Parameters
    ----------
    path : Path
        A JSONL file, or a folder whose ``*.jsonl`` files are read in the order of their names.
    private : Sequence[Path]
        The ``data-path`` and ``state-dir`` of every node whose data lies on this machine.
    held : Iterable[Example] (default: ())
        What those nodes hold, in whatever form it is written; JSON lines of this project's own names are found below
        ``private`` without it.

    Raises
    ------
    SettingError
        If a file is a node's, by its path, through a link, or by containing it.
    DataError
        If a file cannot be read, or asks what a node's private data asks (the same words in any case and with
        any choices); the message tells how many do, and nothing of them.
    """
    files = _files(path)
    if not files:
        raise DataError("--public names no .jsonl file and no folder with one", str(path))
    _refuse_paths([path, *files], private)
    examples = [example for file in files for example in read_jsonl(file)]
    found = (example for folder in private for file in _files(folder) for example in _readable(file))
    own = {_asked(example) for example in (*held, *found)}
    shared = sum(_asked(example) in own for example in examples)
    if shared:
        raise DataError(
            f"{shared} of {len(examples)} examples of --public are among the node's private ones: what a node "
            "holds is never trained on here; leave them out"
        )
    return tuple(PublicExample(example, path.stem, seal=_SEAL) for example in examples)


def _files(path: Path) -> list[Path]:
    return sorted(path.rglob("*.jsonl")) if path.is_dir() else [path] if path.is_file() else []


def _refuse_paths(public: Sequence[Path], private: Sequence[Path]) -> None:
    for mine in public:
        for theirs in private:
            here, there = mine.resolve(), theirs.resolve()
            linked = mine.is_file() and any(mine.samefile(file) for file in _files(theirs))
            if linked or here == there or there in here.parents or here in there.parents:
                raise SettingError(
                    "--public names, lies in, or contains a node's data-path or state-dir: private data is never "
                    "trained on here; name public data",
                    str(mine),
                )


def _readable(file: Path) -> list[Example]:
    """Return a node's examples; a file of another kind, such as its ledger, holds none."""
    try:
        return read_jsonl(file, answered=False)
    except DataError:
        return []


def _asked(example: Example) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", example.question.lower()))
