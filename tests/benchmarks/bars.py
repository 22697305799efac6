"""What the figures have to reach: with ``--check`` a bar that is missed ends the program with 1."""

from __future__ import annotations

import sys

CHECK = "--check" in sys.argv


class Bars:
    """Holds figures against bars, and remembers which were missed."""

    def __init__(self) -> None:
        self._held = 0
        self._missed: list[str] = []

    def at_least(self, what: str, found: float, bar: float) -> None:
        """Hold a figure against a bar that it must reach."""
        self._hold(found >= bar, f"{what}: {found:.3f}, at least {bar:g} is wanted")

    def at_most(self, what: str, found: float, bar: float) -> None:
        """Hold a figure against a bar that it must not exceed."""
        self._hold(found <= bar, f"{what}: {found:.3f}, at most {bar:g} is wanted")

    def verdict(self) -> None:
        """With ``--check``, print a line for every bar that was missed, and exit with 1 if there is one."""
        if not CHECK:
            return
        for line in self._missed:
            print(f"MISSED  {line}")
        print(f"{self._held - len(self._missed)} of {self._held} bars held")
        if self._missed:
            raise SystemExit(1)

    def _hold(self, held: bool, line: str) -> None:
        self._held += 1
        if not held:
            self._missed.append(line)
