"""Words of English grammar: public, frequent, and of little meaning by themselves."""

from __future__ import annotations

_FUNCTION_WORDS_TEXT = (
    "a about after all also am an and any are as at be because been before being both but by can "
    "could did do does doing done down each either else few for from had has have having he her here "
    "hers him his how i if in into is it its just like many may me might more most much must my "
    "neither no nor not of off often on once one only or other our out over own same shall she should "
    "so some such than that the their them then there these they this those through to too under "
    "until up us very was we were what when where whether which while who whom whose why will with "
    "would you your"
)
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS_TEXT.split())
"""Words of grammar."""
