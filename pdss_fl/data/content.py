"""Which words of a text are worth sending when each one costs privacy.

Both rules are public and look at nothing but the text itself, so whatever they choose is perturbed and paid
for like any other text; what they leave out never leaves the client.
"""

from __future__ import annotations

from collections.abc import Sequence

from wordfreq import zipf_frequency

from pdss_fl.privacy.grammar import FUNCTION_WORDS

_ASKING_WORDS_TEXT = "can had has have how no not when where who whom whose why"
_ASKING_WORDS = frozenset(_ASKING_WORDS_TEXT.split())


def content_words(words: Sequence[str], bound: int) -> list[str]:
    """Return the words that carry a text's meaning, in their order: at most ``bound``, the rarest of all.

    Words of grammar are left out except those that tell what a question asks for ("where", "who", "has"). If
    more than ``bound`` remain, the most frequent in everyday English (``wordfreq``) give way first; a word that
    is not known there counts as the rarest. A text of nothing but grammar keeps its own words.

    Parameters
    ----------
    words : Sequence[str]
        Lower-case words.
    bound : int
        At least 1.
    """
    content = [word for word in words if word not in FUNCTION_WORDS or word in _ASKING_WORDS]
    candidates = content or list(words)
    by_rarity = sorted(range(len(candidates)), key=lambda i: zipf_frequency(candidates[i], "en"))
    return [candidates[i] for i in sorted(by_rarity[:bound])]
