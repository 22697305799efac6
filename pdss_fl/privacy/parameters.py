"""Which arguments of a mechanism's constructor a run's settings may give, and whether what they give fits."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from pdss_fl.errors import SettingError
from pdss_fl.privacy.mechanism import PrivacyMechanism, mechanism_class

_UNNAMED = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


def settable_parameters(mechanism: type[PrivacyMechanism]) -> dict[str, tuple[type, ...]]:
    """Return the constructor's arguments that take a number, a truth value or a word, each with the types it takes.

    Those of ``not_settable``, functions and tables are left out.
    """
    hints = _hints(mechanism)
    found = {}
    for name, parameter in inspect.signature(mechanism).parameters.items():
        if name not in mechanism.not_settable and parameter.kind not in _UNNAMED:
            hint = hints.get(name, type(parameter.default))
            either = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
            if kinds := tuple(kind for kind in either if kind in (bool, int, float, str)):
                found[name] = kinds
    return found


def check_parameters(name: str, given: Mapping[str, bool | int | float | str]) -> None:
    """Refuse what a mechanism does not take; raises ``SettingError`` that names what it does take."""
    own = settable_parameters(mechanism_class(name))
    for key, value in given.items():
        kinds = own.get(key, ())
        if type(value) not in kinds and not (type(value) is int and float in kinds):
            takes = ", ".join(f"{k} ({' or '.join(t.__name__ for t in own[k])})" for k in own) or "none"
            raise SettingError(
                f"privacy.parameters: {key} = {value!r} is no parameter of mechanism {name!r}, or of another type; "
                f"it takes {takes}"
            )


def _hints(mechanism: type[PrivacyMechanism]) -> dict[str, Any]:
    try:
        return get_type_hints(mechanism.__init__)
    except Exception:  # a name that only a type checker of someone else's package knows
        return {}
