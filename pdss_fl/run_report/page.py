"""A run as one self-contained HTML page: pictures inside, no script, nothing loaded, all text escaped."""

from __future__ import annotations

from dataclasses import replace

import torch

from pdss_fl.config import RunSettings
from pdss_fl.pages import render
from pdss_fl.privacy.attacks import optimal_success
from pdss_fl.privacy_report import word_frequencies
from pdss_fl.run_report.figures import attack, clients, comparison
from pdss_fl.run_report.material import Material
from pdss_fl.vocabularies import load_perturber

_EPSILONS = (1.0, 3.0, 5.0, 7.0, 9.0, 11.0)
_MOST_WORDS = 5000  # the exact attack looks at all pairs of words


def render_page(material: Material) -> str:
    """Return the page."""
    summary = material.summary
    return render(
        "pdss_fl.run_report",
        run=material,
        summary=summary,
        comparison=comparison(summary["accuracy"]) if summary and any(summary["accuracy"].values()) else None,
        clients=clients(material.curves) if material.curves else None,
        attack=_attack(material) if material.settings else None,
    )


def _attack(material: Material) -> str | None:
    """Draw the exact attack over epsilon; ``None`` where the mechanism has no matrix of probabilities."""
    settings = material.settings
    if settings is None or settings.privacy.vocabulary_size > _MOST_WORDS:
        return None
    asked = settings.privacy.epsilon
    try:
        points = [(epsilon, _success(settings, epsilon, material)) for epsilon in sorted({*_EPSILONS, asked})]
    except NotImplementedError:
        return None
    return attack(points, asked)


def _success(settings: RunSettings, epsilon: float, material: Material) -> float:
    changed = replace(settings, privacy=replace(settings.privacy, epsilon=epsilon))
    perturber = load_perturber(changed, settings.privacy.mechanism)
    if material.corpus:
        prior = word_frequencies(perturber, material.corpus)
    else:
        size = len(perturber.vocabulary)
        prior = torch.full((size,), 1 / size, dtype=torch.float64)
    return float(optimal_success(perturber.mechanism, prior))
