"""The bars of ``pdss run``: what they count, and that a file or a pipe gets the lines as they are."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from pdss_fl.run_bars import RunBars

LINES = (
    "pdss 10:00:00 method pdss starts\n",
    "pdss 10:00:05 LLM: 30 of 200 prompts answered\n",
    "pdss 10:00:09 client 3: pdss: training step 40 of 500\n",
)


def shown(terminal: bool) -> str:
    out = io.StringIO()
    with RunBars(Console(file=out, force_terminal=terminal, width=100, color_system=None)) as bars:
        for line in LINES:
            bars.show(line)
    return out.getvalue()


def test_a_terminal_shows_how_far_each_wait_is() -> None:
    text = shown(terminal=True)
    for part in ("the run", "LLM: prompts answered", "30/200", "client 3: pdss: training steps", "40/500", *LINES):
        assert part.rstrip() in text


def test_what_is_no_terminal_gets_the_lines_and_nothing_else() -> None:
    assert shown(terminal=False) == "".join(LINES)


@pytest.mark.parametrize("line", ["pdss 10:00:00 [bold] LLM: x of y prompts answered\n", "pdss " + "long " * 60 + "\n"])
def test_a_line_is_shown_as_it_is(line: str) -> None:
    out = io.StringIO()
    with RunBars(Console(file=out, force_terminal=False, width=40)) as bars:
        bars.show(line)
    assert out.getvalue() == line
