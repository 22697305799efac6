"""Rules for single settings: the type and the range of a value, checked where it is read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import field
from typing import Any

from pdss_fl.errors import SettingError


def one_of(*values: str) -> Any:
    """Return a rule for ``checked``: the value is one of these words."""
    return {"check": lambda v: v in values, "expected": "one of " + ", ".join(values)}


def within(low: float, high: float) -> Any:
    """Return a rule for ``checked``: the value lies between these, both included."""
    return {"check": lambda v: low <= v <= high, "expected": f"{low} to {high}"}


AT_LEAST_1 = {"check": lambda v: v >= 1, "expected": "at least 1"}
AT_LEAST_0 = {"check": lambda v: v >= 0, "expected": "at least 0"}
POSITIVE = {"check": lambda v: math.isfinite(v) and v > 0, "expected": "a finite number above 0"}
NOT_NEGATIVE = {"check": lambda v: math.isfinite(v) and v >= 0, "expected": "a finite number of at least 0"}
A_WEEK = {"check": lambda v: 1 <= v <= 604_800, "expected": "1 to 604800 seconds"}
_ADDRESS = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})")
_SCHEMES = (
    "dns",
    "fake",
    "ipv4",
    "ipv6",
    "passthrough",
    "unix",
    "unix-abstract",
    "vsock",
    "xds",
    "binder",
    "google-c2p",
)


def host_and_port(address: str) -> tuple[str, int] | None:
    """Return host, without brackets, and port of ``host:port``; ``None`` for all else.

    ``unix:1`` and the like are none, though they look like one: gRPC takes the word for a kind of address.
    """
    found = _ADDRESS.fullmatch(address)
    if found is None or int(found["port"]) > 65535 or found["host"].lower() in _SCHEMES:
        return None
    return found["host"].strip("[]"), int(found["port"])


NOT_EMPTY = {"check": lambda v: bool(v.strip()), "expected": "not empty"}
ADDRESS = {"check": lambda v: host_and_port(v) is not None, "expected": "host:port, for example 127.0.0.1:50061"}


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
