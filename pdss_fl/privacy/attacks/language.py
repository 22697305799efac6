"""Attacks that read the words around a released one with a language model, which comes in as a callable.

``pdss_fl.slm.attackers`` makes these callables of Hugging Face models; nothing here imports one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pdss_fl.privacy.attacks.caps import Targets
from pdss_fl.privacy.vocabulary import BLANK, Vocabulary

MaskedScores = Callable[[Sequence[Sequence[str]], Sequence[int]], Tensor]
"""From n word lists and a position in each to log-scores of all V words there, (n, V); the word itself is not read."""

SequenceScore = Callable[[Sequence[str]], Tensor]
"""From n texts to their log-likelihoods in nats, (n,)."""

Completer = Callable[[Sequence[str]], Sequence[str]]
"""From n prompts to the n texts that a model writes after them."""


def masked_words(vocabulary: Vocabulary, scores: MaskedScores, targets: Targets) -> Tensor:
    """Return what a masked language model puts in the place of each released word, LongTensor (n, 1).

    The model reads the other released words only, as in SanText (Yue et al. 2021), without filling words.
    """
    texts, positions = [], []
    for ids, position in targets.contexts():
        before, after = _words(vocabulary, ids[:position]), _words(vocabulary, ids[position + 1 :])
        texts.append([*before, vocabulary.tokens[ids[position]], *after])
        positions.append(len(before))
    return scores(texts, positions).argmax(dim=1, keepdim=True)


def words_in_context(
    vocabulary: Vocabulary,
    candidates: tuple[Tensor, Tensor],
    score: SequenceScore,
    targets: Targets,
) -> Tensor:
    """Return the best candidate for each released word by its posterior times its fit to the context, (n, 1).

    Parameters
    ----------
    vocabulary : Vocabulary
        Of the ids.
    candidates : tuple[Tensor, Tensor]
        From ``bayes.candidates``: ids (V, k) and ln(prior(x) P(y|x)) (V, k).
    score : SequenceScore
        Is given the released text with each candidate in its place; filling words are left out.
    targets : Targets
        The words to guess.
    """
    options, posterior = (table[targets.released] for table in candidates)
    texts = []
    for (ids, position), words in zip(targets.contexts(), options.tolist(), strict=True):
        texts += [" ".join(_words(vocabulary, [*ids[:position], word, *ids[position + 1 :]])) for word in words]
    total = posterior + score(texts).double().reshape(posterior.shape)
    return options.gather(1, total.argmax(dim=1, keepdim=True))


def reconstructed_words(
    vocabulary: Vocabulary,
    complete: Completer,
    pairs: Sequence[tuple[Tensor, Tensor]],
    targets: Targets,
) -> Tensor:
    """Return what a generative model writes at each position when asked for the original text, (n, 1).

    Parameters
    ----------
    vocabulary : Vocabulary
        Of the ids.
    complete : Completer
        The model; its first line counts, word by word in the order of the released ones.
    pairs : Sequence[tuple[Tensor, Tensor]]
        (released, original) ids of public texts, shown to the model as examples.
    targets : Targets
        The words to guess. Where the model wrote too little, the guess is the released word.
    """
    shown = "".join(_pair(*(_line(vocabulary, ids.tolist()) for ids in pair)) for pair in pairs)
    contexts = [(_line(vocabulary, ids), ids, position) for ids, position in targets.contexts()]
    lines = list(dict.fromkeys(line for line, _, _ in contexts))
    written = complete([_INSTRUCTION + shown + _pair(line, "").rstrip() for line in lines])
    guesses = {line: _read(vocabulary, text) for line, text in zip(lines, written, strict=True)}
    found = [guesses[line][i] if i < len(guesses[line]) else ids[i] for line, ids, i in contexts]
    return torch.tensor(found, dtype=torch.long).reshape(-1, 1)


_INSTRUCTION = "In each text some words were replaced by similar ones. Write the original text, word by word.\n\n"


def _pair(released: str, original: str) -> str:
    return f"Replaced: {released}\nOriginal: {original}\n\n"


def _line(vocabulary: Vocabulary, ids: Sequence[int]) -> str:
    return " ".join(vocabulary.tokens[i] for i in ids)


def _words(vocabulary: Vocabulary, ids: Sequence[int]) -> list[str]:
    return [vocabulary.tokens[i] for i in ids if vocabulary.tokens[i] != BLANK]


def _read(vocabulary: Vocabulary, written: str) -> list[int]:
    """Return an id for each word of the first line; what is no word counts as the released text's unknown ones."""
    lines = written.strip().splitlines()
    blank = vocabulary.words if vocabulary.words < len(vocabulary) else 0
    ids: list[int] = []
    for piece in lines[0].split() if lines else []:
        ids += [blank] if piece == BLANK else vocabulary.encode(piece).tolist()
    return ids
