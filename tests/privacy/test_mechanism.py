"""Guarantees, the registry, and plug-ins of installed packages."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pdss_fl.errors import SettingError
from pdss_fl.privacy import (
    PrivacyGuarantee,
    PrivacyMechanism,
    Vocabulary,
    available_mechanisms,
    create_mechanism,
    register_mechanism,
)

PLUG_IN = '''
import torch
from pdss_fl.privacy import PrivacyGuarantee, PrivacyMechanism

class Always(PrivacyMechanism):
    """Releases the first word whatever comes in."""

    guarantee = PrivacyGuarantee("pure-ldp", 0.0, 0.0, "token", "Nothing comes out.")

    def perturb(self, ids, generator=None):
        return torch.zeros_like(ids)
'''


@pytest.fixture
def vocabulary() -> Vocabulary:
    return Vocabulary(["dog", "cat", "cow"], torch.eye(3))


def install(monkeypatch: pytest.MonkeyPatch, site: Path, name: str, module: str, source: str) -> None:
    """Put a package with one entry point where Python finds it, as an installer does."""
    (site / f"{module}.py").write_text(source)
    info = site / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[pdss_fl.mechanisms]\n{name} = {module}:Always\n")
    monkeypatch.syspath_prepend(str(site))


def test_the_built_in_mechanisms_are_known(vocabulary: Vocabulary) -> None:
    assert {"identity", "staircase"} <= set(available_mechanisms())
    mechanism = create_mechanism("staircase", vocabulary, epsilon=1.0, neighbours=2)
    assert mechanism.name == "staircase"


def test_an_unknown_name_is_refused_with_the_known_ones(vocabulary: Vocabulary) -> None:
    with pytest.raises(
        SettingError, match=r"privacy\.mechanism = 'magic' is unknown; choose one of .*identity.*staircase"
    ):
        create_mechanism("magic", vocabulary, epsilon=1.0, neighbours=2)


def test_a_plug_in_is_listed_and_loaded_when_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, vocabulary: Vocabulary
) -> None:
    install(monkeypatch, tmp_path, "always-from-package", "pdss_always", PLUG_IN)
    assert "always-from-package" in available_mechanisms()
    for _ in range(2):
        mechanism = create_mechanism("always-from-package", vocabulary, epsilon=1.0, neighbours=2)
    assert mechanism.name == "always-from-package"
    assert mechanism.perturb(vocabulary.encode("cow cat")).tolist() == [0, 0]


def test_a_plug_in_that_cannot_be_loaded_harms_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, vocabulary: Vocabulary
) -> None:
    install(monkeypatch, tmp_path, "broken", "pdss_broken", "import a_module_that_is_not_there")
    assert "broken" in available_mechanisms()
    assert create_mechanism("identity", vocabulary).name == "identity"
    with pytest.raises(SettingError, match=r"privacy\.mechanism = 'broken'.*ModuleNotFoundError"):
        create_mechanism("broken", vocabulary, epsilon=1.0, neighbours=2)


def test_a_plug_in_cannot_take_the_place_of_a_built_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, vocabulary: Vocabulary
) -> None:
    install(monkeypatch, tmp_path, "staircase", "pdss_impostor", PLUG_IN)
    mechanism = create_mechanism("staircase", vocabulary, epsilon=1.0, neighbours=2)
    assert type(mechanism).__module__ == "pdss_fl.privacy.staircase"


def test_a_name_is_taken_once() -> None:
    with pytest.raises(SettingError, match="'identity' is registered already"):

        @register_mechanism("identity")
        class Other(PrivacyMechanism):
            """Never registered."""


@pytest.mark.parametrize(
    ("kind", "epsilon", "delta", "unit", "statement"),
    [
        ("strong", 1.0, 0.0, "token", "x"),
        ("pure-ldp", 1.0, 0.0, "word", "x"),
        ("pure-ldp", 1.0, 0.0, "token", ""),
        ("pure-ldp", math.nan, 0.0, "token", "x"),
        ("pure-ldp", -1.0, 0.0, "token", "x"),
        ("pure-ldp", math.inf, 0.0, "token", "x"),
        ("pure-ldp", 1.0, 1e-5, "token", "x"),
        ("approximate-ldp", 1.0, 1.0, "token", "x"),
        ("approximate-ldp", 1.0, math.nan, "token", "x"),
    ],
)
def test_what_is_no_guarantee_is_refused(kind: str, epsilon: float, delta: float, unit: str, statement: str) -> None:
    with pytest.raises(ValueError, match="guarantee"):
        PrivacyGuarantee(kind, epsilon, delta, unit, statement)


@pytest.mark.parametrize(
    ("kind", "unit", "epsilon", "delta"),
    [
        ("approximate-ldp", "token", 20.0, 2e-6),
        ("approximate-ldp", "document", 2.0, 2e-7),
        ("metric-ldp", "token", math.inf, 0.0),
        ("partition-ldp", "token", math.inf, 0.0),
    ],
)
def test_composition_of_what_a_plug_in_claims(
    vocabulary: Vocabulary, kind: str, unit: str, epsilon: float, delta: float
) -> None:
    """Basic composition per token; nothing is claimed for a document where guarantees do not add up."""

    class Claims(PrivacyMechanism):
        guarantee = PrivacyGuarantee(kind, 2.0, 2e-7, unit, "A test.")

        def perturb(self, ids: Tensor, generator: np.random.Generator | None = None) -> Tensor:
            return ids

    document = Claims(vocabulary, epsilon=2.0, neighbours=1).compose(10, 1e-5)
    assert (document.epsilon, document.tokens) == (epsilon, 10)
    assert document.delta == pytest.approx(delta)


def test_identity_protects_nothing_and_says_so(vocabulary: Vocabulary) -> None:
    mechanism = create_mechanism("identity", vocabulary, epsilon=1.0, neighbours=2)
    ids = vocabulary.encode("cow dog cat")
    assert mechanism.perturb(ids).tolist() == ids.tolist()
    assert (mechanism.guarantee.kind, mechanism.guarantee.epsilon) == ("none", math.inf)
    assert mechanism.kept_tokens == 1.0
    assert mechanism.compose(20, 1e-5).epsilon == math.inf
    assert "1" not in mechanism.parameters.replace("vocabulary=11", "")
