"""What of an example is rendered for sending: its question and choices as words of public length.

The answer, the context, the person and any id have no way in: ``render`` reads the question and the
choices and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pdss_fl.data.content import content_words
from pdss_fl.data.example import Example
from pdss_fl.errors import DataError

Split = Callable[[str], list[str]]


@dataclass(frozen=True)
class PromptShape:
    """The public bounds of a prompt, in words; what a prompt's length may tell.

    Parameters
    ----------
    length : str
        ``fixed``: every text is filled up to its bound, so its length tells nothing. ``bucket``: up to
        the next power of two, or the bound. ``exact``: not filled; its length and its number of choices are told.
    question_words, choice_words : int
        Bounds of the question and of each choice; longer texts are cut.
    choices : int
        Number of choices of every example: missing ones are filled, a random subset of more is sent; with 0
        the question is sent alone.
    words : str
        Of a text: ``all`` of them, from the first one; ``content``: those of ``content_words``.
    public_choices : bool
        The choices are the same public labels in every example and are sent as they are.
    """

    length: str
    question_words: int
    choice_words: int
    choices: int
    words: str = "all"
    public_choices: bool = False

    @property
    def tokens(self) -> int:
        """Number of perturbed words of one prompt at the bound."""
        return self.question_words + (0 if self.public_choices else self.choices * self.choice_words)

    def size(self, words: int, bound: int) -> int:
        """Return how many words are released of a text of ``words`` words."""
        if self.length == "fixed":
            return bound
        if self.length == "bucket":
            return min(bound, 1 << max(0, words - 1).bit_length())
        return min(bound, max(words, 1))


@dataclass(frozen=True)
class RenderedPrompt:
    """The words of a prompt before perturbation; ``None`` is a filling word.

    ``order[i]`` is the example's own index of the i-th sent choice, or ``None`` for a filling choice.
    ``truncated`` counts the words that are not sent.
    """

    question: tuple[str | None, ...]
    choices: tuple[tuple[str | None, ...], ...]
    order: tuple[int | None, ...]
    truncated: int


def render(example: Example, order: Sequence[int | None], shape: PromptShape, split: Split) -> RenderedPrompt:
    """Cut and fill an example's question and choices to their public lengths.

    Parameters
    ----------
    example : Example
        Only its question and choices are read.
    order : Sequence[int | None]
        From ``choice_order``.
    shape : PromptShape
        The public bounds.
    split : Callable[[str], list[str]]
        The vocabulary's public rule from text to words.
    """
    question, cut = _fit(split(example.question), shape.question_words, shape)
    choices = []
    if not shape.public_choices:
        for index in order:
            words, lost = _fit([] if index is None else split(example.choices[index]), shape.choice_words, shape)
            choices.append(words)
            cut += lost
    return RenderedPrompt(question, tuple(choices), tuple(order), cut)


def choice_order(example: Example, shape: PromptShape, shuffle: Callable[[list[int | None]], None]) -> list[int | None]:
    """Return a fresh order in which the example's choices are sent.

    It is filled up to ``shape.choices`` unless the shape's length is exact.
    The shuffle comes before the cut, so that which choices stay does not depend on the answer.
    """
    if shape.public_choices:
        return list(range(len(example.choices)))
    order: list[int | None] = list(range(len(example.choices)))
    shuffle(order)
    order = order[: shape.choices]
    if shape.length != "exact":
        order += [None] * (shape.choices - len(order))
    shuffle(order)
    return order


def public_labels(examples: Sequence[Example]) -> tuple[str, ...]:
    """Return the label set that all examples share, sorted; raises ``DataError`` if they differ."""
    labels = {tuple(sorted(example.choices)) for example in examples}
    if len(labels) != 1 or labels == {()}:
        raise DataError(
            f"data.public-choices is set, but the examples have {len(labels)} different sets of choices: "
            "only one fixed public label set may be sent unperturbed"
        )
    return labels.pop()


def _fit(words: Sequence[str], bound: int, shape: PromptShape) -> tuple[tuple[str | None, ...], int]:
    chosen = content_words(words, bound) if shape.words == "content" else words
    size = shape.size(len(chosen), bound)
    kept = tuple(chosen[:size])
    return kept + (None,) * (size - len(kept)), len(words) - len(kept)
