"""Rules for single settings: the type and the range of a value, checked where it is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import field
from typing import Any

from pdss_fl.errors import SettingError


def one_of(*values: str) -> Any:
    """Return a rule for ``checked``: the value is one of these words."""
    return {"check": lambda v: v in values, "expected": "one of " + ", ".join(values)}


def within(low: int, high: int) -> Any:
    """Return a rule for ``checked``: the value lies between these, both included."""
    return {"check": lambda v: low <= v <= high, "expected": f"{low} to {high}"}


AT_LEAST_1 = {"check": lambda v: v >= 1, "expected": "at least 1"}
AT_LEAST_0 = {"check": lambda v: v >= 0, "expected": "at least 0"}
POSITIVE = {"check": lambda v: math.isfinite(v) and v > 0, "expected": "a finite number above 0"}
NOT_NEGATIVE = {"check": lambda v: math.isfinite(v) and v >= 0, "expected": "a finite number of at least 0"}
A_WEEK = {"check": lambda v: 1 <= v <= 604_800, "expected": "1 to 604800 seconds"}
NOT_EMPTY = {"check": lambda v: bool(v.strip()), "expected": "not empty"}


def setting(default: Any, rule: Mapping[str, Any] | None = None) -> Any:
    """Return a dataclass field with its default and its rule."""
    return field(default=default, metadata=rule or {})


def checked(key: str, value: Any, kind: type, rule: Mapping[str, Any]) -> Any:
    """Return a value of the right type and range; raises ``SettingError`` naming key, value and expectation."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)  # Flower keeps `privacy.epsilon=1` an int
    if type(value) is not kind:
        raise SettingError(f"{key} = {value!r} is of type {type(value).__name__}; expected {kind.__name__}")
    if rule and not rule["check"](value):
        raise SettingError(f"{key} = {value!r} is out of range; expected {rule['expected']}")
    return value
