"""Files that are whole or not there, whatever happens to the process that writes them."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file's content so that a reader sees the old or the new one, also after a crash."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_privately(path: Path, content: str) -> None:
    """Replace a file's content by a text that its owner alone may read."""
    with open(path, "w", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        path.chmod(0o600)
        file.write(content)
