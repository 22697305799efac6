"""The privacy boundary as imports: who can name whom, walked through every module of the package."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "pdss_fl"


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def imports_of(name: str) -> set[str]:
    """Every module that a file names in an import, at any depth of the file."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{name} imports relatively"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def reached_from(name: str) -> set[str]:
    """Every module that importing ``name`` can bring in, this package's own followed."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        if module in MODULES:
            waiting += imports_of(module)
    return seen


def below(*prefixes: str) -> list[str]:
    return sorted(m for m in MODULES if any(m == p or m.startswith(p + ".") for p in prefixes))


def test_the_walk_sees_imports() -> None:
    assert "pdss_fl.data.example" in reached_from("pdss_fl.client_app")
    assert "flwr.clientapp" in reached_from("pdss_fl.client_app")


@pytest.mark.parametrize("module", below("pdss_fl.privacy"))
def test_privacy_knows_numbers_and_tokens_only(module: str) -> None:
    allowed = {"pdss_fl", "pdss_fl.errors", *below("pdss_fl.privacy")}
    reached = reached_from(module)
    assert {m for m in reached if m in MODULES} <= allowed
    assert not {m for m in reached if m.split(".")[0] in ("flwr", "transformers", "grpc", "accelerate")}


@pytest.mark.parametrize("module", below("pdss_fl.slm", "pdss_fl.data"))
def test_models_and_data_know_neither_flower_nor_the_llm(module: str) -> None:
    reached = reached_from(module)
    assert not {m for m in reached if m.split(".")[0] in ("flwr", "grpc") or m.startswith("pdss_fl.llm")}


@pytest.mark.parametrize("module", ["pdss_fl.strategy", "pdss_fl.server_app", *below("pdss_fl.llm")])
def test_the_servers_side_cannot_name_client_data(module: str) -> None:
    forbidden = below("pdss_fl.data", "pdss_fl.slm", "pdss_fl.store", "pdss_fl.privacy", "pdss_fl.client")
    assert not reached_from(module) & set(forbidden)


def test_the_client_cannot_reach_the_server() -> None:
    reached = reached_from("pdss_fl.client_app")
    assert not reached & {"pdss_fl.strategy", "pdss_fl.server_app"}
    assert {m for m in reached if f"{m}.".startswith("pdss_fl.llm.") and m in MODULES} <= {
        "pdss_fl.llm",
        "pdss_fl.llm.remote",
        "pdss_fl.llm.protocol",
        "pdss_fl.llm.tls",
    }
