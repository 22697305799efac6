"""The node's policy: what one client allows any run to ask of it, whatever the run's settings say.

It comes from the node's own ``node_config``, or a file that this names, never from the run.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pdss_fl.bundled import BUNDLED_MODEL
from pdss_fl.choices import KEYS as CHOICES
from pdss_fl.choices import choices_in, own_settings, simulated_choices
from pdss_fl.config import BUILT_IN_MODEL, IDENTITY, METRICS_LEVELS, SCRATCH, RunSettings
from pdss_fl.data_settings import BUILT_IN_DATA
from pdss_fl.errors import PolicyRefusal, SettingError
from pdss_fl.rules import ADDRESS, NOT_EMPTY, checked, one_of
from pdss_fl.sharing_settings import OFF, SharingSettings

_KNOWN = {
    "state-dir", "data-path", "max-epsilon-per-token", "max-epsilon-per-example", "allowed-mechanisms",
    "allowed-models", "allowed-lengths", "public-choices", "metrics", "max-epsilon-metrics", "allow-sharing",
    "allowed-llm-addresses", "llm-root-certificates", "llm-certificate", "llm-key",
    *CHOICES,
}  # fmt: skip
_FLOWERS = {"partition-id", "num-partitions", "policy"}
_REQUIRED = ("state-dir", "data-path", "max-epsilon-per-token", "max-epsilon-per-example")


@dataclass(frozen=True)
class NodePolicy:
    """What one client allows any run to ask of it; see ``from_node_config`` for the keys.

    ``max_epsilon_per_example`` bounds what an example spends over all runs. A mechanism whose guarantee is
    not ``pure-ldp`` runs only if ``allowed_mechanisms`` names it; the empty tuple allows every mechanism of
    that kind, and no other. What has no bound for any two inputs spends infinitely much, so it also needs an
    infinite ``max_epsilon_per_example``. ``max_epsilon_per_token`` bounds the guarantee's own figure, for
    ``metric-ldp`` nats per unit of distance. ``allowed_models`` bounds ``slm.model``,
    ``privacy.embeddings`` and ``encoder-decoder.model``.
    ``allowed_llm_addresses`` are the LLM servers that a run may send this node to (``llm.channel = "direct"``);
    the node trusts ``llm_root_certificates`` there and no CA that a run names. ``metrics`` is what a run may be told
    of right answers, and ``max_epsilon_metrics`` bounds what noisy counts spend over all runs (``evaluation``).
    ``choices`` are settings that the node chose for itself, which outrank the run's within these limits.
    ``allow_sharing`` lets a run average this node's small models with others' (``sharing.mode``), which tells about
    the text that they were trained on: ``dp-sgd`` only if they are trained by it, charged to the ledger, ``any`` in
    any way. Which average the run makes of them is the run's choice: the weights leave the node alike.
    """

    state_dir: Path
    data_path: Path | None
    max_epsilon_per_token: float
    max_epsilon_per_example: float
    allowed_mechanisms: tuple[str, ...] = ()
    allowed_models: tuple[str, ...] = (SCRATCH, BUNDLED_MODEL)
    allowed_lengths: tuple[str, ...] = ("fixed", "bucket")
    public_choices: tuple[str, ...] = ()
    metrics: str = "noisy"
    max_epsilon_metrics: float = 20.0
    allowed_llm_addresses: tuple[str, ...] = ()
    llm_root_certificates: Path | None = None
    llm_certificate: Path | None = None
    llm_key: Path | None = None
    allow_sharing: str = "none"
    simulated: bool = False
    choices: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_node_config(cls, node_config: Mapping[str, Any]) -> NodePolicy:
        """Read a deployed node's policy.

        Keys: ``state-dir``, ``data-path``, ``max-epsilon-per-token``, ``max-epsilon-per-example``
        (all four needed), ``allowed-mechanisms`` and ``allowed-models`` (words separated by spaces or
        commas, or lists in the file), ``allowed-lengths`` (of ``privacy.length``), ``public-choices`` (the
        labels that may be sent unperturbed, separated by commas), ``metrics`` (``noisy``, ``full`` or ``none``),
        ``max-epsilon-metrics`` (20 by default), ``allow-sharing`` (``none``, ``dp-sgd`` or ``any``),
        ``allowed-llm-addresses`` (``host:port``), ``llm-root-certificates`` (PEM file of the CA that is trusted there;
        without it these addresses have to be on loopback), ``llm-certificate`` and ``llm-key`` (this node's own, for
        mutual TLS), what the node chooses for itself (``pdss_fl.choices``; the ``slm-model`` that it names is one of
        its allowed models), and ``policy``: a TOML file with the same keys, which ``node_config`` itself outranks.

        Raises
        ------
        SettingError
            If one of the four is missing or a value is out of range.
        """
        config = _with_policy_file(node_config)
        unknown = sorted(set(config) - _KNOWN - _FLOWERS)
        if unknown:
            raise SettingError(
                f"this SuperNode's config has unknown keys: {', '.join(unknown)}; known are {', '.join(sorted(_KNOWN))}"
            )
        missing = [k for k in _REQUIRED if k not in config]
        if missing:
            raise SettingError(
                f"this SuperNode has no {', '.join(missing)}: start it with --node-config "
                '\'state-dir="/abs/dir" data-path="/abs/data.jsonl" max-epsilon-per-token=8.0 '
                'max-epsilon-per-example=200.0\' or name a file with policy="/abs/policy.toml"'
            )
        limits = {"max-epsilon-metrics": cls.max_epsilon_metrics, **config}
        sharing, choices = config.get("allow-sharing", "none"), choices_in(config)
        models = _words(config.get("allowed-models", " ".join(cls.allowed_models)))
        return cls(
            state_dir=_absolute(config, "state-dir"),
            data_path=_data_path(config),
            max_epsilon_per_token=_checked_limit(config, "max-epsilon-per-token"),
            max_epsilon_per_example=_checked_limit(config, "max-epsilon-per-example"),
            allowed_mechanisms=_words(config.get("allowed-mechanisms", "")),
            allowed_models=(*models, *filter(None, [choices.get("slm.model")])),
            allowed_lengths=_words(config.get("allowed-lengths", " ".join(cls.allowed_lengths))),
            public_choices=tuple(
                label.strip() for label in _list(config.get("public-choices", ""), ",") if label.strip()
            ),
            metrics=checked("metrics", config.get("metrics", cls.metrics), str, one_of(*METRICS_LEVELS)),
            max_epsilon_metrics=_checked_limit(limits, "max-epsilon-metrics"),
            allowed_llm_addresses=tuple(
                checked("allowed-llm-addresses", address, str, ADDRESS)
                for address in _words(config.get("allowed-llm-addresses", ""))
            ),
            llm_root_certificates=_file(config, "llm-root-certificates"),
            llm_certificate=_file(config, "llm-certificate"),
            llm_key=_file(config, "llm-key"),
            allow_sharing=checked("allow-sharing", sharing, str, one_of("none", "dp-sgd", "any")),
            choices=choices,
        )

    @classmethod
    def simulation(cls, state_dir: Path, settings: RunSettings, partition_id: int = 0) -> NodePolicy:
        """Return the policy of a simulated client, whose data already is on the submitter's machine.

        It allows any epsilon, any model and the run's data path; mechanisms whose guarantee is not
        ``pure-ldp`` are allowed on the built-in public data only. The ledger starts anew with every run. What the
        file that ``client-choices`` names says of this client is part of it.
        """
        choices, metrics = simulated_choices(settings, partition_id)
        settings = own_settings(settings, choices, simulated=True)
        built_in = settings.data.source == BUILT_IN_DATA
        return cls(
            state_dir=state_dir,
            data_path=None if built_in else Path(settings.data.path),
            max_epsilon_per_token=math.inf,
            max_epsilon_per_example=math.inf,
            allowed_mechanisms=(settings.privacy.mechanism, IDENTITY) if built_in else (),
            allowed_models=(settings.slm.model, settings.privacy.embeddings, settings.encoder_decoder.model),
            allowed_lengths=(settings.privacy.length,),
            allowed_llm_addresses=(settings.llm.address,),
            llm_root_certificates=Path(settings.llm.root_certificates) if settings.llm.root_certificates else None,
            metrics=metrics,
            allow_sharing="any",
            simulated=True,
            choices=choices,
        )

    def check_run(self, settings: RunSettings) -> None:
        """Refuse what no run may ask of this node; raises ``PolicyRefusal`` that names the limit."""
        if settings.insecure_noise_seed >= 0 and not self.simulated:
            raise PolicyRefusal("insecure-noise-seed is for simulation; this node draws its noise unseeded")
        if settings.client_choices and not self.simulated:
            raise PolicyRefusal("client-choices is for simulation; this node's own config states its choices")
        self._check_sharing(settings.sharing)
        if settings.data.public_choices and not (self.public_choices or self.simulated):
            raise PolicyRefusal("data.public-choices sends choices unperturbed; this node names no public-choices")
        if settings.privacy.length not in self.allowed_lengths:
            raise PolicyRefusal(
                f"privacy.length = {settings.privacy.length!r} is not among this node's allowed-lengths"
            )
        if settings.llm.channel == "direct":
            self.check_llm_address(settings.llm.address)
        embeddings = [model for model in self.allowed_models if model != SCRATCH]  # no model has that name
        for key, value, allowed in (
            ("slm.model", settings.slm.model, self.allowed_models),
            ("privacy.embeddings", settings.privacy.embeddings, embeddings),
        ):
            if value not in allowed:
                raise PolicyRefusal(f"{key} = {value!r} is not among this node's allowed-models")
        self._check_public("privacy.embeddings", settings.privacy.embeddings)
        if settings.sharing.mode != OFF:  # what training adds to a model is charged, and not what is in it
            self._check_public("slm.model", settings.slm.model)
        self._check_encoder_decoder(settings.encoder_decoder.model)
        if self.allowed_mechanisms:  # before anything of a foreign mechanism is imported
            self._check_named(settings.privacy.mechanism)

    def _check_encoder_decoder(self, model: str) -> None:
        """Refuse an encoder-decoder that the node does not name, or that could be one of its own private students."""
        if model == BUILT_IN_MODEL:
            return
        if model not in self.allowed_models or model == SCRATCH:
            raise PolicyRefusal(f"encoder-decoder.model = {model!r} is not among this node's allowed-models")
        self._check_public("encoder-decoder.model", model)

    def _check_public(self, key: str, model: str) -> None:
        """Refuse a model from which something leaves, if it lies where those trained on private data are."""
        if self.simulated:  # the submitter's own machine
            return
        folder = Path(model).resolve()
        for own in filter(None, (self.state_dir, self.data_path)):
            if own.resolve() in (folder, *folder.parents):
                raise PolicyRefusal(
                    f"{key} lies in this node's state-dir or data-path, where models trained on private data are"
                )

    def check_mechanism(self, name: str, kind: str, epsilon: float) -> None:
        """Refuse a mechanism or an epsilon per token; raises ``PolicyRefusal`` that names the limit.

        Parameters
        ----------
        name : str
            The mechanism's.
        kind : str
            Of its guarantee; any but ``pure-ldp`` must be allowed by name.
        epsilon : float
            Of its guarantee, for unit ``document`` what each released word adds to the document's; not bounded for
            kind ``none``, which promises none.
        """
        if kind != "pure-ldp" or self.allowed_mechanisms:
            self._check_named(name)
        if kind != "none" and epsilon > self.max_epsilon_per_token:
            raise PolicyRefusal(
                f"privacy.epsilon = {epsilon:g} is above this node's "
                f"max-epsilon-per-token = {self.max_epsilon_per_token:g}"
            )

    def check_llm_address(self, address: str) -> None:
        """Refuse to send anything to an LLM server that the node does not name; raises ``PolicyRefusal``."""
        if address not in self.allowed_llm_addresses:
            raise PolicyRefusal(f"llm.address = {address!r} is not among this node's allowed-llm-addresses")

    def _check_sharing(self, sharing: SharingSettings) -> None:
        allowed = self.allow_sharing == "any" or (self.allow_sharing == "dp-sgd" and sharing.epsilon > 0)
        if sharing.mode != OFF and not allowed:
            raise PolicyRefusal(
                f"sharing.mode = {sharing.mode!r} with sharing.epsilon = {sharing.epsilon:g} (0: without privacy) "
                f"sends a client's weights; this node's allow-sharing is {self.allow_sharing!r}"
            )

    def _check_named(self, name: str) -> None:
        if name not in self.allowed_mechanisms:
            raise PolicyRefusal(f"mechanism {name!r} is not among this node's allowed-mechanisms")


def _with_policy_file(node_config: Mapping[str, Any]) -> dict[str, Any]:
    if "policy" not in node_config:
        return dict(node_config)
    try:
        policy = tomllib.loads(Path(node_config["policy"]).read_text())
    except (OSError, tomllib.TOMLDecodeError) as err:
        raise SettingError("the file that this node's `policy` names is not readable TOML", str(err)) from None
    return {**policy, **{k: v for k, v in node_config.items() if k != "policy"}}


def _absolute(config: Mapping[str, Any], key: str) -> Path:
    path = Path(checked(key, config[key], str, NOT_EMPTY))
    if not path.is_absolute():
        raise SettingError(f"{key} of this SuperNode is a relative path: give an absolute one", str(path))
    return path


def _data_path(config: Mapping[str, Any]) -> Path:
    """Return where the data lies; a Hugging Face data set may be an id instead of a path."""
    if config.get("data-format") == "datasets":
        return Path(checked("data-path", config["data-path"], str, NOT_EMPTY))
    return _absolute(config, "data-path")


def _file(config: Mapping[str, Any], key: str) -> Path | None:
    return _absolute(config, key) if key in config else None


def _checked_limit(config: Mapping[str, Any], key: str) -> float:
    rule = {"check": lambda v: not math.isnan(v) and v > 0, "expected": "above 0"}
    return float(checked(key, config[key], float, rule))


def _words(value: Any) -> tuple[str, ...]:
    return tuple(word for part in _list(value, ",") for word in part.split())


def _list(value: Any, separator: str) -> list[str]:
    """Return a policy's list, from TOML's own form or from one text."""
    if isinstance(value, list):
        return [str(item) for item in value]
    return str(value).split(separator)
