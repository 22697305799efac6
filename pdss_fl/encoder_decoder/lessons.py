"""What an encoder-decoder learns from: public prompts, words in their place, and the LLM's rationale of each.

Prompts reach the LLM through the messages and the ``RationaleGenerator`` of every run, and every answer is written to
a file at once, so that a killed preparation goes on where it was. Nothing here reads private data; no code of a run
imports it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import torch

from pdss_fl.config import IDENTITY, RunSettings
from pdss_fl.data.example import Example
from pdss_fl.data.prompts import render
from pdss_fl.data.public import PublicExample, require_public
from pdss_fl.encoder_decoder.word_groups import WordGroups, find_groups
from pdss_fl.errors import SettingError
from pdss_fl.llm.protocol import RationaleGenerator
from pdss_fl.messages import GenerationSettings, PerturbedPrompt, PromptBatch, RationaleBatch
from pdss_fl.privacy import BLANK, PrivacyMechanism, create_mechanism
from pdss_fl.release import Perturber
from pdss_fl.slm.alignment import align, singular
from pdss_fl.slm.answers import content_words
from pdss_fl.slm.decoder import DecodeRequest, filter_rationale
from pdss_fl.slm.encoder_decoder_training import Lesson, Quadruple
from pdss_fl.vocabularies import load_perturber

GROUPS = "groups"
"""The default for what stands in place of words: the head of their group, through the staircase in some copies."""

_BATCH = 64
_EMPTY, _SWAPPED, _NOISE = 0.1, 0.7, 0.05
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PairSettings:
    """How pairs are made.

    Parameters
    ----------
    mechanism : str (default: GROUPS)
        ``groups``, or a mechanism's name: its releases are then what the encoder learns to write, as in PDSS.
    epsilon : float (default: 7.0)
        Per word, of the mechanism; with ``groups`` of the staircase that heads go through.
    neighbours : int (default: 6)
        Of the same.
    copies : int (default: 2)
        Perturbed copies of every prompt; with ``groups`` the first one is without noise.
    seed : int (default: 0)
        Of the noise.
    """

    mechanism: str = GROUPS
    epsilon: float = 7.0
    neighbours: int = 6
    copies: int = 2
    seed: int = 0


def prepare(
    public: Sequence[PublicExample],
    pairs: PairSettings,
    settings: RunSettings,
    generator: RationaleGenerator,
    cache: Path,
    on_progress: Progress = lambda _done, _total: None,
) -> tuple[list[Quadruple], WordGroups]:
    """Return ``copies`` quadruples of every public example that the LLM knows, and the vocabulary's groups.

    An example of which the LLM's rationale of the raw prompt states another answer teaches nothing, and is left out.

    Parameters
    ----------
    public : Sequence[PublicExample]
        At least one.
    pairs : PairSettings
        How they are perturbed.
    settings : RunSettings
        ``privacy.*`` is the public vocabulary and shape of prompts, ``llm.*`` how the LLM is asked.
    generator : RationaleGenerator
        The LLM.
    cache : Path
        JSON lines with the answers so far; made where it is not.
    on_progress : Callable[[int, int], None]
        Called with the number of rationales there are and how many it will be.

    Raises
    ------
    TypeError
        If an example is not a ``PublicExample``.
    """
    require_public(public)
    if not public:
        raise SettingError("--public: there is nothing to train on")
    raw = load_perturber(settings, IDENTITY, pairs.seed)
    fixed = replace(settings, privacy=replace(settings.privacy, length="fixed"))  # so that its parts can be told apart
    shaped = load_perturber(fixed, "staircase", pairs.seed)
    answers = _Answers(generator, raw, settings.llm.max_new_tokens, cache)
    total = len(public) * (1 + pairs.copies)

    def counted(before: int) -> Callable[[int], None]:
        return lambda done: on_progress(before + done, total)

    payloads = raw.perturb([p.example for p in public])
    prompts = [(" ".join(p["question"]), *map(" ".join, p["choices"])) for p in payloads]
    rationales = answers.of(prompts, counted(0))
    documents = [_document(p, shaped) for p in public]
    groups = find_groups(documents, rationales, shaped.vocabulary)
    made = _perturbed(documents, groups, pairs, shaped)
    released = [_texts(words, shaped) for words, _ in made]
    returned = answers.of(released, counted(len(public)))
    quadruples = [
        Quadruple(
            public[i // pairs.copies], documents[i // pairs.copies], target, sent, tuple(map(_said, released[i])),
            rationales[i // pairs.copies], returned[i],
        )
        for i, (sent, target) in enumerate(made)
        if _right(public[i // pairs.copies].example, rationales[i // pairs.copies])
    ]  # fmt: skip
    if not quadruples:
        raise SettingError("--public: the LLM's rationales state none of the answers; name a larger llm.model")
    return quadruples, groups


def _right(example: Example, rationale: str) -> bool:
    """Tell whether what the decoder is to write ends in the answer that is known of a public question."""
    return filter_rationale(rationale, example, "drop") is not None


def lessons_of(groups: WordGroups, words: Sequence[str], pairs: PairSettings) -> Callable[[Quadruple, Random], Lesson]:
    """Return what makes lessons of quadruples.

    The decoder is to write the rationale of the raw prompt in the released words, which the client then puts its own
    words in place of (``align``): so it need not spell words that no training text has. Some lessons come without a
    rationale, since the LLM can fail.

    With ``groups`` a lesson differs each time. A word that prompt and rationale share is often another one: a word of
    its group, or any word of the public vocabulary; these synthetic prompts cover the words of things that no public
    example asks about, and teach the decoder to believe the LLM. What the encoder is to write is the heads, or any
    words of the groups, so that all of a group become likely, with some noise in between, as released prefixes have it.
    Some lessons have no document: they teach what is written then.
    """
    if pairs.mechanism != GROUPS:
        return lambda q, random: Lesson(
            () if random.random() < _EMPTY else q.words, q.perturbed, _request(q, q.public.example.question, random),
            _in_released_words(q, q.words),
        )  # fmt: skip
    known = [word for word in words if word != BLANK]

    def lesson(quadruple: Quadruple, random: Random) -> Lesson:
        swap, empty = _swap(quadruple, groups, known, random), random.random() < _EMPTY
        # What is written without a document is what public prompts as they are lead to.
        document = quadruple.words if empty else tuple(swap.get(word, word) for word in quadruple.words)
        # The coin is flipped once for all words of a document: a prefix tells what is to follow.
        heads = random.random() < 0.5
        target = groups.canonical(document) if heads else [groups.like(word, random) for word in document]
        target = [random.choice(known) if random.random() < _NOISE else word for word in target]
        question = align(quadruple.public.example.question, list(swap.items()))
        return Lesson(
            () if empty else document, tuple(target), _request(quadruple, question, random),
            _in_released_words(quadruple, _shared(quadruple, groups)),
        )  # fmt: skip

    return lesson


def _shared(quadruple: Quadruple, groups: WordGroups) -> list[str]:
    """Return the words with a group that a prompt and its rationale share."""
    said = {singular(word) for word in content_words(quadruple.rationale)}
    return [word for word in dict.fromkeys(quadruple.words) if word in groups.head and singular(word) in said]


def _in_released_words(quadruple: Quadruple, these: Sequence[str]) -> str:
    """Return the rationale with what was released in place of some of the prompt's words."""
    places = zip(quadruple.words, quadruple.sent, strict=True)
    return align(quadruple.rationale, [(word, out) for word, out in places if word in these and out != BLANK])


def _swap(quadruple: Quadruple, groups: WordGroups, known: Sequence[str], random: Random) -> dict[str, str]:
    shared = _shared(quadruple, groups)
    if not shared or random.random() >= _SWAPPED:
        return {}
    word = random.choice(shared)
    return {word: groups.like(word, random) if random.random() < 0.5 else random.choice(known)}


def _request(quadruple: Quadruple, question: str, random: Random) -> DecodeRequest:
    example = replace(quadruple.public.example, question=question)
    said, *choices = quadruple.released
    rationale = "" if random.random() < _EMPTY else quadruple.perturbed_rationale
    return DecodeRequest(example, said, tuple(choices), rationale)


def _document(public: PublicExample, perturber: Perturber) -> tuple[str, ...]:
    """Return the words of a prompt that a client would send, choices in their own order, filled up."""
    shape = perturber.shape
    order = [*range(len(public.example.choices))][: shape.choices]
    filled = [*order, *[None] * (shape.choices - len(order))]
    ids = torch.cat(perturber.encode(render(public.example, filled, shape, perturber.vocabulary.split)))
    return tuple(perturber.vocabulary.decode(ids))


def _perturbed(
    documents: Sequence[Sequence[str]], groups: WordGroups, pairs: PairSettings, perturber: Perturber
) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Return (what is sent, what the encoder is to write) of every copy of every document."""
    generator, vocabulary = np.random.default_rng(pairs.seed), perturber.vocabulary
    name = "staircase" if pairs.mechanism == GROUPS else pairs.mechanism
    noise = create_mechanism(name, vocabulary, epsilon=pairs.epsilon, neighbours=pairs.neighbours)

    def drawn(words: Sequence[str], mechanism: PrivacyMechanism) -> tuple[str, ...]:
        ids = [vocabulary.blank_ids(1) if word == BLANK else vocabulary.word_ids([word]) for word in words]
        return tuple(vocabulary.decode(mechanism.perturb(torch.cat(ids), generator)))

    found = []
    for document in documents:
        for copy in range(pairs.copies):
            if pairs.mechanism == GROUPS:
                target = tuple(groups.canonical(document))
                found.append((target if copy == 0 else drawn(target, noise), target))
            else:
                sent = drawn(document, noise)
                found.append((sent, sent))
    return found


def _texts(words: Sequence[str], perturber: Perturber) -> tuple[str, ...]:
    """Return the question and the choices that a document's words are."""
    shape = perturber.shape
    starts = [shape.question_words + i * shape.choice_words for i in range(shape.choices + 1)]
    return tuple(" ".join(words[a:b]) for a, b in pairwise([0, *starts]))


def _said(text: str) -> str:
    """Return a released text without its filling words, as a client's decoder reads it."""
    return " ".join(word for word in text.split() if word != BLANK)


class _Answers:
    """The LLM's answers, each asked for once and kept."""

    def __init__(self, generator: RationaleGenerator, perturber: Perturber, max_new_tokens: int, path: Path) -> None:
        self.generator, self.statement, self.path = generator, perturber.statement(), path
        self.asked_for = GenerationSettings(max_new_tokens=max_new_tokens)
        self.known: dict[str, str] = {}
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                    self.known[row["key"]] = row["text"]
                except (ValueError, KeyError, TypeError):
                    continue  # a line that was cut when the preparation was killed is asked for again

    def of(self, prompts: Sequence[tuple[str, ...]], on_done: Callable[[int], None]) -> list[str]:
        """Return the rationale of every (question, *choices)."""
        keys = [self._key(prompt) for prompt in prompts]
        missing = list({key: p for key, p in zip(keys, prompts, strict=True) if key not in self.known}.items())
        on_done(len(prompts) - len(missing))
        for start in range(0, len(missing), _BATCH):
            some = missing[start : start + _BATCH]
            self._ask([key for key, _ in some], [prompt for _, prompt in some])
            on_done(len(prompts) - len(missing) + start + len(some))
        return [self.known[key] for key in keys]

    def _ask(self, keys: Sequence[str], prompts: Sequence[tuple[str, ...]]) -> None:
        batch = PromptBatch(
            tuple(PerturbedPrompt(i, question, tuple(c)) for i, (question, *c) in enumerate(prompts)),
            self.statement,
        )
        received = PromptBatch.parse(batch.serialize())
        written = tuple(sorted(self.generator.generate(received, self.asked_for), key=lambda r: r.ordinal))
        answer = RationaleBatch.parse(RationaleBatch(written, self.generator.info.model).serialize(), len(prompts))
        texts = [rationale.text for rationale in answer.rationales]
        with self.path.open("a", encoding="utf-8") as stream:
            lines = [json.dumps({"key": key, "text": text}) for key, text in zip(keys, texts, strict=True)]
            stream.write("".join(f"\n{line}" for line in lines) + "\n")
        self.known |= dict(zip(keys, texts, strict=True))

    def _key(self, prompt: tuple[str, ...]) -> str:
        content = [self.generator.info.model, self.asked_for.max_new_tokens, *prompt]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()
