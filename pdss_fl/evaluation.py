"""What a client tells of its test split: nothing, noisy counts under a budget of the node, or the counts.

A count of right answers is computed on private questions, so it is a release. One question changes it by one at most,
so that ``noisy`` (``privacy.counts``) protects each question of the test split: with ``metrics-epsilon`` an evaluation,
added up over all evaluations and runs in the node's ledger, up to the node's ``max-epsilon-metrics``. Neighbours
replace one question, so the number of questions is public. Examples that a model was trained on are not
covered: one of them may change the model, and the count by any amount.

A noisy count is charged under the run's folder, method and round, which are public, and found again under them. It is
not found by the model: an equal answer would tell that two models are equal, and so what a client made of rationales.
"""

from __future__ import annotations

import logging
import math
import zlib

import numpy as np

from pdss_fl.config import METRICS_LEVELS, RunSettings
from pdss_fl.policy import NodePolicy
from pdss_fl.privacy import Charge, Ledger
from pdss_fl.privacy.counts import TEST_SPLIT, noisy_count
from pdss_fl.privacy.sampling import random_bytes

logger = logging.getLogger("pdss_fl.client")

MIN_REPORTED = 20
"""Without noise, a deployed node's counts are about so many questions at least, never about a single one."""

Counts = dict[str, int | float]
NOTHING: Counts = {"num-examples": 0, "correct": 0}


def allowed_level(policy: NodePolicy, settings: RunSettings, questions: int) -> str:
    """Return the lesser of what the node allows and the run asks for: ``none``, ``noisy`` or ``full``."""
    level = min(policy.metrics, settings.metrics, key=METRICS_LEVELS.index)
    few = level == "full" and not policy.simulated and questions < MIN_REPORTED
    return "none" if few else level


def noisy_counts(
    correct: int, total: int, run: str, evaluation: str, policy: NodePolicy, settings: RunSettings
) -> Counts:
    """Return a noisy count, charged first; the same again for equal names, and nothing if the budget is spent.

    Parameters
    ----------
    correct, total : int
        Right answers and questions.
    run, evaluation : str
        Public: name the run among all of the node, and the evaluation in it.
    policy : NodePolicy
        Its ``max_epsilon_metrics`` limits what all noisy counts spend; a node that allows ``full`` sets no limit.
    settings : RunSettings
        Its ``metrics_epsilon`` is what this one spends.
    """
    limit = math.inf if policy.metrics == "full" else policy.max_epsilon_metrics
    ledger, epsilon = Ledger(policy.state_dir / "ledger.jsonl", limit), settings.metrics_epsilon
    recipe = f"geometric epsilon={epsilon!r} run {run} {evaluation}"
    released = ledger.lookup(TEST_SPLIT, recipe)
    if released is None:
        seed = settings.insecure_noise_seed
        generator = None if seed < 0 else np.random.default_rng(zlib.crc32(f"{seed}/{evaluation}".encode()))
        fresh = {"correct": noisy_count(correct, epsilon, random_bytes(generator))}
        ledger.charge([Charge(TEST_SPLIT, None, recipe, epsilon, 0.0, fresh)])
        released = ledger.lookup(TEST_SPLIT, recipe)  # also what another process has just stored
    if released is None:
        logger.warning("this node's max-epsilon-metrics is spent: it reports no more counts")
        return dict(NOTHING)
    return {"num-examples": total, "correct": released["correct"], "noise-epsilon": epsilon}
