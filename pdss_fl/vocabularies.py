"""The public vocabularies that come with the project, and the perturber that a run asks for."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file
from wordfreq import top_n_list

from pdss_fl.bundled import BUNDLED_MODEL, build_once, bundled_model_path, cache_directory
from pdss_fl.config import IDENTITY, PrivacySettings, RunSettings
from pdss_fl.data.everyday import words as everyday_words
from pdss_fl.data.prompts import PromptShape
from pdss_fl.errors import SettingError
from pdss_fl.privacy import Vocabulary, create_mechanism
from pdss_fl.privacy.contextual import NextWord
from pdss_fl.privacy.parameters import check_parameters
from pdss_fl.release import Perturber
from pdss_fl.slm.embeddings import TEMPLATE, word_embeddings
from pdss_fl.slm.encoder_decoder import SETTING
from pdss_fl.slm.next_word import next_word
from pdss_fl.slm.rewriter import load_rewriter, rewriter_name

logger = logging.getLogger("pdss_fl.client")

CONTEXTUAL, ENCODER = "contextual", "encoder-"
_FILE = "embeddings.safetensors"
_PROGRESS_SECONDS = 5.0
FALLBACK = "thing"  # what a name, a number or a foreign script counts as, before it is perturbed


def vocabulary_words(source: str, size: int) -> list[str]:
    """Return the ``size`` words of a public vocabulary, the most important first.

    Parameters
    ----------
    source : str
        ``everyday``: all words of the built-in data set's domain (of its facts and its templates, not
        of what any client holds), filled up with the most frequent English words. ``english``: the
        most frequent English words alone (``wordfreq``).
    size : int
        Number of words, fillers not counted; ``everyday`` needs at least its own words.
    """
    frequent = [w for w in top_n_list("en", 2 * size + 1000) if w.isascii() and w.isalpha()]
    domain = list(everyday_words()) if source == "everyday" else []
    if len(domain) > size:
        raise SettingError(
            f"privacy.vocabulary-size = {size} is smaller than the {len(domain)} words of the everyday domain: "
            f"set it to at least {len(domain)}"
        )
    words = list(dict.fromkeys([FALLBACK, *domain, *frequent]))[:size]
    if len(words) < size:
        raise SettingError(f"privacy.vocabulary-size = {size}: only {len(words)} words are known")
    return words


@lru_cache(maxsize=4)
def load_vocabulary(source: str, size: int, embeddings: str) -> Vocabulary:
    """Return a public vocabulary with the word embeddings of a public model.

    The embeddings are computed once and kept in the cache directory: a vocabulary that changed by a rounding
    would be another one for the ledger, which then could not send stored text again.
    """
    words = vocabulary_words(source, size)
    folder = cache_directory() / f"vocabulary-{_fingerprint(embeddings, words)}"

    def build(fresh: Path) -> None:
        logger.info("vocabulary: embedding %d words with %s, once", len(words), Path(embeddings).name)
        save_file(
            {"embeddings": word_embeddings(_model_path(embeddings), words, _log_progress(len(words)))}, fresh / _FILE
        )

    table = load_file(build_once(folder, build) / _FILE)["embeddings"]
    return Vocabulary(words, table, fallback=FALLBACK)


def _log_progress(total: int) -> Callable[[int], None]:
    last = time.monotonic()

    def log(done: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _PROGRESS_SECONDS:
            last = time.monotonic()
            logger.info("vocabulary: %d of %d words embedded", done, total)

    return log


def _fingerprint(model: str, words: list[str]) -> str:
    """Name a model and words; a local model also by when its files were written."""
    written = sorted(p.stat().st_mtime_ns for p in Path(model).iterdir()) if Path(model).is_dir() else []
    return hashlib.sha256(json.dumps([model, TEMPLATE, words, written]).encode()).hexdigest()[:24]


def load_perturber(
    settings: RunSettings, mechanism: str, noise_seed: int | None = None, labels: tuple[str, ...] = ()
) -> Perturber:
    """Return what a run's settings ask for, with ``mechanism`` in place of the run's own if it differs.

    Parameters
    ----------
    settings : RunSettings
        ``privacy.*`` and ``data.public-choices`` are read.
    mechanism : str
        ``settings.privacy.mechanism``, or ``identity`` for the non-private bound.
    noise_seed : int | None (default: None)
        Seeds the noise, in simulation only; ``None`` draws from the operating system.
    labels : tuple[str, ...] (default: ())
        The node's public choices, where ``data.public-choices`` asks to send them as they are.
    """
    privacy = settings.privacy
    parameters = privacy.mechanism_parameters if mechanism == privacy.mechanism else {}
    check_parameters(mechanism, parameters)  # before a vocabulary is made
    vocabulary = load_vocabulary(privacy.vocabulary, privacy.vocabulary_size, privacy.embeddings)
    supplied = _context(vocabulary, privacy.embeddings) if mechanism == CONTEXTUAL else {}
    if mechanism.startswith(ENCODER):
        supplied = _encoder(vocabulary, settings.encoder_decoder.model)
    return Perturber(
        vocabulary,
        create_mechanism(
            mechanism, vocabulary, epsilon=privacy.epsilon, neighbours=privacy.neighbours, **parameters, **supplied
        ),
        _whole(settings) if mechanism == IDENTITY else prompt_shape(privacy, settings.data.public_choices),
        privacy.delta,
        None if noise_seed is None else np.random.default_rng(noise_seed),
        labels,
    )


def _context(vocabulary: Vocabulary, model: str) -> dict[str, Any]:
    """Return what scores the next word for the contextual mechanism, and its name for the ledger."""
    name = f"{Path(model).name}-{_fingerprint(model, list(vocabulary.tokens))[:12]}"
    return {"next_word": _next_word(_model_path(model), vocabulary.tokens), "model": name}


def _encoder(vocabulary: Vocabulary, model: str) -> dict[str, Any]:
    """Return what rewrites documents for the mechanisms ``encoder-*``, and its name for the ledger."""
    words = vocabulary.tokens
    return {"rewriter": load_rewriter(model, words, SETTING), "model": rewriter_name(model, words, SETTING)}


@lru_cache(maxsize=2)
def _next_word(model: str, tokens: tuple[str, ...]) -> NextWord:
    return next_word(model, tokens, "privacy.embeddings")


def _model_path(model: str) -> str:
    return str(bundled_model_path()) if model == BUNDLED_MODEL else model


def _whole(settings: RunSettings) -> PromptShape:
    """Return the shape of the bound without privacy: all words and choices, whatever the private prompts leave out."""
    return PromptShape("exact", 512, 128, 26, "all", settings.data.public_choices)


def prompt_shape(privacy: PrivacySettings, public_choices: bool) -> PromptShape:
    """Return the public bounds of a prompt under a run's settings."""
    bounds = (privacy.question_words, privacy.choice_words, privacy.choices)
    return PromptShape(privacy.length, *bounds, privacy.words, public_choices)
