"""What a run may spend at an endpoint: tokens and money, held back before a request and settled after it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from pdss_fl.errors import LLMUnavailable

_MILLION = 1_000_000


@dataclass(frozen=True)
class Tokens:
    """Tokens of one request: ``read`` of the prompt, ``written`` of the answer."""

    read: int = 0
    written: int = 0


class BudgetSpent(LLMUnavailable):
    """One more prompt might lead beyond a limit; names the setting."""


class Budget:
    """Counts what was spent and refuses what might lead beyond a limit; for tasks of one event loop.

    Parameters
    ----------
    max_tokens : int (default: 0)
        Most tokens, read and written; 0 means no limit.
    max_cost : float (default: 0.0)
        Most money, in the unit of the prices; 0 means no limit.
    input_price, output_price : float (default: 0.0)
        Money for a million tokens read and written.

    Attributes
    ----------
    read, written : int
        Tokens so far, with what is held back for requests under way.
    """

    def __init__(
        self, max_tokens: int = 0, max_cost: float = 0.0, input_price: float = 0.0, output_price: float = 0.0
    ) -> None:
        self._max_tokens, self._max_cost = max_tokens, max_cost
        self._input_price, self._output_price = input_price, output_price
        self._under_way = 0
        self._settled = asyncio.Event()
        self.read = self.written = 0

    def __str__(self) -> str:
        cost = self._cost(self.read, self.written)
        return f"{self.read} tokens read and {self.written} written, at a cost of {cost:g}"

    async def reserve(self, most: Tokens) -> None:
        """Hold back the most that a request can use; where that is too much, wait for requests under way.

        Raises
        ------
        BudgetSpent
            If it is too much though no request is under way; names the setting.
        """
        while exceeded := self._exceeded_by(most):
            if not self._under_way:
                raise BudgetSpent(
                    f"{exceeded} would be exceeded by one more prompt, after {self}; raise it, or ask for less "
                    "(llm.max-new-tokens, data.train-examples)"
                )
            await self._settled.wait()
        self._under_way += 1
        self._add(most, 1)

    def settle(self, most: Tokens, used: Tokens) -> None:
        """Replace what was held back by what was used."""
        self._under_way -= 1
        self._add(most, -1)
        self._add(used, 1)
        self._settled.set()
        self._settled = asyncio.Event()

    def _add(self, tokens: Tokens, sign: int) -> None:
        self.read += sign * tokens.read
        self.written += sign * tokens.written

    def _cost(self, read: int, written: int) -> float:
        return (read * self._input_price + written * self._output_price) / _MILLION

    def _exceeded_by(self, more: Tokens) -> str:
        read, written = self.read + more.read, self.written + more.written
        if self._max_tokens and read + written > self._max_tokens:
            return f"llm.max-run-tokens = {self._max_tokens}"
        if self._max_cost and self._cost(read, written) > self._max_cost:
            return f"llm.max-run-cost = {self._max_cost:g}"
        return ""
