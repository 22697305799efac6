"""Which rationales agree with what the LLM said elsewhere of the same thing.

A client that asks several questions about one thing gets several statements about it, each from other
perturbed words, and the noise that made one of them wrong rarely makes another wrong in the same way. So the
statement that most of them support is right more often than any single one (self-consistency, Wang et al. 2022,
here over a client's own examples). It is post-processing on the client and costs no privacy.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from pdss_fl.data.example import Example
from pdss_fl.privacy.grammar import FUNCTION_WORDS
from pdss_fl.slm.alignment import singular
from pdss_fl.slm.answers import SENTENCE_END, find_statement, states_answer


def agreeing(rationales: Sequence[str], examples: Sequence[Example]) -> list[bool]:
    """Tell which decoded rationales are not outvoted by the client's others.

    What a rationale claims is its first sentence that begins with a word of its question: that word is the
    subject, the other words of the sentence are the claim, compared in the singular and without words of
    grammar. Every rationale votes for its words, with double weight if it also states the answer that its client
    knows to be right. It agrees if its claim holds one of the words with the most votes for its subject.

    Parameters
    ----------
    rationales, examples : Sequence
        ``rationales[i]`` was decoded for ``examples[i]``.

    Returns
    -------
    list[bool]
        True also for a rationale that claims nothing of a word of its question.
    """
    claims = [_claim(text, example) for text, example in zip(rationales, examples, strict=True)]
    votes: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for (subject, said), text, example in zip(claims, rationales, examples, strict=True):
        found = find_statement(text)
        weight = 2 if found and states_answer(found[1], example) else 1
        for word in said:
            votes[subject][word] += weight
    return [_wins(votes[subject], said) for subject, said in claims]


def _wins(votes: Counter[str], said: frozenset[str]) -> bool:
    return not said or max(votes[word] for word in said) == max(votes.values())


def _claim(rationale: str, example: Example) -> tuple[str, frozenset[str]]:
    asked = {singular(word) for word in _words(example.question)}
    for sentence in SENTENCE_END.split(rationale):
        subject, *said = _words(sentence) or [""]
        if singular(subject) in asked:
            return singular(subject), frozenset(singular(word) for word in said)
    return "", frozenset()


def _words(text: str) -> list[str]:
    return [word for word in re.findall(r"\w+", text.lower()) if word not in FUNCTION_WORDS]
