"""An error names settings that exist: whatever reads like ``llm.something`` in a text of this package is one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from pdss_fl.config import RunSettings

PACKAGE = Path(__file__).parent.parent / "pdss_fl"
NAME = re.compile(r"(?<![\w./-])(?:llm|privacy|data|slm|distill)\.[a-z][a-z-]*[a-z]\b(?![\w./(])")
FILES = {"privacy.json"}


def texts_of(path: Path) -> list[str]:
    """Return the texts of a module but for its docstrings, the fixed parts of a formatted one joined."""
    tree = ast.parse(path.read_text())
    apart = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    inner = {id(v) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for v in node.values}
    texts = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            texts.append("".join(v.value if isinstance(v, ast.Constant) else "{}" for v in node.values))  # type: ignore[misc]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in apart | inner:
            texts.append(node.value)
    return texts


def test_every_setting_that_a_text_names_is_one() -> None:
    known = {*RunSettings().flat(), *FILES}
    found = {(path.name, name) for path in PACKAGE.rglob("*.py") for t in texts_of(path) for name in NAME.findall(t)}
    assert len(found) > 50, "the pattern finds settings"
    assert {(path, name) for path, name in found if name not in known} == set()
