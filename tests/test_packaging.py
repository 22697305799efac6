"""The wheel: it builds, holds what is needed at run time, and works where only its dependencies are installed."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent


def run(*command: str | Path, folder: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT, folder=folder)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"pdss_fl", "pdss_fl-0.1.0.dist-info"}
    tracked = subprocess.run(["git", "ls-files", "pdss_fl"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {name for name in names if name.startswith("pdss_fl/")} == set(tracked.stdout.split())


def test_it_works_where_it_is_installed(wheel: Path, tmp_path: Path) -> None:
    """The environment is empty but for this one's packages, which stand in for a download of a gigabyte."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env", folder=tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    packages = Path(
        run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=tmp_path).strip()
    )
    pip = [sys.executable, "-m", "pip", "--quiet", "--python", python]
    run(*pip, "install", "--no-deps", "--no-index", wheel, folder=tmp_path)
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))  # its own .pth files are not read

    home = run(python, "-c", "import pdss_fl; print(pdss_fl.__file__)", folder=tmp_path)
    assert home.startswith(str(packages))
    pdss = tmp_path / "env" / "bin" / "pdss"
    assert "mechanism" in run(pdss, "--help", folder=tmp_path)
    assert "epsilon per document 21" in run(pdss, "privacy", folder=tmp_path)
    (tmp_path / "texts.txt").write_text("where does a robin live\n")
    options = ("--mechanism", "staircase", "--language-words", "0", "--output", "audit.html")
    run(pdss, "audit", "--data", "texts.txt", *options, folder=tmp_path)
    assert (tmp_path / "audit.html").stat().st_size > 10_000, "the page's template came along"


def third_party(tree: ast.Module) -> set[str]:
    """Every top-level module of another project that a file imports, at any depth of the file."""
    found = set()
    for item in ast.walk(tree):
        if isinstance(item, ast.Import):
            found |= {alias.name.split(".")[0] for alias in item.names}
        elif isinstance(item, ast.ImportFrom) and item.module:
            found.add(item.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"pdss_fl"}


def declared(lines: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in lines}


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NEEDED = declared(PROJECT["project"]["dependencies"])
FILES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in sorted((ROOT / "pdss_fl").rglob("*.py"))}


def test_what_is_imported_is_a_requirement_or_of_the_extra_that_the_error_names() -> None:
    """The environment of the other test has this one's packages, so that it cannot lack one."""
    distributions = packages_distributions()
    undeclared, by_extra = [], set()
    for name, text in FILES.items():
        extras = set(re.findall(r"pip install 'pdss-fl\[([a-z-]+)\]'", text))
        for module in third_party(ast.parse(text)):
            owners = {canonicalize_name(owner) for owner in distributions[module]}
            offered = {
                extra for extra in extras if owners & declared(PROJECT["project"]["optional-dependencies"][extra])
            }
            by_extra |= offered
            if not (owners & NEEDED or offered):
                undeclared.append(f"{name}: {module}")
    assert not undeclared
    assert by_extra == {"datasets", "dp-sgd"}, "the walk sees what is imported late"


def test_no_requirement_is_downloaded_for_a_run() -> None:
    assert declared(PROJECT["tool"]["uv"]["override-dependencies"]) == {*NEEDED, "ray"}
