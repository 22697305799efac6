"""The example of a third party's package: installed as pip does it, found by its name, and proven with the kit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pdss_fl.launcher import run_simulation

EXAMPLE = Path(__file__).parent.parent / "examples" / "custom_mechanism"

USE = """
import math, torch
from pdss_fl.privacy import Vocabulary, available_mechanisms, create_mechanism
from pdss_fl.privacy.audit import exact_epsilon

assert "two-rings" in available_mechanisms()
rows = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
vocabulary = Vocabulary([f"w{i}" for i in range(30)], rows, blanks=0)
mechanism = create_mechanism("two-rings", vocabulary, epsilon=4.0, neighbours=3)
matrix = mechanism.log_prob()
assert abs(exact_epsilon(matrix) - 4.0) < 1e-9
levels = sorted({round(level, 6) for level in (matrix - matrix.min()).flatten().tolist()})
assert levels == [0.0, 2.0, 4.0], levels
assert abs(float(matrix.min().exp()) - 1 / (3 * math.exp(4) + 6 * math.exp(2) + 21)) < 1e-12
print(type(mechanism).__module__, mechanism.parameters)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed package; built from a copy, without the network."""
    folder = tmp_path_factory.mktemp("custom")
    shutil.copytree(EXAMPLE, folder / "source", ignore=shutil.ignore_patterns("*.egg-info", "build", "__pycache__"))
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", *offline]
    subprocess.run([*command, "--target", folder / "site", folder / "source"], check=True, timeout=240)
    return folder / "site"


def python(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run this interpreter with the package in its path, away from the example's own folder."""
    path = os.pathsep.join([str(site), str(EXAMPLE.parent.parent)])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=site, env=environment, capture_output=True, text=True, timeout=240)


def test_it_is_found_through_its_entry_point_and_has_its_epsilon(site: Path) -> None:
    used = python(site, "-c", USE)
    assert used.returncode == 0, used.stderr
    assert used.stdout.split() == ["pdss_two_rings", "epsilon=4", "neighbours=3", "vocabulary=30"]


def test_its_own_test_passes_against_the_installed_package(site: Path) -> None:
    tests = str(EXAMPLE / "tests")
    ran = python(site, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tests, "-c", os.devnull, tests)
    assert ran.returncode == 0, ran.stdout
    assert "4 passed" in ran.stdout


def test_it_runs_under_flower_by_its_name(
    site: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(site))
    settings = [
        'privacy.mechanism="two-rings"', "privacy.epsilon=5.0", "privacy.neighbours=2", 'methods="pdss"',
        f'output-dir="{tmp_path / "runs"}"', f'llm.model="{tiny}"', f'privacy.embeddings="{tiny}"',
        "data.train-examples=6", "data.test-examples=2", "slm.hidden-size=32", "slm.layers=1", "distill.steps=2",
        "llm.max-new-tokens=4",
    ]  # fmt: skip
    run = run_simulation(EXAMPLE.parent.parent, settings, clients=1, home=tmp_path / "flwr")
    privacy = json.loads((run / "summary.json").read_text())["privacy"]
    assert (privacy["mechanism"], privacy["kind"]) == ("two-rings", "pure-ldp")
    assert privacy["parameters"] == "epsilon=5 neighbours=2 vocabulary=838"
    assert privacy["epsilon_per_token"] == 5.0
    assert privacy["epsilon_per_document"] == 15.0
    ledger = (run / "clients" / "client-0" / "ledger.jsonl").read_text()
    assert "two-rings epsilon=5 neighbours=2" in ledger, "what was charged names the mechanism"


def test_its_source_is_short_and_the_readme_says_how_to_use_it() -> None:
    assert len((EXAMPLE / "pdss_two_rings.py").read_text().splitlines()) <= 45
    readme = (EXAMPLE / "README.md").read_text()
    for command in ("pip install", "pytest examples/custom_mechanism", "privacy.mechanism='two-rings'"):
        assert command in readme
