"""What a trained encoder-decoder says of itself: a manifest for programs, and a model card for people."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pdss_fl.data.public import PublicExample, require_public
from pdss_fl.slm.encoder_decoder import MANIFEST, WEIGHTS, file_sha256

_CARD = """---
library_name: transformers
tags: [pdss-fl, encoder-decoder]
---
# Encoder-decoder of pdss-fl

A small language model with two prompt families: it rewrites the words of a prompt, and it restores the rationale that
an LLM wrote of the rewritten prompt. `pdss train-encoder-decoder` wrote it; `encoder-decoder.model` takes it.

**Trained on public data only; no private data was used.** The public prompts are the declared ones below, and in
training also synthetic ones in which a word is another word of the public vocabulary.

| what | value |
| --- | --- |
{rows}

The encoder's own output has no privacy guarantee. Whatever leaves a client gets its guarantee from the mechanism that
draws from the encoder's scores.
"""


def describe(public: Sequence[PublicExample], **facts: Any) -> dict[str, Any]:
    """Return a manifest: the public data by count and hash, and further facts of the training, no path among them."""
    require_public(public)
    keys = sorted(p.example.key for p in public)
    return {
        "public-examples": dict(sorted(Counter(p.source for p in public).items())),
        "public-sha256": hashlib.sha256(json.dumps(keys).encode()).hexdigest(),
        "private-examples": 0,
        **facts,
    }


def write_card(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest, with the hash of the weights that lie beside it, and the card."""
    whole = {**manifest, "weights-sha256": file_sha256(folder / WEIGHTS)}
    (folder / MANIFEST).write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    rows = "\n".join(f"| {name} | {_shown(value)} |" for name, value in whole.items())
    (folder / "README.md").write_text(_CARD.format(rows=rows), encoding="utf-8")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {number}" for name, number in value.items())
    return f"`{value}`" if isinstance(value, str) else str(value)
