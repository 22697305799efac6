"""What ``pdss run`` shows on a terminal while it waits: the lines that the run logs, and bars made of them."""

from __future__ import annotations

import re
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

_COUNTS = (
    (re.compile(r"LLM: (?P<done>\d+) of (?P<total>\d+) prompts answered"), "LLM: prompts answered"),
    (re.compile(r"client (?P<client>\d+): (?P<method>[\w-]+): training step (?P<done>\d+) of (?P<total>\d+)"),
     "client {client}: {method}: training steps"),
)  # fmt: skip


class RunBars:
    """A bar for the run as a whole, and one for whatever it counts; elsewhere than on a terminal lines alone.

    Parameters
    ----------
    console : Console | None (default: None)
        Where to show them; the process's standard output by default.
    """

    def __init__(self, console: Console | None = None) -> None:
        console = console or Console()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._tasks: dict[str, TaskID] = {}
        self._bars.add_task("the run", total=None)

    def __enter__(self) -> RunBars:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bars.stop()

    def show(self, line: str) -> None:
        """Show a line of the run's log, which ends with a line break, and move the bar of what it counts."""
        self._bars.console.print(line, end="", markup=False, highlight=False, emoji=False, soft_wrap=True)
        for pattern, name in _COUNTS:
            if found := pattern.search(line):
                self._move(name.format(**found.groupdict()), int(found["done"]), int(found["total"]))

    def _move(self, name: str, done: int, total: int) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name)
        elif done < self._bars.tasks[self._tasks[name]].completed:  # the next round counts anew
            self._bars.reset(self._tasks[name])
        self._bars.update(self._tasks[name], completed=done, total=total, visible=done < total)
