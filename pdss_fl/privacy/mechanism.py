"""The interface of privacy mechanisms, what they guarantee, and the registry that finds them by name."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, ClassVar, TypeVar

import numpy as np
from torch import Tensor

from pdss_fl.errors import SettingError
from pdss_fl.privacy.vocabulary import Vocabulary

KINDS = ("pure-ldp", "approximate-ldp", "metric-ldp", "partition-ldp", "none")
ENTRY_POINTS = "pdss_fl.mechanisms"


@dataclass(frozen=True)
class PrivacyGuarantee:
    """What one release of a mechanism promises.

    Parameters
    ----------
    kind : str
        One of ``KINDS``; ``none`` promises nothing.
    epsilon, delta : float
        In nats; infinity for ``none``.
    unit : str
        ``token`` or ``document``: what two inputs may differ in.
    statement : str
        One sentence that says what is protected and what is not.
    """

    kind: str
    epsilon: float
    delta: float
    unit: str
    statement: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.unit not in ("token", "document"):
            raise ValueError(f"kind {self.kind!r} or unit {self.unit!r} is unknown")
        if math.isnan(self.epsilon) or self.epsilon < 0 or not 0 <= self.delta < 1:
            raise ValueError(f"epsilon {self.epsilon} or delta {self.delta} is out of range")


@dataclass(frozen=True)
class DocumentGuarantee:
    """The (epsilon, delta) of a document of ``tokens`` tokens, and the theorem that gives it."""

    epsilon: float
    delta: float
    tokens: int
    composition: str


class PrivacyMechanism(ABC):
    """Replaces the tokens of a text, each by itself, under a guarantee.

    A subclass is made as ``Mechanism(vocabulary, epsilon=..., neighbours=...)``, may ignore either
    number, is registered with ``register_mechanism`` or through the entry-point group
    ``pdss_fl.mechanisms``, and is checked with ``pdss_fl.testing.check_mechanism``.
    """

    name: ClassVar[str] = ""

    def __init__(self, vocabulary: Vocabulary, *, epsilon: float, neighbours: int) -> None:
        self.vocabulary = vocabulary

    @property
    @abstractmethod
    def guarantee(self) -> PrivacyGuarantee:
        """What one released token promises."""

    @property
    @abstractmethod
    def parameters(self) -> str:
        """The public parameters in a readable form."""

    @property
    @abstractmethod
    def kept_tokens(self) -> float:
        """The expected share of tokens that come out as they went in."""

    @abstractmethod
    def perturb(self, ids: Tensor, generator: np.random.Generator | None = None) -> Tensor:
        """Replace every token independently.

        Parameters
        ----------
        ids : Tensor, shape (n,), int64
            Token ids, 0 .. V-1; how often a token occurs does not matter.
        generator : numpy.random.Generator | None (default: None)
            For simulation only; by default the operating system's entropy decides.

        Returns
        -------
        LongTensor, shape (n,)
        """

    def log_prob(self) -> Tensor:
        """Return the exact log-probabilities, float64 of shape (V, V), a row an input.

        Raises
        ------
        NotImplementedError
            With the reason, where no such matrix exists.
        """
        raise NotImplementedError(f"{self.name} states no matrix of probabilities")

    def compose(self, tokens: int, delta: float) -> DocumentGuarantee:
        """Return the guarantee of a document of ``tokens`` tokens: basic composition, which always holds."""
        return DocumentGuarantee(tokens * self.guarantee.epsilon, 0.0, tokens, "basic composition")


_M = TypeVar("_M", bound=type[PrivacyMechanism])
_registry: dict[str, type[PrivacyMechanism]] = {}


def register_mechanism(name: str) -> Callable[[_M], _M]:
    """Return a class decorator that makes a mechanism known under ``name``; a name is taken once."""

    def register(mechanism: _M) -> _M:
        if _registry.get(name, mechanism) is not mechanism:
            raise SettingError(f"a mechanism named {name!r} is registered already: choose another name")
        mechanism.name = name
        _registry[name] = mechanism
        return mechanism

    return register


def available_mechanisms() -> list[str]:
    """Return the names of all mechanisms, those of installed packages included."""
    return sorted({*_registry, *(point.name for point in entry_points(group=ENTRY_POINTS))})


def create_mechanism(name: str, vocabulary: Vocabulary, **parameters: Any) -> PrivacyMechanism:
    """Make a mechanism by its name; raises ``SettingError`` naming ``privacy.mechanism`` if unknown."""
    if name not in _registry:
        for point in entry_points(group=ENTRY_POINTS, name=name):
            register_mechanism(name)(point.load())
    if name not in _registry:
        known = ", ".join(available_mechanisms())
        raise SettingError(f"privacy.mechanism = {name!r} is unknown; choose one of {known}")
    return _registry[name](vocabulary, **parameters)


def check_epsilon(epsilon: float) -> float:
    """Return a finite epsilon above 0; raises ``SettingError`` naming ``privacy.epsilon`` otherwise."""
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise SettingError(f"privacy.epsilon = {epsilon!r}: expected a finite number above 0")
    return float(epsilon)
