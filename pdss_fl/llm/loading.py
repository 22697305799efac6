"""Find a causal LM, choose its number format and device, and load it."""

from __future__ import annotations

from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from torch.utils.benchmark import Timer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from pdss_fl.bundled import BUNDLED_MODEL, bundled_model_path
from pdss_fl.errors import LLMUnavailable, PdssError, SettingError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_causal_lm(
    model: str, dtype: str = "auto", device: str = "auto", rows: int = 1
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load model and tokenizer from safetensors weights, without running any code that comes with them.

    Parameters
    ----------
    model : str
        Hugging Face id, local folder, or ``smollm2-135m-instruct`` for the bundled one.
    dtype : str (default: "auto")
        ``float32``, ``bfloat16``, ``float16``, or ``auto`` for ``fastest_dtype``.
    device : str (default: "auto")
        A torch device; ``auto`` takes the GPUs where there are any, through ``accelerate``'s device map, else the
        CPU. No test has run on a GPU.
    rows : int (default: 1)
        Size of the batches to come, for ``fastest_dtype``.

    Raises
    ------
    SettingError
        If ``dtype`` is unknown or ``device`` is not there.
    LLMUnavailable
        If the model is neither local, nor cached, nor to be had from the hub, or is no causal LM
        with safetensors weights.
    """
    target = _device(device)
    number_format = _dtype(dtype, target, rows)
    try:
        folder = _folder(model)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        loaded = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=number_format,
            device_map="auto" if device == "auto" and target.type == "cuda" else str(target),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except PdssError:
        raise
    except Exception as error:  # the libraries below raise whatever a damaged folder leads to
        raise LLMUnavailable(
            f"llm.model = {model!r} cannot be loaded ({type(error).__name__}); name a causal LM with "
            "safetensors weights: a local folder, a Hugging Face id (run `hf download` first where there "
            f"is no network), or {BUNDLED_MODEL!r}",
            private=" ".join(str(error).split()),
        ) from None
    loaded.train(False)
    return loaded, tokenizer


def fastest_dtype(device: torch.device, rows: int) -> torch.dtype:
    """Return bfloat16 where a product of a decoding step of ``rows`` is clearly faster in it, else float32.

    Measured, since some processors only emulate bfloat16, and others are faster in it. Near a tie (less than
    1.3 times faster) float32 wins, whose results do not depend on how prompts are batched.
    """
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        states = torch.ones(rows, 1024, device=device, dtype=dtype)
        weight = torch.ones(2048, 1024, device=device, dtype=dtype)
        timer = Timer(
            "linear(states, weight)",
            globals={"linear": torch.nn.functional.linear, "states": states, "weight": weight},
            num_threads=torch.get_num_threads(),
        )
        timer.timeit(3)
        seconds[dtype] = min(timer.timeit(5).mean for _ in range(5))
    return torch.bfloat16 if 1.3 * seconds[torch.bfloat16] < seconds[torch.float32] else torch.float32


def _folder(model: str) -> Path:
    if model == BUNDLED_MODEL:
        return bundled_model_path()
    if Path(model).is_dir():
        return Path(model)
    if model.startswith(("/", ".", "~")) or model.count("/") > 1 or Path(model).exists():
        raise LLMUnavailable(
            f"llm.model = {model!r} cannot be loaded: it is a path, and no folder is there; correct the path, or name "
            f"a Hugging Face id or {BUNDLED_MODEL!r}"
        )
    # One call that gives up at once without a network; loading by id would try every file for a minute.
    weights_and_words = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
    return Path(snapshot_download(model, allow_patterns=weights_and_words, ignore_patterns=["*/*", "consolidated*"]))


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError):
        raise SettingError(f"device = {name!r} is not a device of this machine; use 'auto', 'cpu' or 'cuda'") from None


def _dtype(name: str, device: torch.device, rows: int) -> torch.dtype:
    if name == "auto":
        return fastest_dtype(device, rows)
    if name not in DTYPES:
        raise SettingError(f"llm.dtype = {name!r} is unknown; use 'auto', {', '.join(map(repr, DTYPES))}")
    return DTYPES[name]
