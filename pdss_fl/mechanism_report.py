"""``pdss mechanisms``: what every installed mechanism promises at a run's default shape, and what it costs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pdss_fl.config import RunSettings
from pdss_fl.errors import PdssError
from pdss_fl.privacy import DocumentGuarantee, PrivacyGuarantee, available_mechanisms
from pdss_fl.privacy.mechanism import mechanism_class
from pdss_fl.privacy.parameters import settable_parameters
from pdss_fl.release import Perturber
from pdss_fl.report import epsilon_text
from pdss_fl.vocabularies import load_perturber, load_vocabulary

_MEASURED_SECONDS = 0.1
_MOST_DOCUMENTS = 2**15


@dataclass(frozen=True)
class Listed:
    """One mechanism at the default shape.

    Parameters
    ----------
    name : str
        As ``privacy.mechanism`` takes it.
    guarantee : PrivacyGuarantee
        Of a token.
    document : DocumentGuarantee
        Of a prompt of the public length.
    kept : float | None
        Share of words that come out as they are, every word equally likely; ``None`` where no matrix says it.
    parameters : tuple[str, ...]
        Names that ``privacy.parameters`` can give.
    prepared : float
        Seconds to make the mechanism, once the vocabulary is there.
    words_per_second : float
        In prompts of the public length, once each word has been seen.
    """

    name: str
    guarantee: PrivacyGuarantee
    document: DocumentGuarantee
    kept: float | None
    parameters: tuple[str, ...]
    prepared: float
    words_per_second: float


def list_mechanisms() -> tuple[list[Listed], list[tuple[str, str]]]:
    """Return all mechanisms that can be made, and of the others (third parties' mostly) the name and why not."""
    settings = RunSettings()
    privacy = settings.privacy
    load_vocabulary(privacy.vocabulary, privacy.vocabulary_size, privacy.embeddings)  # not part of any one's cost
    found, broken = [], []
    for name in available_mechanisms():
        try:
            found.append(_listed(name, replace(settings, privacy=replace(privacy, mechanism=name))))
        except PdssError as err:
            broken.append((name, err.local))
        except Exception as err:  # someone else's class can raise anything
            broken.append((name, f"{type(err).__name__}: {err}"))
    return found, broken


def _listed(name: str, settings: RunSettings) -> Listed:
    start = time.perf_counter()
    perturber = load_perturber(settings, name)
    mechanism = perturber.mechanism
    guarantee, document = mechanism.guarantee, perturber.document
    prepared = time.perf_counter() - start
    own = tuple(key.replace("_", "-") for key in settable_parameters(mechanism_class(name)))
    return Listed(name, guarantee, document, kept_share(perturber), own, prepared, _words_per_second(perturber))


def kept_share(perturber: Perturber) -> float | None:
    """Return the share of words that are expected to come out as they are; ``None`` where nothing states it."""
    try:
        return perturber.mechanism.kept_tokens
    except NotImplementedError:
        return None


def _words_per_second(perturber: Perturber) -> float:
    """Return the speed over more and more prompts of all words in turn, until there is something to measure."""
    mechanism, tokens = perturber.mechanism, perturber.shape.tokens
    every = torch.arange(len(perturber.vocabulary))
    mechanism.perturb_documents([every[:tokens]])
    documents = 4
    while True:
        words = every.repeat(documents * tokens // len(every) + 1)[: documents * tokens]
        prompts = list(torch.split(words, tokens))
        start = time.perf_counter()
        mechanism.perturb_documents(prompts)
        seconds = time.perf_counter() - start
        if seconds >= _MEASURED_SECONDS or documents >= _MOST_DOCUMENTS:
            return documents * tokens / seconds
        documents *= 4


def print_mechanisms(console: Console) -> None:
    """Print both tables, and a line for each mechanism that cannot be made."""
    found, broken = list_mechanisms()
    console.print(_costs(found))
    console.print(_promises(found))
    privacy = RunSettings().privacy
    console.print(
        f"At epsilon {privacy.epsilon:g}, {privacy.neighbours} neighbours and the built-in vocabulary; a document is a "
        f"prompt of {privacy.question_words} words, at delta {privacy.delta:g}. Whatever is not pure-ldp runs only on "
        "a node that names it in allowed-mechanisms. Seconds and speed were measured just now, on this machine.",
        highlight=False, markup=False,
    )  # fmt: skip
    for name, reason in broken:
        console.print(f"left out: {name}: {reason}", highlight=False, markup=False, soft_wrap=True)


def _costs(found: Sequence[Listed]) -> Table:
    # As narrow as it can be, since a number that is cut off to fit a terminal says nothing.
    table = Table(title="Privacy mechanisms: what they promise and cost", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("mechanism", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    for column in ("epsilon\nof a word", "of a\ndocument", "words\nkept", "seconds\nto make", "words\nper s"):
        table.add_column(column, justify="right", no_wrap=True)
    for one in found:
        table.add_row(
            one.name,
            one.guarantee.kind,
            epsilon_text(one.guarantee.epsilon) + (" x dist." if one.guarantee.kind == "metric-ldp" else ""),
            epsilon_text(one.document.epsilon),
            "not stated" if one.kept is None else f"{one.kept:.1%}",
            f"{one.prepared:.2g}",
            f"{one.words_per_second:.2g}" if one.words_per_second < 100 else f"{one.words_per_second:,.0f}",
        )
    return table


def _promises(found: Sequence[Listed]) -> Table:
    table = Table(title="What each one says of itself", show_lines=True)
    table.add_column("mechanism", no_wrap=True)
    table.add_column("statement")
    table.add_column("privacy.parameters")
    for one in found:
        table.add_row(one.name, one.guarantee.statement, " ".join(one.parameters))
    return table
