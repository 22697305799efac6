"""Experiments small enough for a test: a few questions, tiny models, no adapter and no filter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def small(tiny: Path, data: Path) -> dict[str, Any]:
    """Return run-config keys of a cell that takes a second."""
    return {
        "data.source": "jsonl", "data.path": str(data), "data.train-examples": 8, "data.test-examples": 3,
        "privacy.vocabulary": "english", "privacy.vocabulary-size": 300, "privacy.embeddings": str(tiny),
        "llm.model": str(tiny), "llm.max-new-tokens": 4, "slm.hidden-size": 32, "slm.layers": 1, "distill.steps": 2,
        "distill.batch-size": 4, "distill.filter": "off", "distill.decoder": "none",
    }  # fmt: skip


def questions(folder: Path) -> Path:
    """Write twelve questions with two choices and rationales to a file."""
    rows = [
        {"question": f"what is {w}", "choices": ["man", "time"], "answer": "man", "rationale": f"{w} is a man"}
        for w in ["one", "two", "who", "she", "they", "when", "our", "all", "more", "new", "people", "year"]
    ]
    path = folder / "data.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path
