"""What every LLM looks like to the rest of the project, whether in this process or behind an address."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from pdss_fl.messages import GenerationSettings, PromptBatch, Rationale, ServerInfo


def never() -> bool:
    """Say that a request is still wanted, always."""
    return False


class RationaleGenerator(Protocol):
    """Writes one rationale a prompt, for any number of threads at a time.

    One that can count and tell more has ``count_tokens(prompts)`` and ``stats()``, as the ``Scheduler`` has.
    """

    @property
    def info(self) -> ServerInfo:
        """What is loaded and what it accepts."""
        ...

    def generate(
        self,
        batch: PromptBatch,
        settings: GenerationSettings,
        is_cancelled: Callable[[], bool] = never,
        tenant: str = "",
    ) -> Iterator[Rationale]:
        """Yield one rationale a prompt, each as soon as it is finished, in any order.

        Parameters
        ----------
        batch : PromptBatch
            Perturbed prompts with ordinals 0 .. n-1.
        settings : GenerationSettings
            ``max_new_tokens`` is capped by ``info.max_new_tokens``.
        is_cancelled : Callable[[], bool] (default: never)
            Asked often while the LLM writes; once it says true, the iterator ends early.
        tenant : str (default: "")
            Whom the prompts are of: an LLM that many share gives each tenant a fair share, and finds
            an answer again for the same tenant only.

        Raises
        ------
        MessageError
            If a prompt does not fit the LLM, or an answer is not what the schema says.
        LLMUnavailable
            If the LLM fails or cannot be reached, or, as ``Busy``, has too many prompts waiting.
        """
        ...
