"""Which number format is chosen: the measured faster one, and float32 near a tie."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from pdss_fl.llm import loading

CPU = torch.device("cpu")


class Processor(TorchFunctionMode):
    """Computes as this machine does, and takes as long as it is told by number format, on a clock of its own."""

    def __init__(self, seconds: dict[torch.dtype, list[float]]) -> None:
        super().__init__()
        self.seconds, self.now, self.rows = seconds, 0.0, set[int]()

    def clock(self) -> float:
        return self.now

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, arguments: tuple[Any, ...] = (), keywords: Any = None
    ) -> Any:
        if function is torch.nn.functional.linear:
            states, times = arguments[0], self.seconds[arguments[0].dtype]
            self.rows.add(len(states))
            self.now += times.pop(0) if len(times) > 1 else times[0]  # the last of them from then on
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize(
    ("float32", "bfloat16", "faster"),
    [
        ([0.004], [0.001], torch.bfloat16),
        ([0.001], [0.004], torch.float32),
        ([0.0131], [0.010], torch.bfloat16),
        ([0.0129], [0.010], torch.float32),  # near a tie
        ([0.004], [5.0] * 9 + [0.001], torch.bfloat16),  # the first calls prepare kernels
        ([9.0] * 12 + [0.001], [0.004], torch.float32),  # something else had the processor for a while
    ],
)
def test_the_number_format_is_the_one_that_was_measured_to_be_clearly_faster(
    float32: list[float], bfloat16: list[float], faster: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = Processor({torch.float32: list(float32), torch.bfloat16: list(bfloat16)})
    monkeypatch.setattr(loading, "Timer", partial(loading.Timer, timer=processor.clock))
    with processor:
        assert loading.fastest_dtype(CPU, rows=5) is faster
    assert processor.rows == {5}, "a step of the batches to come"
