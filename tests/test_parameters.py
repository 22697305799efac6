"""``privacy.parameters``: a mechanism's own parameters from a run's settings, bounded by type and by the node."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from pdss_fl.client import DistillationClient
from pdss_fl.config import PrivacySettings, RunSettings
from pdss_fl.errors import PolicyRefusal, SettingError
from pdss_fl.policy import NodePolicy
from pdss_fl.privacy import Vocabulary
from pdss_fl.privacy.contextual import Contextual
from pdss_fl.privacy.exponential import Exponential
from pdss_fl.privacy.parameters import check_parameters, settable_parameters
from pdss_fl.release import Perturber
from pdss_fl.vocabularies import load_perturber


def settings(tiny: Path, mechanism: str, parameters: str, **more: object) -> RunSettings:
    config = {
        "privacy.mechanism": mechanism, "privacy.parameters": parameters, "privacy.vocabulary": "english",
        "privacy.vocabulary-size": 40, "privacy.embeddings": str(tiny), **more,
    }  # fmt: skip
    return RunSettings.from_run_config(config)


def perturber(tiny: Path, mechanism: str, parameters: str) -> Perturber:
    return load_perturber(settings(tiny, mechanism, parameters), mechanism)


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PDSS_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))


def test_values_keep_their_types() -> None:
    found = PrivacySettings(parameters="scale=30 epsilon-min=2.5 on=true off=false low=-1e-3 word=near-by").parameters
    assert PrivacySettings(parameters=found).mechanism_parameters == {
        "scale": 30, "epsilon_min": 2.5, "on": True, "off": False, "low": -0.001, "word": "near-by",
    }  # fmt: skip
    assert PrivacySettings().mechanism_parameters == {}


@pytest.mark.parametrize(
    "text",
    [
        *[
            "scale",
            "scale=",
            "=3",
            "scale=nan",
            "scale=inf",
            "scale=1e999",
            "Scale=3",
            "a==1",
            "a=[1]",
            "a='x'",
            "list=1,2",
        ],
        *["path=/etc/passwd", "path=../x", "path=a.b", "url=http://x"],
        "a=1 a=2",
        "a-b=1 a_b=1",
        f"scale={'9' * 400}",
    ],
)
def test_what_is_no_plain_value_is_refused_by_name(text: str) -> None:
    with pytest.raises(SettingError, match=r"privacy\.parameters = .*name=value"):
        RunSettings.from_run_config({"privacy.parameters": text})


def test_a_parameter_reaches_the_mechanism_and_the_recipe_of_the_ledger(tiny: Path) -> None:
    plain, scaled = perturber(tiny, "exponential", ""), perturber(tiny, "exponential", "scale=30")
    assert isinstance(scaled.mechanism, Exponential)
    assert scaled.mechanism.scale == 30
    assert plain.recipe != scaled.recipe
    assert "scale=30" in scaled.recipe
    for mechanism, parameters in (
        ("adaptive-staircase", "epsilon-min=3"), ("metric-mahalanobis", "covariance=0.5"), ("contextual", "weight=0.2"),
        ("santext-plus", "sensitive=0.3 replaced=1"), ("exponential", "truncate=0.25"),
    ):  # fmt: skip
        assert perturber(tiny, mechanism, parameters).recipe != perturber(tiny, mechanism, "").recipe


@pytest.mark.parametrize(
    ("mechanism", "parameters", "takes"),
    [
        ("staircase", "scale=3", "takes none"),
        ("exponential", "scales=3", "scale (float)"),
        ("exponential", "scale=true", "scale (float)"),
        ("exponential", "scale=big", "truncate (float)"),
        ("exponential", "epsilon=50", "scale (float)"),
        ("exponential", "neighbours=50", "scale (float)"),
        ("exponential", "vocabulary=3", "scale (float)"),
        ("adaptive-staircase", "salience=1", "epsilon_min (float)"),
        ("contextual", "next_word=x", "weight (float)"),
        ("contextual", "model=x", "weight (float)"),
        ("identity", "seed=1", "takes none"),
    ],
)
def test_what_a_mechanism_does_not_take_is_refused_with_what_it_takes(
    tiny: Path, mechanism: str, parameters: str, takes: str
) -> None:
    with pytest.raises(SettingError) as refusal:
        perturber(tiny, mechanism, parameters)
    assert "privacy.parameters" in str(refusal.value)
    assert takes in str(refusal.value)


def test_a_seed_and_functions_of_a_third_party_are_not_settable() -> None:
    class Foreign(Exponential):
        def __init__(self, vocabulary: Vocabulary, seed: int = 0, generator: int = 3, *, size: int = 2,
                     table: Sequence[float] = (), on=True, word: str = "x", **more: int) -> None:  # noqa: ANN001  # fmt: skip
            super().__init__(vocabulary, epsilon=1.0)

    class Unreadable(Exponential):
        def __init__(self, other: "NoSuchName" = 2) -> None:  # type: ignore[name-defined]  # noqa: F821, UP037
            """Only a type checker can read this hint."""

    assert settable_parameters(Foreign) == {"size": (int,), "on": (bool,), "word": (str,)}
    assert settable_parameters(Unreadable) == {"other": (int,)}


def test_the_bound_without_privacy_does_not_get_the_mechanisms_parameters(tiny: Path) -> None:
    asked = settings(tiny, "exponential", "scale=30")
    assert load_perturber(asked, "identity").mechanism.name == "identity"


@pytest.mark.parametrize(("scale", "allowed"), [(1, True), (60, False)])
def test_the_node_bounds_what_a_parameter_makes_of_the_guarantee(
    tiny: Path, tmp_path: Path, scale: int, allowed: bool
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(f'{{"question": "what is it {i}?", "answer": "a thing"}}\n' for i in range(4)))
    node = {"state-dir": str(tmp_path), "data-path": str(data), "max-epsilon-per-token": 8.0}
    policy = NodePolicy.from_node_config(
        {**node, "max-epsilon-per-example": 200.0, "allowed-models": f"scratch {tiny}"}
    )
    asked = settings(tiny, "exponential", f"scale={scale}", **{"privacy.epsilon": 0.5})
    if allowed:
        assert DistillationClient(asked, policy, 1).perturb("pdss", 1)
    else:
        with pytest.raises(PolicyRefusal, match="max-epsilon-per-token = 8"):
            DistillationClient(asked, policy, 1)


def test_the_next_word_of_a_run_comes_from_its_embedding_model(tiny: Path) -> None:
    found = perturber(tiny, "contextual", "weight=1.0")
    assert isinstance(found.mechanism, Contextual)
    assert f"context={tiny.name}-" in found.recipe
    assert str(tiny.parent) not in found.recipe, "no path"
    assert not torch.equal(found.mechanism.log_prob_given([1]), found.mechanism.log_prob_given([2]))
    assert found.document.epsilon <= found.mechanism.guarantee.epsilon * found.shape.tokens
    check_parameters("contextual", {"weight": 1})
    assert math.isclose(found.mechanism.guarantee.epsilon, 7.0)
