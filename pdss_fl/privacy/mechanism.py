"""The interface of privacy mechanisms, what they guarantee, and the registry that finds them by name."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from pdss_fl.errors import SettingError
from pdss_fl.privacy.accounting import BASIC, best_composition
from pdss_fl.privacy.accounting import DocumentGuarantee as DocumentGuarantee
from pdss_fl.privacy.vocabulary import Vocabulary

KINDS = ("pure-ldp", "approximate-ldp", "metric-ldp", "partition-ldp", "none")
ENTRY_POINTS = "pdss_fl.mechanisms"


@dataclass(frozen=True)
class PrivacyGuarantee:
    """What one release promises.

    Parameters
    ----------
    kind : str
        One of ``KINDS``. ``pure-ldp`` and ``approximate-ldp`` hold for any two inputs; ``metric-ldp`` by
        their distance; ``partition-ldp`` within a public class of inputs only; ``none`` promises nothing.
    epsilon : float
        In nats, at least 0; finite for the two kinds that hold for any two inputs.
    delta : float
        In [0, 1); 0 for ``pure-ldp``.
    unit : str
        ``token`` or ``document``: of what any two inputs are meant, two words or two whole documents. For a document
        that is released word by word, ``epsilon`` is what each released word adds, and ``compose`` adds them up.
    statement : str
        One sentence that says what is protected and what is not.
    """

    kind: str
    epsilon: float
    delta: float
    unit: str
    statement: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.unit not in ("token", "document") or not self.statement:
            raise ValueError(f"a guarantee of kind {self.kind!r} and unit {self.unit!r} is unknown or has no statement")
        if not (self.epsilon >= 0 and 0 <= self.delta < 1):
            raise ValueError(f"epsilon {self.epsilon} or delta {self.delta} of a guarantee is out of range")
        if (self.for_any_inputs and math.isinf(self.epsilon)) or (self.kind == "pure-ldp" and self.delta > 0):
            raise ValueError(f"epsilon {self.epsilon} and delta {self.delta} are no guarantee of kind {self.kind}")

    @property
    def for_any_inputs(self) -> bool:
        """Whether epsilon and delta bound any two inputs, so that they add up over releases."""
        return self.kind in ("pure-ldp", "approximate-ldp")


class PrivacyMechanism(ABC):
    """Replaces the tokens of a text under a guarantee.

    A subclass is registered with ``register_mechanism`` or through the entry-point group
    ``pdss_fl.mechanisms``, and proves itself with ``pdss_fl.testing.check_mechanism``.

    Parameters
    ----------
    vocabulary : Vocabulary
        The V tokens that go in and come out.
    epsilon : float
        In nats per token, finite, above 0.
    neighbours : int
        Size of a token's nearest set, at least 1; taken as V-1 where it is larger.

    Raises
    ------
    SettingError
        Naming ``privacy.epsilon`` or ``privacy.neighbours``.
    """

    name: ClassVar[str] = ""

    not_settable: ClassVar[frozenset[str]] = frozenset({"epsilon", "neighbours", "seed", "generator"})
    """Arguments of the constructor that ``privacy.parameters`` cannot give: settings of their own, or nobody's."""

    def __init__(self, vocabulary: Vocabulary, *, epsilon: float, neighbours: int) -> None:
        if not (math.isfinite(epsilon) and epsilon > 0):
            raise SettingError(f"privacy.epsilon = {epsilon!r}: expected a finite number above 0")
        if neighbours < 1:
            raise SettingError(f"privacy.neighbours = {neighbours!r}: expected at least 1")
        self.vocabulary = vocabulary
        self.epsilon = float(epsilon)
        self.neighbours = min(neighbours, len(vocabulary) - 1)

    @property
    @abstractmethod
    def guarantee(self) -> PrivacyGuarantee:
        """What one release promises."""

    @abstractmethod
    def perturb(self, ids: Tensor, generator: np.random.Generator | None = None) -> Tensor:
        """Replace tokens.

        Parameters
        ----------
        ids : LongTensor, shape (n,)
            Token ids within 0 .. V-1.
        generator : numpy.random.Generator | None (default: None)
            For simulation only; by default the operating system's entropy decides.

        Returns
        -------
        LongTensor, shape (n,)
            Token ids within 0 .. V-1.
        """

    def perturb_documents(
        self, documents: Sequence[Tensor], generator: np.random.Generator | None = None
    ) -> list[Tensor]:
        """Replace the tokens of several documents, LongTensors (n_i,); here all of them as one sequence.

        A mechanism that looks at what it has released of a document before overrides this.
        """
        if not documents:
            return []
        released = self.perturb(torch.cat(list(documents)), generator)
        return list(torch.split(released, [len(document) for document in documents]))

    def log_prob(self) -> Tensor:
        """Return the exact log-probabilities of a token, float64 of shape (V, V), row = input.

        Raises
        ------
        NotImplementedError
            With the reason, where no such matrix exists.
        """
        return self.log_prob_rows(torch.arange(len(self.vocabulary)))

    def log_prob_rows(self, ids: Tensor) -> Tensor:
        """Return the rows of ``log_prob`` for the inputs ``ids`` (n,), float64 of shape (n, V).

        A subclass overrides this one if it can make rows without the whole matrix, or else ``log_prob``.
        """
        if type(self).log_prob is PrivacyMechanism.log_prob:
            raise NotImplementedError(f"mechanism {self.name!r} states no matrix of probabilities")
        return self.log_prob()[self.vocabulary.checked(ids)]

    @property
    def kept_tokens(self) -> float:
        """The share of tokens that are expected to come out unchanged, every word equally likely."""
        return float(self.log_prob().diagonal().exp().mean())

    @property
    def parameters(self) -> str:
        """All that the mechanism depends on besides its name and the words, in public and exactly.

        A stored release is sent again under equal parameters, so unequal ones must read differently.
        """
        epsilon = repr(self.epsilon).removesuffix(".0")
        return f"epsilon={epsilon} neighbours={self.neighbours} vocabulary={len(self.vocabulary)}"

    @property
    def bounded_range(self) -> float | None:
        """The eta of a token: what the logarithms of Pr[y|x] / Pr[y|x'] differ by over y, for any x and x'.

        In nats, at most 2 epsilon; ``None``, which stands for that, unless a subclass knows better.
        """
        return None

    @property
    def renyi_curve(self) -> tuple[tuple[float, float], ...]:
        """Orders a > 1 and the largest Renyi divergence D_a of a token's rows for any two inputs, in nats.

        Empty, which composition does without, unless a subclass knows them.
        """
        return ()

    @property
    def context_free(self) -> bool:
        """Whether no token's law depends on any other token: true unless ``perturb_documents`` is overridden."""
        return type(self).perturb_documents is PrivacyMechanism.perturb_documents

    @property
    def classes(self) -> Sequence[Tensor] | None:
        """The public classes of a ``partition-ldp`` guarantee, disjoint LongTensors of ids; ``None`` if not stated."""
        return None

    def distances(self, ids: Tensor) -> Tensor:
        """Return the metric of a ``metric-ldp`` guarantee, from ids (n,) to all, float64 of shape (n, V).

        Here ``Vocabulary.distances``; a subclass with another metric overrides this.
        """
        return torch.from_numpy(self.vocabulary.distances(ids, slice(0, len(self.vocabulary))))

    def compose(self, tokens: int, delta: float) -> DocumentGuarantee:
        """Return what a document of ``tokens`` tokens is worth, by the best composition that holds and is known.

        Parameters
        ----------
        tokens : int
            At least 0.
        delta : float
            In [0, 1): what a composition may spend. With 0, and for tokens that spend some themselves, it is the
            basic one, which spends only the tokens' own; see ``best_composition``.
        """
        guarantee = self.guarantee
        if not guarantee.for_any_inputs:  # a distance or a class of inputs does not add up to a document
            return DocumentGuarantee(math.inf, 0.0, tokens, f"none for kind {guarantee.kind}")
        if guarantee.unit == "document":
            return DocumentGuarantee(guarantee.epsilon, guarantee.delta, tokens, "one release a document")
        if guarantee.delta > 0:
            return DocumentGuarantee(tokens * guarantee.epsilon, tokens * guarantee.delta, tokens, BASIC)
        return best_composition(
            guarantee.epsilon,
            tokens,
            delta,
            bounded_range=self.bounded_range,
            context_free=self.context_free,
            renyi=self.renyi_curve if tokens and delta else (),
        )


_M = TypeVar("_M", bound=type[PrivacyMechanism])
_registered: dict[str, type[PrivacyMechanism]] = {}


def register_mechanism(name: str) -> Callable[[_M], _M]:
    """Return a class decorator that registers a mechanism; raises ``SettingError`` if the name is taken."""

    def register(mechanism: _M) -> _M:
        if _registered.get(name, mechanism) is not mechanism:
            raise SettingError(f"a mechanism {name!r} is registered already; choose another name")
        mechanism.name = name
        _registered[name] = mechanism
        return mechanism

    return register


def available_mechanisms() -> list[str]:
    """Return the names of all mechanisms, those that installed packages announce included, sorted."""
    return sorted({*_registered, *entry_points(group=ENTRY_POINTS).names})


def mechanism_class(name: str) -> type[PrivacyMechanism]:
    """Return the class that has a name; raises ``SettingError`` if there is none or its package cannot be loaded."""
    if name not in _registered and name in entry_points(group=ENTRY_POINTS).names:
        _load(name)
    if name not in _registered:
        raise SettingError(
            f"privacy.mechanism = {name!r} is unknown; choose one of {', '.join(available_mechanisms())}"
        )
    return _registered[name]


def create_mechanism(name: str, vocabulary: Vocabulary, **parameters: Any) -> PrivacyMechanism:
    """Return a mechanism by name.

    Parameters
    ----------
    name : str
        A registered name, or one that an installed package announces in the group ``pdss_fl.mechanisms``.
    vocabulary : Vocabulary
        The closed vocabulary.
    **parameters : Any
        ``epsilon`` and ``neighbours``, and whatever else the mechanism takes.

    Raises
    ------
    SettingError
        If the name is unknown, its package cannot be loaded, or a parameter is out of range.
    """
    return mechanism_class(name)(vocabulary, **parameters)


def _load(name: str) -> None:
    try:
        mechanism = entry_points(group=ENTRY_POINTS)[name].load()
    except Exception as err:  # importing someone else's package can raise anything
        raise SettingError(
            f"privacy.mechanism = {name!r}: the package that has it fails to load ({type(err).__name__})",
            str(err),
        ) from None
    register_mechanism(name)(mechanism)
