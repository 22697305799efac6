"""The local LLM as a run or a command line names it."""

from __future__ import annotations

from pdss_fl.llm.adapter import AUTO, BUILT_IN, choose_adapter
from pdss_fl.llm.admission import MAX_QUEUED
from pdss_fl.llm.instruction import ADAPTED, EVERYDAY, load_instruction
from pdss_fl.llm.scheduler import BATCH_SIZE, Scheduler


def load_local_generator(
    model: str,
    instruction: str = "",
    dtype: str = "auto",
    batch_size: int = BATCH_SIZE,
    adapter: str = AUTO,
    max_queued: int = MAX_QUEUED,
) -> Scheduler:
    """Load an LLM in this process from settings as a run or a command line names them (``llm.*``).

    ``instruction`` is the path of a JSON file, or empty for the built-in one that suits the adapter; it is
    read first, since the model takes longer. See ``choose_adapter`` for ``adapter``, and
    ``Scheduler.load`` for the rest.
    """
    adapter = choose_adapter(adapter, model)
    built_in = ADAPTED if adapter == BUILT_IN else EVERYDAY
    chosen = load_instruction(instruction) if instruction else built_in
    return Scheduler.load(
        model, instruction=chosen, dtype=dtype, batch_size=batch_size, adapter=adapter, max_queued=max_queued
    )
