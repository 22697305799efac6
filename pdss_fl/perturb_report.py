"""``pdss perturb``: what would leave of a file's texts, side by side with them. Nothing is sent or charged."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pdss_fl.config import RunSettings
from pdss_fl.data.example import Example
from pdss_fl.data.prompts import PromptShape, render
from pdss_fl.data.sources import read_any
from pdss_fl.privacy import BLANK, Vocabulary
from pdss_fl.privacy_report import guarantee_lines
from pdss_fl.release import Perturber
from pdss_fl.vocabularies import FALLBACK, load_perturber

ROWS = 20
"""Texts that the table shows."""


@dataclass(frozen=True)
class Words:
    """A text, the words chosen of it, what the vocabulary makes of them, and what comes out, place by place.

    ``chosen`` holds ``None`` for filling words, ``text`` is ``None`` for a choice that fills up their number.
    """

    text: str | None
    chosen: tuple[str | None, ...]
    known: tuple[str, ...]
    released: tuple[str, ...]


@dataclass(frozen=True)
class Shown:
    """One prompt: question and choices, the latter in the order in which they would be sent."""

    question: Words
    choices: tuple[Words, ...]
    not_sent: int

    @property
    def parts(self) -> tuple[Words, ...]:
        """Question and choices."""
        return self.question, *self.choices


def whole_shape(examples: Sequence[Example]) -> PromptShape:
    """Return the shape that sends all words of these examples; their numbers are told, as nothing is filled up."""
    questions = [len(Vocabulary.split(e.question)) for e in examples]
    choices = [len(Vocabulary.split(choice)) for e in examples for choice in e.choices]
    most = max(len(e.choices) for e in examples)
    return PromptShape("exact", max(1, *questions), max([1, *choices]), most)


def show(examples: Sequence[Example], perturber: Perturber) -> list[Shown]:
    """Perturb each example once, as a client does."""
    vocabulary, shape = perturber.vocabulary, perturber.shape
    rows = []
    for example, payload in zip(examples, perturber.perturb(examples), strict=True):
        prompt = render(example, payload["order"], shape, vocabulary.split)
        texts = [example.question, *(None if i is None else example.choices[i] for i in payload["order"])]
        chosen, released = (prompt.question, *prompt.choices), (payload["question"], *payload["choices"])
        question, *choices = (
            Words(text, words, tuple(_known(words, vocabulary)), tuple(out))
            for text, words, out in zip(texts, chosen, released, strict=True)
        )
        rows.append(Shown(question, tuple(choices), prompt.truncated))
    return rows


def _known(words: Sequence[str | None], vocabulary: Vocabulary) -> Iterator[str]:
    for word in words:
        yield BLANK if word is None else vocabulary.decode(vocabulary.word_ids([word]))[0]


def perturb_file(path: Path, settings: RunSettings, all_words: bool) -> tuple[list[Shown], Perturber]:
    """Read a file and perturb its texts; ``all_words`` sends whole texts in place of what a run's shape allows."""
    examples = read_any(path)
    perturber = load_perturber(settings, settings.privacy.mechanism)
    if all_words:
        perturber = replace(perturber, shape=whole_shape(examples))
    return show(examples, perturber), perturber


def json_lines(rows: Sequence[Shown], perturber: Perturber) -> Iterator[str]:
    """Yield one JSON object a text: what was read, the words chosen of it, what would leave, and its price."""
    guarantee, document = perturber.mechanism.guarantee, perturber.document
    for row in rows:
        record = {
            "question": row.question.text,
            "chosen": list(row.question.chosen),
            "perturbed": " ".join(row.question.released),
            "choices": [choice.text for choice in row.choices],
            "perturbed_choices": [" ".join(choice.released) for choice in row.choices],
            "words_not_sent": row.not_sent,
            "mechanism": perturber.mechanism.name,
            "kind": guarantee.kind,
            "epsilon_per_token": _finite(guarantee.epsilon),
            "epsilon_per_document": _finite(document.epsilon),
            "delta": document.delta,
        }
        yield json.dumps(record, ensure_ascii=False)


def _finite(value: float) -> float | None:
    return None if value == float("inf") else value


def print_side_by_side(console: Console, rows: Sequence[Shown], perturber: Perturber) -> None:
    """Print the first texts with what would leave of them, and what that protects."""
    table = Table(title="What would leave this machine", show_lines=True)
    for column in ("text (stays here)", "words chosen of it", "what would leave"):
        table.add_column(column, overflow="fold")
    for row in rows[:ROWS]:
        cells = [[_raw(part), _chosen(part), _released(part)] for part in row.parts]
        table.add_row(*(Text("\n").join(column) for column in zip(*cells, strict=True)))
    console.print(table)
    for line in _summary(rows, perturber):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _raw(part: Words) -> Text:
    return Text("".join(c if c.isprintable() else " " for c in part.text or ""))  # no control code reaches the screen


def _chosen(part: Words) -> Text:
    """Return the chosen words, each with what it counts as where that is another word."""
    return Text(" ".join("·" if w is None else w if w == k else f"{w}({k})" for w, k in zip(part.chosen, part.known)))  # noqa: B905


def _released(part: Words) -> Text:
    return Text(" ").join(
        Text(out, style="bold red" if out == known and word is not None else "green")
        for word, known, out in zip(part.chosen, part.known, part.released, strict=True)
    )


def _summary(rows: Sequence[Shown], perturber: Perturber) -> Iterator[str]:
    shape = perturber.shape
    places = [
        (word, known, out)
        for row in rows
        for part in row.parts
        for word, known, out in zip(part.chosen, part.known, part.released, strict=True)
        if word is not None
    ]
    kept = sum(known == out for _, known, out in places)
    unknown = sum(known == FALLBACK != word for word, known, _ in places)
    more = f"; the first {ROWS} of {len(rows)} texts are shown" if len(rows) > ROWS else ""
    yield (
        "red: came out as it is; word(other): counts as the other one; ·: filling word, perturbed like any other" + more
    )
    yield from guarantee_lines(perturber)
    yield (
        f"words                {len(places)} would be sent, {sum(row.not_sent for row in rows)} not; {unknown} of the "
        f"sent are unknown and count as {FALLBACK!r}; {kept} came out as they are ({kept / max(1, len(places)):.1%})"
    )
    if 2 * unknown > len(places):
        yield "                     (the vocabulary is too small for this text: try --vocabulary english)"
    if not shape.choices and shape.length != "exact":
        yield "choices              none are sent (privacy.choices = 0)"
    yield "Nothing was sent and no ledger was charged; every call draws fresh noise."
