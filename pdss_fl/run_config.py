"""A run's settings as they are typed after ``-c``, read so that nothing of what was typed is passed over.

Flower's own reader takes what looks like ``key=value`` out of a text and drops the rest: of ``privacy.epsilon = 4``,
with spaces, nothing is left, and the run would spend the default epsilon.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from pdss_fl.errors import SettingError

Value = bool | int | float | str
Overrides = dict[str, Value]

_PAIR = re.compile(r"(?<!\S)([A-Za-z0-9_.-]+)=('[^']*'|\"[^\"]*\"|[^\s'\"]+)(?!\S)")


def read_overrides(texts: Sequence[str]) -> Overrides:
    """Return the settings in texts as for ``flwr run -c``, by flat key; of equal keys the last one holds.

    Parameters
    ----------
    texts : Sequence[str]
        Each either ``key=value`` pairs in TOML's form, with spaces between them, or the name of a TOML file.

    Raises
    ------
    SettingError
        For whatever is neither, and for a file that cannot be read.
    """
    found: Overrides = {}
    for text in texts:
        found |= _read_file(Path(text).expanduser()) if text.endswith(".toml") else _read_pairs(text)
    return found


def as_toml(overrides: Mapping[str, Value]) -> str:
    """Return settings as the content of a TOML file that ``flwr run -c FILE`` reads."""
    return "".join(f"{key} = {_written(value)}\n" for key, value in overrides.items())


def app_settings(app: Path) -> Overrides:
    """Return the settings of the Flower app in a folder with their defaults: the only ones that a run may change.

    Raises
    ------
    SettingError
        If the folder holds no ``pyproject.toml``, or one that is not readable.
    """
    path = app / "pyproject.toml"
    if not path.is_file():
        raise SettingError(f"--app = {str(app)!r} holds no pyproject.toml: name the Flower app's folder")
    table: object = _load(path)
    for name in ("tool", "flwr", "app", "config"):
        table = table.get(name, {}) if isinstance(table, dict) else {}
    return _flat(table, str(path)) if isinstance(table, dict) else {}


def _written(value: Value) -> str:
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _read_pairs(text: str) -> Overrides:
    left = _PAIR.sub("", text).strip()
    if left:
        raise SettingError(
            f"--run-config: {left!r} is not key=value, without spaces around the = and with quotes around texts, "
            "as in \"privacy.epsilon=4.0 llm.model='gpt2'\""
        )
    found: Overrides = {}
    for key, value in _PAIR.findall(text):
        try:
            found |= _flat(tomllib.loads(f"{key} = {value}"), "--run-config")
        except tomllib.TOMLDecodeError:
            raise SettingError(
                f"--run-config: {key}={value}: the value is no number, true, false or text; put quotes around a text, "
                f"as in {key}='...'"
            ) from None
    return found


def _read_file(path: Path) -> Overrides:
    return _flat(_load(path), f"--run-config = {str(path)!r}")


def _load(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise SettingError(f"{str(path)!r} cannot be read ({err.strerror}): correct the path") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise SettingError(f"{str(path)!r} is no TOML ({err}): correct the file") from None


def _flat(table: Mapping[str, object], where: str, prefix: str = "") -> Overrides:
    flat: Overrides = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat |= _flat(value, where, f"{prefix}{key}.")
        elif isinstance(value, bool | int | float | str):
            flat[prefix + key] = value
        else:
            raise SettingError(
                f"{where}: {prefix}{key} is of type {type(value).__name__}: give a number, true, false or a text"
            )
    return flat
