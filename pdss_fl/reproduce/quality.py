"""How good rationales are after decoding: their stated answer, their kind of thing, and what the filter kept."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from pdss_fl.data.everyday import Fact, facts, private_examples
from pdss_fl.data.everyday_facts import KINDS
from pdss_fl.data.example import Example
from pdss_fl.slm.answers import find_statement, states_answer

_KINDS = {kind.name: kind for kind in KINDS}


def rationale_quality(stored: Mapping[str, Mapping[str, Any]], examples: Sequence[Example]) -> dict[str, int]:
    """Count what a client's store holds of its rationales (``ClientStore.load_rationales``).

    Returns
    -------
    dict[str, int]
        ``rationales``: those that the filter kept; ``right``: those whose stated answer was right before the filter
        corrected any; ``kind``: those that named the right kind of thing, for the built-in set only.
    """
    own = {example.key: example for example in examples}
    before = {key: str(row["unfiltered"]) for key, row in stored.items()}
    counts = {
        "rationales": sum(row["decoded"] is not None for row in stored.values()),
        "right": sum(is_right(text, own[key]) for key, text in before.items()),
    }
    known = {key: text for key, text in before.items() if key in _facts()}
    if known:
        counts["kind"] = sum(names_kind(text, _facts()[key]) for key, text in known.items())
    return counts


def is_right(text: str, example: Example) -> bool:
    """Tell whether a text states the example's answer in "the answer is ..."."""
    found = find_statement(text)
    return found is not None and states_answer(found[1], example)


def names_kind(text: str, fact: Fact) -> bool:
    """Tell whether a rationale says of what kind the thing is that its question asks about."""
    kind = _KINDS[fact.kind]
    found = find_statement(text)
    why = text[: found[0]] if found else text  # "the answer is meat" says nothing of kinds
    return re.search(rf"\b(is {kind.phrase}|like other {kind.plural})\b", why.lower()) is not None


@cache
def _facts() -> dict[str, Fact]:
    return {example.key: fact for example, fact in zip(private_examples(), facts("private"), strict=True)}
