"""Deterministic alignment: put a client's own words back into a rationale of its perturbed prompt."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from pdss_fl.privacy.grammar import FUNCTION_WORDS

# An article, a word (with inner apostrophes), and a possessive 's, which is kept.
_WORD = re.compile(r"(?:\b(an?)(\s+))?(\w+(?:['’](?!s\b)\w+)*)(['’]s\b)?", re.IGNORECASE)


def align(rationale: str, pairs: Sequence[tuple[str, str]]) -> str:
    """Substitute private words back wherever a rationale repeats what was released for them.

    All words are substituted at once, so a private word that also was released for another one is
    not replaced a second time. Whole words match in any case, and in the singular or plural ("dogs"
    for a released "dog"), which the private word then takes too. A capital at the beginning is
    kept, and "a" or "an" in front is made to fit.

    A released word that stands for several private words becomes the most frequent one; on a tie the
    released word itself, if it also stands unchanged in the prompt, else the first. Words of grammar
    are neither replaced nor put back, and neither are empty ones.

    Parameters
    ----------
    rationale : str
        What the LLM wrote about the perturbed prompt; untrusted, any text.
    pairs : Sequence[tuple[str, str]]
        (released word, private word) for each position of question and choices.

    Returns
    -------
    str
        The rationale in the client's own words; unchanged where nothing was repeated.
    """
    table = _substitutes(pairs)

    def substitute(match: re.Match[str]) -> str:
        article, space, word, possessive = match.groups(default="")
        private = _lookup(word.casefold(), table)
        if private is None:
            return match[0]
        if word[0].isupper():
            private = private[0].upper() + private[1:]
        if article:
            fitting = "an" if private[0].lower() in "aeiou" else "a"
            article = fitting.capitalize() if article[0].isupper() else fitting
        return f"{article}{space}{private}{possessive}"

    return _WORD.sub(substitute, rationale)


def _substitutes(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    votes: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for released, private in pairs:
        if released and private and not {released.casefold(), private.casefold()} & FUNCTION_WORDS:
            votes[released.casefold()][private] += 1

    def winner(released: str, counts: Counter[str]) -> str:  # max keeps the first of equals
        return max(counts, key=lambda private: (counts[private], private.casefold() == released))

    return {released: winner(released, counts) for released, counts in votes.items()}


def _lookup(word: str, table: dict[str, str]) -> str | None:
    """Return what a word becomes, or ``None`` if it stays."""
    if word in table:
        return _changed(word, table[word], table[word])
    for form in _singulars(word):
        if form in table:
            return _changed(form, table[form], _plural(table[form]))
    if (form := _plural(word)) in table and form != word:
        return _changed(form, table[form], singular(table[form]))
    return None


def _changed(released: str, private: str, inflected: str) -> str | None:
    return None if private.casefold() == released else inflected


def _singulars(word: str) -> list[str]:
    """Return what a word could be the plural of."""
    if not word.endswith("s") or word.endswith("ss"):
        return []
    forms = [word[:-1]]
    if word.endswith("es"):
        forms.append(word[:-2])
    if word.endswith("ies"):
        forms.append(f"{word[:-3]}y")
    return forms


def _plural(word: str) -> str:
    if re.search(r"(ss|x|z|ch|sh)$", word):
        return f"{word}es"
    if word.endswith("s"):
        return word  # a plural already, as far as its form can tell
    return f"{word[:-1]}ies" if re.search(r"[^aeiou]y$", word) else f"{word}s"


def singular(word: str) -> str:
    """Return the likely singular of an English noun; a word that does not look like a plural stays."""
    if len(word) > 4 and word.endswith("ies"):
        return f"{word[:-3]}y"
    if re.search(r"(ss|x|z|ch|sh)es$", word):
        return word[:-2]
    return word[:-1] if len(word) > 2 and re.search(r"[^sui]s$", word) else word
