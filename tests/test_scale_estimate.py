"""The page about 10,000 clients: its arithmetic, against figures worked out by hand, and what it measures."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parent.parent / "examples" / "scale" / "estimate.py"
GIVEN = (
    "--clients 1000 --prompts 1000 --gpu-tokens 1000 --gpus 2 --gpu-price 3 --line 100 --steps 600 --questions 100 "
    "--trip 6 --message 0.1 --order 4000 --units 50 80 0.001 0.002 0.1 0.01 250000"
)


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("scale_estimate", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_the_table_is_what_one_works_out_by_hand(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """A million prompts of 40 tokens (``llm.max-new-tokens``) are 40,000 s of a GPU that writes 1,000 a second."""
    script.main(GIVEN.split())
    cells = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    table = {row[0]: tuple(row[1:3]) for row in cells[2:]}
    assert table == {
        "a prompt on the wire, bytes": ("50", "50"),
        "a rationale on the wire, bytes": ("80", "80"),
        "prompts": ("1,000,000", "1,000,000"),
        "tokens that the LLM writes": ("40,000,000", "40,000,000"),
        "LLM, GPU hours": ("11.11", "11.11"),
        "LLM, money": ("33.33", "33.33"),
        "LLM, hours": ("5.56", "5.56"),
        "SuperLink, in, GB": ("0.062", "0.008"),  # 50 MB + 3 x 4 MB; 2 x 4 MB
        "SuperLink, out, GB": ("0.342", "0.258"),  # 80 MB + 3 x 4 MB + 250 MB; 2 x 4 MB + 250 MB
        "LLM server and clients, GB": ("0.000", "0.130"),
        "on a line, s": ("32.3", "31.7"),  # 404 MB and 396 MB at 12.5 MB/s
        "Flower's trips": ("3", "2"),
        "Flower's trips, min": ("5.3", "3.5"),  # 106 s each
        "a client's own work, min": ("1.1", "1.1"),  # 1 s + 2 s + 60 s + 1 s
        "wall time, h": ("5.67", "5.64"),  # 20,000 s + 32.3 s + 318 s + 64 s; 20,000 s + 31.7 s + 212 s + 64 s
    }
    assert {len(row) for row in cells[1:]} == {4}


def test_every_unit_cost_is_measured(script: ModuleType) -> None:
    unit = script.measure(sample=8)
    assert len(script._RATIONALE) < unit.rationale_bytes < 2 * len(script._RATIONALE)
    assert 10 < unit.prompt_bytes < 1000
    assert min(unit.perturb_seconds, unit.question_seconds, unit.step_seconds + unit.decode_seconds) > 0
    assert 100_000 < unit.app_bytes < 10_000_000
