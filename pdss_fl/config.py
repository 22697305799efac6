"""The run's settings and the node's policy: coerced and validated once, before any work.

``RunSettings`` comes from ``run_config``, which whoever submits the run chooses, so a client does not
trust it. ``NodePolicy`` comes from the node's own ``node_config`` (or a file that it names) and bounds
what a run may ask of that client. The defaults below are the only place where they are stated;
``[tool.flwr.app.config]`` repeats them because Flower refuses to override a key that is not there, and
a test keeps the two equal.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from platformdirs import user_data_path

from pdss_fl.errors import PolicyRefusal, SettingError

METHODS = ("untrained", "standalone", "pdss", "dss")
IDENTITY = "identity"
BUILT_IN_DATA = "everyday"
SCRATCH = "scratch"


def _one_of(*values: str) -> Any:
    return {"check": lambda v: v in values, "expected": "one of " + ", ".join(values)}


_AT_LEAST_1 = {"check": lambda v: v >= 1, "expected": "at least 1"}
_AT_LEAST_0 = {"check": lambda v: v >= 0, "expected": "at least 0"}
_POSITIVE = {"check": lambda v: math.isfinite(v) and v > 0, "expected": "a finite number above 0"}
_NOT_EMPTY = {"check": lambda v: bool(v.strip()), "expected": "not empty"}


def _setting(default: Any, rule: Mapping[str, Any] | None = None) -> Any:
    return field(default=default, metadata=rule or {})


@dataclass(frozen=True)
class PrivacySettings:
    """How prompts are perturbed (``privacy.*``); the units are words and nats.

    The default is a nearest-set staircase. What it means for a word and for a whole prompt, and how
    often the best attack that knows the corpus's word frequencies names the word behind a released
    one, is printed by ``pdss privacy`` and by every run.
    """

    mechanism: str = _setting("staircase", _NOT_EMPTY)
    epsilon: float = _setting(8.0, _POSITIVE)
    neighbours: int = _setting(3, _AT_LEAST_1)
    delta: float = _setting(1e-5, {"check": lambda v: 0 <= v < 1, "expected": "in [0, 1)"})
    vocabulary: str = _setting("everyday", _one_of("everyday", "english"))
    vocabulary_size: int = _setting(1200, {"check": lambda v: 2 <= v <= 50_000, "expected": "2 to 50000"})
    embeddings: str = _setting("smollm2-135m-instruct", _NOT_EMPTY)
    length: str = _setting("bucket", _one_of("fixed", "bucket", "exact"))
    question_words: int = _setting(12, _AT_LEAST_1)
    choice_words: int = _setting(2, _AT_LEAST_1)
    choices: int = _setting(4, _AT_LEAST_0)


@dataclass(frozen=True)
class DataSettings:
    """Where examples come from (``data.*``); a node's own ``data-path`` outranks ``path``.

    ``partition`` divides a JSONL file among simulated clients; the built-in set is divided by the things
    that its questions are about.
    """

    source: str = _setting(BUILT_IN_DATA, _one_of(BUILT_IN_DATA, "jsonl"))
    path: str = _setting("")
    partition: str = _setting("iid", _one_of("iid", "file"))
    train_examples: int = _setting(360, _AT_LEAST_1)
    test_examples: int = _setting(120, _AT_LEAST_1)
    public_choices: bool = _setting(False)


@dataclass(frozen=True)
class LLMSettings:
    """The large language model on the server's side (``llm.*``)."""

    backend: str = _setting("local", _one_of("local", "grpc"))
    model: str = _setting("smollm2-135m-instruct", _NOT_EMPTY)
    address: str = _setting("127.0.0.1:50061", _NOT_EMPTY)
    instruction: str = _setting("")
    dtype: str = _setting("auto", _one_of("auto", "float32", "bfloat16", "float16"))
    batch_size: int = _setting(32, _AT_LEAST_1)
    max_new_tokens: int = _setting(40, _AT_LEAST_1)
    timeout: float = _setting(1800.0, _POSITIVE)


@dataclass(frozen=True)
class SmallModelSettings:
    """The client's small language model (``slm.*``); the sizes are for ``scratch`` only."""

    model: str = _setting(SCRATCH, _NOT_EMPTY)
    hidden_size: int = _setting(96, {"check": lambda v: v > 0 and v % 32 == 0, "expected": "a multiple of 32"})
    layers: int = _setting(2, _AT_LEAST_1)
    max_tokens: int = _setting(192, {"check": lambda v: v >= 16, "expected": "at least 16"})


@dataclass(frozen=True)
class DistillSettings:
    """Decoding of rationales and training of the small model (``distill.*``)."""

    decoder: str = _setting("align", _one_of("align", "in-context", "none"))
    filter: str = _setting("correct", _one_of("off", "drop", "correct"))
    rationale_words: int = _setting(40, _AT_LEAST_1)
    rationale_weight: float = _setting(0.5, {"check": lambda v: 0 <= v < 1, "expected": "in [0, 1)"})
    steps: int = _setting(900, _AT_LEAST_1)
    batch_size: int = _setting(16, _AT_LEAST_1)
    learning_rate: float = _setting(1.5e-3, _POSITIVE)
    weight_decay: float = _setting(0.01, _AT_LEAST_0)


@dataclass(frozen=True)
class RunSettings:
    """Everything that ``flwr run -c`` can change; see the README's table for the meanings."""

    num_server_rounds: int = _setting(1, _AT_LEAST_1)
    methods: str = _setting(" ".join(METHODS), _NOT_EMPTY)
    min_available_nodes: int = _setting(2, _AT_LEAST_1)
    fraction_train: float = _setting(1.0, {"check": lambda v: 0 < v <= 1, "expected": "in (0, 1]"})
    quorum: int = _setting(1, _AT_LEAST_1)
    perturb_timeout: float = _setting(600.0, _POSITIVE)
    distill_timeout: float = _setting(3600.0, _POSITIVE)
    output_dir: str = _setting("")
    seed: int = _setting(0, _AT_LEAST_0)
    insecure_noise_seed: int = _setting(-1, {"check": lambda v: v >= -1, "expected": "-1 (off) or a seed"})
    privacy: PrivacySettings = field(default_factory=PrivacySettings)
    data: DataSettings = field(default_factory=DataSettings)
    llm: LLMSettings = field(default_factory=LLMSettings)
    slm: SmallModelSettings = field(default_factory=SmallModelSettings)
    distill: DistillSettings = field(default_factory=DistillSettings)

    @classmethod
    def from_run_config(cls, run_config: Mapping[str, Any]) -> RunSettings:
        """Coerce and check Flower's flat ``run_config``; keys of other apps are left alone.

        Raises
        ------
        SettingError
            Naming the setting, the value found and what is expected.
        """
        settings = _load(cls, run_config, "")
        unknown = sorted(set(settings.method_names) - set(METHODS))
        if unknown or not settings.method_names:
            raise SettingError(f"methods = {settings.methods!r}: expected words out of {', '.join(METHODS)}")
        if settings.output_dir and not Path(settings.output_dir).is_absolute():
            raise SettingError(
                f"output-dir = {settings.output_dir!r} is relative, and Flower runs apps in a directory of its "
                "own: give an absolute path"
            )
        if settings.data.source == BUILT_IN_DATA and settings.data.path:
            raise SettingError("data.path is set but data.source is 'everyday': set data.source to 'jsonl'")
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
_GROUPS = {"privacy", "data", "llm", "slm", "distill"}


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
            values[item.name] = _checked(key, config[key], types[item.name], item.metadata)
    return cls(**values)


def _checked(key: str, value: Any, kind: type, rule: Mapping[str, Any]) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)  # Flower keeps `privacy.epsilon=1` an int
    if type(value) is not kind:
        raise SettingError(f"{key} = {value!r} is of type {type(value).__name__}; expected {kind.__name__}")
    if rule and not rule["check"](value):
        raise SettingError(f"{key} = {value!r} is out of range; expected {rule['expected']}")
    return value


@dataclass(frozen=True)
class NodePolicy:
    """What one client allows any run to ask of it; see ``from_node_config`` for the keys.

    ``max_epsilon_per_example`` bounds what an example spends over all runs. A mechanism of kind
    ``none`` runs only if ``allowed_mechanisms`` names it; the empty tuple allows every mechanism that
    has a guarantee. ``allowed_models`` bounds ``slm.model`` and ``privacy.embeddings``.
    """

    state_dir: Path
    data_path: Path | None
    max_epsilon_per_token: float
    max_epsilon_per_example: float
    allowed_mechanisms: tuple[str, ...] = ()
    allowed_models: tuple[str, ...] = (SCRATCH, "smollm2-135m-instruct")
    metrics: str = "full"
    simulated: bool = False

    @classmethod
    def from_node_config(cls, node_config: Mapping[str, Any]) -> NodePolicy:
        """Read a deployed node's policy.

        Keys: ``state-dir``, ``data-path``, ``max-epsilon-per-token``, ``max-epsilon-per-example``
        (all four needed), ``allowed-mechanisms`` and ``allowed-models`` (words separated by spaces or
        commas), ``metrics`` (``full`` or ``none``), and ``policy``: a TOML file with the same keys,
        which ``node_config`` itself outranks.

        Raises
        ------
        SettingError
            If one of the four is missing or a value is out of range.
        """
        config = _with_policy_file(node_config)
        missing = [k for k in _REQUIRED if k not in config]
        if missing:
            raise SettingError(
                f"this SuperNode has no {', '.join(missing)}: start it with --node-config "
                '\'state-dir="/abs/dir" data-path="/abs/data.jsonl" max-epsilon-per-token=8.0 '
                'max-epsilon-per-example=200.0\' or name a file with policy="/abs/policy.toml"'
            )
        metrics = config.get("metrics", "full")
        return cls(
            state_dir=_absolute(config, "state-dir"),
            data_path=_absolute(config, "data-path"),
            max_epsilon_per_token=_checked_limit(config, "max-epsilon-per-token"),
            max_epsilon_per_example=_checked_limit(config, "max-epsilon-per-example"),
            allowed_mechanisms=_words(config.get("allowed-mechanisms", "")),
            allowed_models=_words(config.get("allowed-models", " ".join(cls.allowed_models))),
            metrics=_checked("metrics", metrics, str, _one_of("full", "none")),
        )

    @classmethod
    def simulation(cls, state_dir: Path, settings: RunSettings) -> NodePolicy:
        """Return the policy of a simulated client, whose data already is on the submitter's machine.

        It allows any epsilon, any model and the run's data path; mechanisms without a guarantee are
        allowed on the built-in public data only. The ledger starts anew with every run.
        """
        built_in = settings.data.source == BUILT_IN_DATA
        return cls(
            state_dir=state_dir,
            data_path=None if built_in else Path(settings.data.path),
            max_epsilon_per_token=math.inf,
            max_epsilon_per_example=math.inf,
            allowed_mechanisms=(settings.privacy.mechanism, IDENTITY) if built_in else (),
            allowed_models=(settings.slm.model, settings.privacy.embeddings),
            simulated=True,
        )

    def check_run(self, settings: RunSettings) -> None:
        """Refuse what no run may ask of this node; raises ``PolicyRefusal`` that names the limit."""
        if settings.insecure_noise_seed >= 0 and not self.simulated:
            raise PolicyRefusal("insecure-noise-seed is for simulation; this node draws its noise unseeded")
        asked = (("slm.model", settings.slm.model), ("privacy.embeddings", settings.privacy.embeddings))
        for key, value in asked:
            if value not in self.allowed_models:
                raise PolicyRefusal(f"{key} = {value!r} is not among this node's allowed-models")

    def check_mechanism(self, name: str, kind: str, epsilon: float) -> None:
        """Refuse a mechanism or an epsilon per token; raises ``PolicyRefusal`` that names the limit."""
        named = name in self.allowed_mechanisms
        if not named and (kind == "none" or self.allowed_mechanisms):
            raise PolicyRefusal(f"mechanism {name!r} (kind {kind}) is not among this node's allowed-mechanisms")
        if kind != "none" and epsilon > self.max_epsilon_per_token:
            raise PolicyRefusal(
                f"privacy.epsilon = {epsilon:g} is above this node's "
                f"max-epsilon-per-token = {self.max_epsilon_per_token:g}"
            )


_REQUIRED = ("state-dir", "data-path", "max-epsilon-per-token", "max-epsilon-per-example")


def _with_policy_file(node_config: Mapping[str, Any]) -> dict[str, Any]:
    if "policy" not in node_config:
        return dict(node_config)
    try:
        policy = tomllib.loads(Path(node_config["policy"]).read_text())
    except (OSError, tomllib.TOMLDecodeError) as err:
        raise SettingError("the file that this node's `policy` names is not readable TOML", str(err)) from None
    return {**policy, **{k: v for k, v in node_config.items() if k != "policy"}}


def _absolute(config: Mapping[str, Any], key: str) -> Path:
    path = Path(_checked(key, config[key], str, _NOT_EMPTY))
    if not path.is_absolute():
        raise SettingError(f"{key} of this SuperNode is a relative path: give an absolute one", str(path))
    return path


def _checked_limit(config: Mapping[str, Any], key: str) -> float:
    rule = {"check": lambda v: not math.isnan(v) and v > 0, "expected": "above 0"}
    return float(_checked(key, config[key], float, rule))


def _words(text: str) -> tuple[str, ...]:
    return tuple(str(text).replace(",", " ").split())
