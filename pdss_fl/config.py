"""The run's settings: coerced and validated once, before any work.

They come from ``run_config``, which whoever submits the run chooses, so a client does not trust them:
its own ``NodePolicy`` bounds them. The defaults here and in the ``*_settings`` modules are the only place where they
are stated; ``[tool.flwr.app.config]`` repeats them because Flower refuses to override a key that is not there, and a
test keeps the two equal.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from platformdirs import user_data_path

from pdss_fl.bundled import BUNDLED_MODEL
from pdss_fl.data_settings import BUILT_IN_DATA, DataSettings
from pdss_fl.errors import SettingError
from pdss_fl.llm_settings import LLMSettings, check_endpoint
from pdss_fl.rules import AT_LEAST_0, AT_LEAST_1, NOT_EMPTY, POSITIVE, checked, one_of, within
from pdss_fl.rules import setting as _setting
from pdss_fl.sharing_settings import SharingSettings, check_sharing

METHODS = ("untrained", "standalone", "pdss", "dss")
IDENTITY = "identity"
SCRATCH = "scratch"
BUILT_IN_MODEL = "built-in"
METRICS_LEVELS = ("none", "noisy", "full")  # from the least that is told of right answers to the most

_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9-]*")


def _plain_value(text: str) -> bool | int | float | str | None:
    """Return the value that a text stands for: no path, address or list can be one; ``None`` if it is none."""
    if text in ("true", "false"):
        return text == "true"
    try:
        number = float(text)
    except ValueError:
        return text if _WORD.fullmatch(text) else None
    if not math.isfinite(number):
        return None
    return int(text) if re.fullmatch(r"[+-]?\d+", text) else number


@dataclass(frozen=True)
class PrivacySettings:
    """How prompts are perturbed (``privacy.*``); the units are words and nats.

    The default is a nearest-set staircase over three content words of a question: at one epsilon for the whole
    prompt few words keep more each, and for the built-in set they say what the LLM has to know. (One word would
    keep more still, but whoever needs only that can ask the LLM for all words of a public vocabulary and send
    nothing private at all.) Other data needs more words (``question-words``, ``choices``). What the default
    means for a word and for a whole prompt, and how often the best attack that knows the corpus's word
    frequencies names the word behind a released one, is printed by ``pdss privacy``.

    ``parameters`` are the mechanism's own, as ``"name=value name=value"``; ``embeddings`` also names the model that
    scores the next word for ``contextual``.
    """

    mechanism: str = _setting("staircase", NOT_EMPTY)
    epsilon: float = _setting(7.0, POSITIVE)
    neighbours: int = _setting(6, AT_LEAST_1)
    delta: float = _setting(1e-5, {"check": lambda v: 0 <= v <= 1e-3, "expected": "0 to 0.001"})
    vocabulary: str = _setting("everyday", one_of("everyday", "english"))
    vocabulary_size: int = _setting(830, within(2, 50_000))
    embeddings: str = _setting(BUNDLED_MODEL, NOT_EMPTY)
    length: str = _setting("fixed", one_of("fixed", "bucket", "exact"))
    words: str = _setting("content", one_of("all", "content"))
    question_words: int = _setting(3, within(1, 512))
    choice_words: int = _setting(1, within(1, 128))
    choices: int = _setting(0, within(0, 26))
    parameters: str = _setting("")

    @property
    def mechanism_parameters(self) -> dict[str, bool | int | float | str]:
        """``parameters`` by name; raises ``SettingError`` for what is not ``name=value`` with a plain value."""
        found: dict[str, bool | int | float | str] = {}
        for item in self.parameters.split():
            name, _, text = item.partition("=")
            value = _plain_value(text)
            if not _NAME.fullmatch(name) or value is None or name.replace("-", "_") in found:
                raise SettingError(
                    f"privacy.parameters = {self.parameters!r}: {item!r} is not one name=value, each name once, with "
                    "a finite number, true, false or a word of letters, digits and hyphens for the value"
                )
            found[name.replace("-", "_")] = value
        return found


@dataclass(frozen=True)
class SmallModelSettings:
    """The client's small language model (``slm.*``).

    The sizes are for ``scratch`` only, ``dtype`` and ``lora_rank`` for pretrained models: at 0 all weights are trained.
    """

    model: str = _setting(SCRATCH, NOT_EMPTY)
    hidden_size: int = _setting(96, {"check": lambda v: v in range(32, 4097, 32), "expected": "32 to 4096, by 32"})
    layers: int = _setting(2, within(1, 64))
    max_tokens: int = _setting(192, within(16, 8192))
    dtype: str = _setting("float32", one_of("float32", "bfloat16"))
    lora_rank: int = _setting(0, within(0, 512))


@dataclass(frozen=True)
class DistillSettings:
    """Decoding of rationales and training of the small model (``distill.*``).

    ``filter``: what becomes of a rationale whose answer contradicts the client's own label: ``drop`` leaves it
    out, ``correct`` keeps its reason with the right answer, ``off`` keeps it as it is. ``agree`` corrects and leaves
    out what the client's other rationales about the same thing outvote.
    """

    decoder: str = _setting("align", one_of("align", "in-context", "trained", "none"))
    filter: str = _setting("agree", one_of("off", "drop", "correct", "agree"))
    rationale_words: int = _setting(40, AT_LEAST_1)
    rationale_weight: float = _setting(0.85, {"check": lambda v: 0 <= v < 1, "expected": "in [0, 1)"})
    steps: int = _setting(900, AT_LEAST_1)
    batch_size: int = _setting(16, AT_LEAST_1)
    learning_rate: float = _setting(1.5e-3, POSITIVE)
    weight_decay: float = _setting(0.01, AT_LEAST_0)


@dataclass(frozen=True)
class EncoderDecoderSettings:
    """The trained model behind the ``encoder-*`` mechanisms and the decoder ``trained`` (``encoder-decoder.*``).

    ``model``: ``built-in``, which knows the built-in set, or what ``pdss train-encoder-decoder`` wrote.
    """

    model: str = _setting(BUILT_IN_MODEL, NOT_EMPTY)


@dataclass(frozen=True)
class RunSettings:
    """Everything that ``flwr run -c`` can change.

    ``quorum`` is the fewest clients that have to answer a step; ``distill_timeout`` also limits evaluation.
    ``tracking = "tensorboard"`` writes TensorBoard's files into the run directory.
    ``resume`` goes on with the last unfinished run of equal settings below ``output_dir``. ``metrics`` is the most
    that clients are asked to report, ``metrics_epsilon`` what a noisy count spends (``pdss_fl.evaluation``).
    ``insecure_noise_seed`` makes a simulation's noise repeatable and is refused by deployed nodes. So is
    ``client_choices``: a TOML file with a table ``[client-0]`` for each simulated client that differs, with the keys
    by which a deployed node states its own choices (``pdss_fl.choices``).
    """

    num_server_rounds: int = _setting(1, AT_LEAST_1)
    methods: str = _setting(" ".join(METHODS), NOT_EMPTY)
    min_available_nodes: int = _setting(2, AT_LEAST_1)
    fraction_train: float = _setting(1.0, {"check": lambda v: 0 < v <= 1, "expected": "in (0, 1]"})
    quorum: int = _setting(1, AT_LEAST_1)
    perturb_timeout: float = _setting(600.0, POSITIVE)
    distill_timeout: float = _setting(3600.0, POSITIVE)
    output_dir: str = _setting("")
    tracking: str = _setting("off", one_of("off", "tensorboard"))
    seed: int = _setting(0, AT_LEAST_0)
    resume: bool = _setting(False)
    metrics: str = _setting("full", one_of(*METRICS_LEVELS))
    metrics_epsilon: float = _setting(1.0, within(0.01, 100.0))
    insecure_noise_seed: int = _setting(-1, {"check": lambda v: v >= -1, "expected": "-1 (off) or a seed"})
    client_choices: str = _setting("")
    privacy: PrivacySettings = field(default_factory=PrivacySettings)
    data: DataSettings = field(default_factory=DataSettings)
    llm: LLMSettings = field(default_factory=LLMSettings)
    slm: SmallModelSettings = field(default_factory=SmallModelSettings)
    distill: DistillSettings = field(default_factory=DistillSettings)
    encoder_decoder: EncoderDecoderSettings = field(default_factory=EncoderDecoderSettings)
    sharing: SharingSettings = field(default_factory=SharingSettings)

    @classmethod
    def from_run_config(cls, run_config: Mapping[str, Any]) -> RunSettings:
        """Coerce and check Flower's flat ``run_config``; keys of other apps are left alone.

        Raises
        ------
        SettingError
            Naming the setting, the value found and what is expected.
        """
        settings = _load(cls, run_config, "")
        check_endpoint(settings.llm)
        check_sharing(settings.sharing, settings.distill.filter, settings.slm.dtype, settings.num_server_rounds)
        unknown = sorted(set(settings.method_names) - set(METHODS))
        if unknown or not settings.method_names:
            raise SettingError(f"methods = {settings.methods!r}: expected words out of {', '.join(METHODS)}")
        paths = {"output-dir": settings.output_dir, "client-choices": settings.client_choices}
        paths |= {"data.path": "" if settings.data.source == "datasets" else settings.data.path}
        paths |= {"llm.instruction": settings.llm.instruction, "llm.root-certificates": settings.llm.root_certificates}
        for key, path in paths.items():
            if path and not Path(path).is_absolute():
                raise SettingError(
                    f"{key} = {path!r} is relative, and Flower runs apps in a directory of its own: "
                    "give an absolute path"
                )
        if settings.distill.decoder == "in-context" and settings.slm.model == SCRATCH:
            raise SettingError(
                "distill.decoder = 'in-context' needs a pretrained slm.model; found 'scratch': use 'align' or name one"
            )
        _ = settings.privacy.mechanism_parameters  # refuses what cannot be read
        if settings.llm.channel == "direct" and settings.llm.backend != "grpc":
            raise SettingError(
                f"llm.channel = 'direct' needs an LLM server; found llm.backend = {settings.llm.backend!r}: set it to "
                "'grpc' and llm.address to a `pdss serve` that clients reach"
            )
        if settings.data.source == BUILT_IN_DATA and settings.data.path:
            raise SettingError(
                "data.path is set but data.source is 'everyday': set data.source to 'jsonl', 'csv' or 'datasets'"
            )
        return settings

    def flat(self) -> dict[str, str | int | float | bool]:
        """Return every key of ``run_config`` with its value, in Flower's flat form."""
        return _flatten(self, "")

    def run_directory(self, run_id: int) -> Path:
        """Return where the run's results are written, on the server and by simulated clients."""
        base = Path(self.output_dir) if self.output_dir else user_data_path("pdss-fl") / "runs"
        return base / f"run-{run_id}"

    @property
    def method_names(self) -> tuple[str, ...]:
        """The methods to compare, in the order in which they run."""
        asked = self.methods.replace(",", " ").split()
        return tuple(m for m in METHODS if m in asked) + tuple(m for m in asked if m not in METHODS)


_T = TypeVar("_T")
_GROUPS = {"privacy", "data", "llm", "slm", "distill", "encoder_decoder", "sharing"}


def _key(name: str) -> str:
    return name.replace("_", "-")


def _flatten(settings: Any, prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for item in fields(settings):
        value = getattr(settings, item.name)
        if item.name in _GROUPS and not prefix:
            flat |= _flatten(value, f"{_key(item.name)}.")
        else:
            flat[prefix + _key(item.name)] = value
    return flat


def _load(cls: type[_T], config: Mapping[str, Any], prefix: str) -> _T:
    types = get_type_hints(cls)
    values: dict[str, Any] = {}
    for item in fields(cls):  # type: ignore[arg-type]
        key = prefix + _key(item.name)
        if item.name in _GROUPS and not prefix:
            values[item.name] = _load(types[item.name], config, f"{key}.")
        elif key in config:
            values[item.name] = checked(key, config[key], types[item.name], item.metadata)
    return cls(**values)
