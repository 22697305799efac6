"""The run's settings: coerced and validated once, before any work.

They come from ``run_config``, which whoever submits the run chooses, so a client does not trust them:
its own ``NodePolicy`` bounds them. The defaults below are the only place where they are stated;
``[tool.flwr.app.config]`` repeats them because Flower refuses to override a key that is not there, and
a test keeps the two equal.
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
from pdss_fl.data_settings import BUILT_IN_DATA as BUILT_IN_DATA
from pdss_fl.data_settings import DataSettings
from pdss_fl.errors import SettingError
from pdss_fl.rules import A_WEEK, AT_LEAST_0, AT_LEAST_1, NOT_EMPTY, NOT_NEGATIVE, POSITIVE, checked, one_of, within
from pdss_fl.rules import setting as _setting
from pdss_fl.sharing_settings import SharingSettings, check_sharing

METHODS = ("untrained", "standalone", "pdss", "dss")
IDENTITY = "identity"
SCRATCH = "scratch"


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
class LLMSettings:
    """The large language model on the server's side (``llm.*``).

    ``channel``: how prompts reach it. ``relay``: in Flower's messages, through the strategy. ``direct``: each
    client sends its own to the LLM server (``backend = "grpc"``) at ``address``, with a token that the strategy
    hands out and that is good for ``token_lifetime`` seconds, a week at most; a node has to allow the address, and
    trusts its own CA only. ``root_certificates`` is the PEM file of the CA that the strategy trusts (empty: plain
    text, on loopback only, or anywhere with ``insecure``). What signs tokens, and the strategy's own certificate, are
    named in the ServerApp's environment, since every node receives these settings.

    From ``base_url`` on for ``backend = "openai"`` only, with ``model`` as the endpoint names it; ``insecure`` allows
    plain ``http`` off loopback there. A prompt that
    might lead beyond ``max_run_tokens`` (read and written) or ``max_run_cost`` (in the unit of the prices, which
    are for a million tokens) is not sent; 0 means no limit. There is no setting for the API key: see
    ``pdss_fl.llm.endpoint.api_key``.
    """

    backend: str = _setting("local", one_of("local", "grpc", "openai"))
    model: str = _setting(BUNDLED_MODEL, NOT_EMPTY)
    address: str = _setting("127.0.0.1:50061", NOT_EMPTY)
    channel: str = _setting("relay", one_of("relay", "direct"))
    root_certificates: str = _setting("")
    insecure: bool = _setting(False)
    token_lifetime: float = _setting(3600.0, A_WEEK)
    adapter: str = _setting("auto")
    instruction: str = _setting("")
    dtype: str = _setting("auto", one_of("auto", "float32", "bfloat16", "float16"))
    batch_size: int = _setting(128, AT_LEAST_1)
    max_new_tokens: int = _setting(40, within(1, 512))
    timeout: float = _setting(1800.0, POSITIVE)
    base_url: str = _setting("http://127.0.0.1:8000/v1", NOT_EMPTY)
    endpoint_form: str = _setting("chat", one_of("chat", "completion"))
    concurrency: int = _setting(16, within(1, 1024))
    max_run_tokens: int = _setting(10_000_000, AT_LEAST_0)
    max_run_cost: float = _setting(0.0, NOT_NEGATIVE)
    input_price: float = _setting(0.0, NOT_NEGATIVE)
    output_price: float = _setting(0.0, NOT_NEGATIVE)


@dataclass(frozen=True)
class SmallModelSettings:
    """The client's small language model (``slm.*``); the sizes are for ``scratch`` only."""

    model: str = _setting(SCRATCH, NOT_EMPTY)
    hidden_size: int = _setting(96, {"check": lambda v: v in range(32, 4097, 32), "expected": "32 to 4096, by 32"})
    layers: int = _setting(2, within(1, 64))
    max_tokens: int = _setting(192, within(16, 8192))


@dataclass(frozen=True)
class DistillSettings:
    """Decoding of rationales and training of the small model (``distill.*``).

    ``filter``: what becomes of a rationale whose answer contradicts the client's own label: ``drop`` leaves it
    out, ``correct`` keeps its reason with the right answer, ``off`` keeps it as it is. ``agree`` corrects and leaves
    out what the client's other rationales about the same thing outvote.
    """

    decoder: str = _setting("align", one_of("align", "in-context", "none"))
    filter: str = _setting("agree", one_of("off", "drop", "correct", "agree"))
    rationale_words: int = _setting(40, AT_LEAST_1)
    rationale_weight: float = _setting(0.85, {"check": lambda v: 0 <= v < 1, "expected": "in [0, 1)"})
    steps: int = _setting(900, AT_LEAST_1)
    batch_size: int = _setting(16, AT_LEAST_1)
    learning_rate: float = _setting(1.5e-3, POSITIVE)
    weight_decay: float = _setting(0.01, AT_LEAST_0)


@dataclass(frozen=True)
class RunSettings:
    """Everything that ``flwr run -c`` can change.

    ``quorum`` is the fewest clients that have to answer a step; ``distill_timeout`` also limits evaluation.
    ``tracking = "tensorboard"`` writes TensorBoard's files into the run directory. ``insecure_noise_seed`` makes a
    simulation's noise repeatable and is refused by deployed nodes. So is ``client_choices``: a TOML file with a table
    ``[client-0]`` for each simulated client that differs, with the keys by which a deployed node states its own choices
    (``pdss_fl.choices``).
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
    insecure_noise_seed: int = _setting(-1, {"check": lambda v: v >= -1, "expected": "-1 (off) or a seed"})
    client_choices: str = _setting("")
    privacy: PrivacySettings = field(default_factory=PrivacySettings)
    data: DataSettings = field(default_factory=DataSettings)
    llm: LLMSettings = field(default_factory=LLMSettings)
    slm: SmallModelSettings = field(default_factory=SmallModelSettings)
    distill: DistillSettings = field(default_factory=DistillSettings)
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
        _check_endpoint(settings.llm)
        check_sharing(settings.sharing, settings.distill.filter)
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


def _check_endpoint(llm: LLMSettings) -> None:
    if set("@?#") & set(llm.base_url):  # the value is not shown, since it may hold a secret
        raise SettingError(
            "llm.base-url may not carry a user name, password, query or fragment, since every node receives a "
            "run's settings: give https://HOST/PATH and put the key into the server's environment (PDSS_LLM_API_KEY)"
        )
    if llm.max_run_cost and not llm.input_price + llm.output_price:
        raise SettingError(
            f"llm.max-run-cost = {llm.max_run_cost!r} has no effect without prices: set llm.input-price and "
            "llm.output-price, each for a million tokens"
        )


_T = TypeVar("_T")
_GROUPS = {"privacy", "data", "llm", "slm", "distill", "sharing"}


def _key(name: str) -> str:
    return name.replace("_", "-")


def _flatten(settings: Any, prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for item in fields(settings):
        value = getattr(settings, item.name)
        if item.name in _GROUPS and not prefix:
            flat |= _flatten(value, f"{item.name}.")
        else:
            flat[prefix + _key(item.name)] = value
    return flat


def _load(cls: type[_T], config: Mapping[str, Any], prefix: str) -> _T:
    types = get_type_hints(cls)
    values: dict[str, Any] = {}
    for item in fields(cls):  # type: ignore[arg-type]
        key = prefix + _key(item.name)
        if item.name in _GROUPS and not prefix:
            values[item.name] = _load(types[item.name], config, f"{item.name}.")
        elif key in config:
            values[item.name] = checked(key, config[key], types[item.name], item.metadata)
    return cls(**values)
