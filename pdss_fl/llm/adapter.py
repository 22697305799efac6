"""LoRA adapters for the LLM: which one a run means, and merging it into the weights after loading.

An adapter belongs to the LLM's operator and was trained on public text, so it is no concern of the
privacy mechanism: the adapted LLM sees perturbed prompts like any other.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from transformers import PreTrainedModel

from pdss_fl.bundled import BUNDLED_MODEL, find_installed
from pdss_fl.errors import LLMUnavailable

AUTO = "auto"
BUILT_IN = "everyday"
"""The word that stands for the adapter that comes with this package, for the bundled LLM."""

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"

_FOLDER = Path("pdss_fl", "llm", "adapters", BUILT_IN)


def choose_adapter(adapter: str, model: str) -> str:
    """Return which adapter ``llm.adapter`` means for ``llm.model``.

    ``auto`` is the built-in one for the bundled LLM and none for every other; all else stands as it is.
    """
    if adapter != AUTO:
        return adapter
    return BUILT_IN if model == BUNDLED_MODEL else ""


def apply_adapter(model: PreTrainedModel, adapter: str) -> PreTrainedModel:
    """Merge a LoRA adapter into a model's weights, so that it then decodes as fast as without.

    Parameters
    ----------
    model : PreTrainedModel
        The loaded LLM; its weights are changed in place.
    adapter : str
        Empty for none, ``everyday`` for the built-in one, else a folder with
        ``adapter_model.safetensors`` and ``adapter_config.json`` as ``peft`` writes them.

    Returns
    -------
    PreTrainedModel
        The model with the adapter's weights added to its own, in its number format.

    Raises
    ------
    LLMUnavailable
        If the adapter is not there, cannot be read, or was made for a model with other layers.
    """
    if not adapter:
        return model
    folder = _built_in_folder() if adapter == BUILT_IN else Path(adapter)
    if not all((folder / name).is_file() for name in (WEIGHTS, CONFIG)):
        raise LLMUnavailable(
            f"llm.adapter = {adapter!r} is no adapter: name a folder with {WEIGHTS} and {CONFIG}, "
            f"{BUILT_IN!r} for the built-in one, or nothing for the LLM as it is"
        )
    try:
        return _merge(model, folder)
    except Exception as error:  # peft and torch raise whatever a foreign or damaged file leads to
        raise LLMUnavailable(
            f"llm.adapter = {adapter!r} does not fit llm.model ({type(error).__name__}); name an adapter that "
            "was trained for this model, or nothing for the LLM as it is",
            private=" ".join(str(error).split()),
        ) from None


def _merge(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    with warnings.catch_warnings():  # about peft's own use of transformers, and what is raised below
        warnings.simplefilter("ignore")
        adapted = PeftModel.from_pretrained(model, folder, torch_device=str(model.device))
    with safe_open(folder / WEIGHTS, framework="pt") as weights:
        # peft loads what fits and passes over the rest.
        foreign = set(weights.keys()) ^ set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    if foreign:
        raise ValueError(f"{len(foreign)} tensors of the adapter and of the model have no counterpart")
    merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
    merged.train(False)
    return merged


def _built_in_folder() -> Path:
    found = find_installed(_FOLDER, WEIGHTS, Path(__file__).parents[2])
    if found is not None:
        return found
    raise LLMUnavailable(
        f"llm.adapter: the built-in adapter {BUILT_IN!r} is not beside the package; install pdss-fl in the "
        "environment that runs the server (`make setup`, or `pip install pdss-fl`), or set llm.adapter to "
        "nothing for the LLM as it is"
    )
