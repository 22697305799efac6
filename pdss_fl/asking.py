"""Asking the LLM for what has not been answered yet, for the strategy and for clients on the direct channel."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import replace
from typing import TypeVar

from pdss_fl.journal import Journal, digest_of
from pdss_fl.llm.protocol import RationaleGenerator
from pdss_fl.messages import GenerationSettings, PerturbedPrompt, PromptBatch, Rationale, RationaleBatch
from pdss_fl.usage import Progress

_Owner = TypeVar("_Owner", bound=Hashable)
_Text = tuple[str, tuple[str, ...]]


def ask(
    generator: RationaleGenerator,
    batches: Mapping[_Owner, PromptBatch],
    settings: GenerationSettings,
    journal: Journal | None,
    scope: str = "",
) -> dict[_Owner, RationaleBatch]:
    """Put the unanswered prompts of some owners into one request, and return all answers by owner.

    Prompts of equal text are asked once, so that the LLM's work grows with distinct prompts and not with clients; more
    than the LLM takes at a time are asked in several requests. A rationale that the journal holds is never asked for
    again; a new one is in the journal before anything is done with it.

    Parameters
    ----------
    generator : RationaleGenerator
        The LLM; not called if everything is answered.
    batches : Mapping[Owner, PromptBatch]
        At least one, each with prompts.
    settings : GenerationSettings
        How the LLM is asked to write.
    journal : Journal | None
        Keeps answers; ``None`` keeps none.
    scope : str (default: "")
        Answers are shared within a scope only, so that each method and round asks for itself.

    Raises
    ------
    MessageError
        If the LLM refuses the prompts.
    """
    names = {owner: f"{scope}{digest_of(batch)}" for owner, batch in batches.items()}
    found = {owner: journal.answers(name) if journal else {} for owner, name in names.items()}
    known = {_text(p): found[o][p.ordinal] for o, b in batches.items() for p in b.prompts if p.ordinal in found[o]}
    open_: dict[_Text, list[tuple[_Owner, int]]] = {}
    for owner, batch in batches.items():
        for prompt in batch.prompts:
            if prompt.ordinal not in found[owner]:
                open_.setdefault(_text(prompt), []).append((owner, prompt.ordinal))
    progress = Progress(sum(map(len, open_.values())))

    def give(text: _Text, written: Rationale) -> None:
        for owner, ordinal in open_.pop(text):
            answer = replace(written, ordinal=ordinal)
            if journal:
                journal.add_answer(names[owner], answer)
            found[owner][ordinal] = answer
            progress.one_more()
            written = replace(written, tokens=0)  # the others of equal text cost nothing

    # Whoever asked may have died while the owners of a text got its answer.
    for text in [text for text in open_ if text in known]:
        give(text, replace(known[text], tokens=0))
    for texts in _slices(list(open_), generator.info.max_prompts if open_ else 1):
        weakest = max((b.privacy for b in batches.values()), key=lambda p: p.epsilon_per_token)
        prompts = tuple(PerturbedPrompt(i, *text) for i, text in enumerate(texts))
        for rationale in generator.generate(PromptBatch(prompts, weakest), settings):
            give(texts[rationale.ordinal], rationale)
    model = generator.info.model
    return {owner: RationaleBatch(tuple(rows.values()), model) for owner, rows in found.items()}


def _text(prompt: PerturbedPrompt) -> _Text:
    return prompt.question, prompt.choices


def _slices(texts: list[_Text], size: int) -> Iterator[list[_Text]]:
    for start in range(0, len(texts), size):
        yield texts[start : start + size]
