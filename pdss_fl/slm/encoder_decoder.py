"""The encoder-decoder: one small model with two prompt families, for the second strategy of PDSS.

Encoder: the words of a prompt, to words of the same number that may be sent in their place. Decoder: a private
question with what was released of it and the LLM's rationale of that, to a rationale of the private question in the
released words, in whose place ``align`` puts the private ones.
Both are learned from public data (``pdss_fl.slm.encoder_decoder_training``), in one model of any kind that
``SmallModel`` takes. What the encoder writes has no guarantee by itself: that comes from the mechanism in
``pdss_fl.privacy`` which draws from its scores. Decoding is free: it happens on the client, after the release.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pdss_fl.bundled import find_installed
from pdss_fl.errors import SettingError
from pdss_fl.privacy import BLANK
from pdss_fl.slm.collator import encode_prompt
from pdss_fl.slm.decoder import DecodeRequest
from pdss_fl.slm.generation import generate
from pdss_fl.slm.model import SmallModel
from pdss_fl.slm.prompts import Prompt

BUILT_IN = "built-in"
"""The word that stands for the encoder-decoder that comes with this package, for the built-in set."""

SETTING = "encoder-decoder.model"
MANIFEST, WEIGHTS = "encoder_decoder.json", "model.safetensors"

TEMPLATE_WORDS = f"rewrite: rewritten: restore: released: rationale: question: choices: restored: ; {BLANK}"
"""What the prompts add to the words of the data."""

_ADAPTER = "adapter_config.json"  # with which transformers changes the weights that it reads
_FOLDER = Path("pdss_fl", "slm", "models", "everyday")
_CHUNK = 2**20


def encoder_prompt(words: Sequence[str]) -> Prompt:
    """Return ``rewrite: {words} rewritten:``; with no words it asks for what is written without a document.

    Filling words are among the words, so that each word of a document has its place in what is written.
    """
    return Prompt("rewrite:", " ".join(words), "rewritten:")


def decoder_prompt(request: DecodeRequest) -> Prompt:
    """Return the prompt for ``restored:``, from what was released and came back and the private question.

    If it is too long, what was released is cut first, never the private choices.
    """
    example = request.example
    released = " ; ".join((request.question, *request.choices))
    context = f"{example.context} " if example.context else ""
    choices = f"choices: {' ; '.join(example.choices)} " if example.choices else ""
    rationale = " ".join(request.rationale.split())
    body = f"released: {released} rationale: {rationale} question: {context}{example.question}"
    return Prompt("restore:", body, f"{choices}restored:")


class TrainedDecoder:
    """The trained model writes the rationale of the private question, in the released words; for every mechanism.

    ``align`` then puts the private words in their place.

    Parameters
    ----------
    slm : SmallModel
        From ``load_encoder_decoder``.
    max_new_tokens : int (default: 64)
        Longest decoded rationale.
    batch_size : int (default: 32)
        Requests at a time.
    """

    def __init__(self, slm: SmallModel, max_new_tokens: int = 64, batch_size: int = 32) -> None:
        self.slm, self.batch_size = slm, batch_size
        self.max_new_tokens = min(max_new_tokens, slm.max_tokens // 2)

    def decode(self, requests: Sequence[DecodeRequest]) -> list[str]:
        """Return the first line that the model writes for each request, greedily."""
        prompts = [encode_prompt(self.slm, decoder_prompt(r), self.max_new_tokens)[0] for r in requests]
        texts = generate(self.slm, prompts, self.max_new_tokens, self.batch_size)
        return [(text.strip().splitlines() or [""])[0].strip() for text in texts]


def load_encoder_decoder(model: str, setting: str = SETTING) -> SmallModel:
    """Read a trained encoder-decoder.

    Parameters
    ----------
    model : str
        ``built-in``, or a folder or the id in the local cache of what ``pdss train-encoder-decoder`` wrote.
    setting : str
        What an error names.

    Raises
    ------
    SettingError
        If it was not written by that command, so that nothing says it was trained on public data, or if its
        weights are others than its manifest says, also by an adapter beside them.
    """
    manifest, folder = manifest_of(model, setting)
    weights = folder / WEIGHTS
    adapted = (folder / _ADAPTER).exists()
    if adapted or not weights.is_file() or file_sha256(weights) != manifest.get("weights-sha256"):
        raise SettingError(
            f"{setting} = {model!r}: its weights are not those that its {MANIFEST} describes; train it again with "
            "`pdss train-encoder-decoder`"
        )
    try:
        return SmallModel.load(folder)
    except Exception as err:  # transformers has no common base for what a foreign folder can raise
        raise SettingError(f"{setting} = {model!r} cannot be read ({type(err).__name__})", str(err)) from None


def manifest_of(model: str, setting: str = SETTING) -> tuple[dict[str, Any], Path]:
    """Return what a trained model says of itself, and its folder; raises like ``load_encoder_decoder``."""
    try:
        if model == BUILT_IN:
            folder = find_installed(_FOLDER, MANIFEST, Path(__file__).parents[2])
            path = folder / MANIFEST if folder else None
        else:
            import transformers

            found = transformers.utils.hub.cached_file(model, MANIFEST, local_files_only=True)
            if not Path(model).is_dir():
                transformers.utils.hub.cached_file(model, WEIGHTS, local_files_only=True)
            path = Path(found) if found else None
        manifest = json.loads(path.read_text(encoding="utf-8")) if path else None
    except Exception:  # transformers has no common base for what a wrong id or folder can raise
        path = manifest = None
    if path is None or not isinstance(manifest, dict):
        raise SettingError(
            f"{setting} = {model!r} is no encoder-decoder: give {BUILT_IN!r}, or the folder or id of what "
            f"`pdss train-encoder-decoder` wrote, with its {MANIFEST}"
        )
    return manifest, path.parent


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
