"""Which answer a text states, compared word by word."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from scipy.stats import binomtest

from pdss_fl.data.example import Example

_ENOUGH = 20
_BY_CHANCE = 0.01
_ARTICLES = frozenset({"a", "an", "the"})
_STATEMENT = re.compile(r"\banswer\s+is\b", re.IGNORECASE)
SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n")


def content_words(text: str) -> tuple[str, ...]:
    """Return the words of a text in lower case, without punctuation and, if others are left, articles."""
    words = tuple(re.findall(r"\w+", text.lower()))
    return tuple(word for word in words if word not in _ARTICLES) or words


def find_statement(rationale: str) -> tuple[int, str] | None:
    """Find the last "the answer is ..." of a rationale.

    Returns
    -------
    tuple[int, str] | None
        Where the sentence with it begins, and what follows "is" up to that sentence's end;
        ``None`` if there is no such sentence.
    """
    found = list(_STATEMENT.finditer(rationale))
    if not found:
        return None
    last = found[-1]
    ends = [match.end() for match in SENTENCE_END.finditer(rationale, 0, last.start())]
    stop = SENTENCE_END.search(rationale, last.end())
    return (ends[-1] if ends else 0), rationale[last.end() : stop.start() if stop else None]


def states_answer(statement: str, example: Example) -> bool:
    """Tell whether the text after "the answer is" names the example's answer and not another choice.

    See ``named_choice``; for an open question the statement must begin with the answer.
    """
    if not example.choices:
        answer = content_words(example.answer)
        return bool(answer) and content_words(statement)[: len(answer)] == answer
    return named_choice(statement, example) == example.answer


def named_choice(statement: str, example: Example) -> str | None:
    """Return the choice that the text after "the answer is" names, or ``None``.

    The choice that comes first in the statement counts; of those that begin at the same word the longest.
    A statement with "not" in front of the choice states nothing.
    """
    words = content_words(statement)
    for place in range(len(words)):
        if words[place] == "not":
            return None
        here = [c for c in example.choices if _begins_with(words[place:], content_words(c))]
        if here:
            return max(here, key=lambda choice: len(content_words(choice)))
    return None


def know_the_answers(rationales: Sequence[str], examples: Sequence[Example]) -> bool:
    """Tell whether rationales name the right choices more often than guesses would.

    Where noise has drowned the prompts, rationales tell nothing of the private questions, and a student of them
    learns worse than from its labels alone. Of those that name a choice of their example the right ones are
    counted; guesses are right once in as many as there are choices. Fewer than 20 examples, or open questions,
    cannot tell, and get the benefit of the doubt.

    Parameters
    ----------
    rationales, examples : Sequence
        ``rationales[i]`` was decoded for ``examples[i]``.

    Returns
    -------
    bool
        Whether so many would be right by chance in less than one of a hundred cases (one-sided binomial test).
    """
    if len(examples) < _ENOUGH or not all(example.choices for example in examples):
        return True
    found = [find_statement(text) for text in rationales]
    named = [named_choice(f[1], e) if f else None for f, e in zip(found, examples, strict=True)]
    guessed = [(choice == e.answer, 1 / len(e.choices)) for choice, e in zip(named, examples, strict=True) if choice]
    if not guessed:
        return False
    right, chance = sum(hit for hit, _ in guessed), sum(share for _, share in guessed) / len(guessed)
    return float(binomtest(right, len(guessed), chance, alternative="greater").pvalue) < _BY_CHANCE


def without_mention(text: str, statement: str) -> str:
    """Return the sentences of a text that do not name what a statement says; all of them if it says nothing."""
    named = content_words(statement)
    if not named:
        return text
    ends = [0, *(match.end() for match in SENTENCE_END.finditer(text)), len(text)]
    sentences = [text[start:end].strip() for start, end in pairwise(ends)]
    return " ".join(s for s in sentences if s and not _mentions(content_words(s), named))


def _mentions(words: tuple[str, ...], named: tuple[str, ...]) -> bool:
    return any(_begins_with(words[place:], named) for place in range(len(words)))


def _begins_with(words: tuple[str, ...], choice: tuple[str, ...]) -> bool:
    return bool(choice) and words[: len(choice)] == choice
