"""Training of a small model that will be shared: every example pays in the node's ledger before it is trained on."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence

from pdss_fl.config import RunSettings
from pdss_fl.errors import BudgetExhausted
from pdss_fl.privacy import Charge, Ledger
from pdss_fl.privacy.ledger import MAX_DELTA
from pdss_fl.slm.model import SmallModel
from pdss_fl.slm.private_trainer import Privacy, train_privately
from pdss_fl.slm.trainer import TrainingItem, TrainSettings


def train_under_charge(
    slm: SmallModel,
    items: Sequence[TrainingItem],
    train_settings: TrainSettings,
    settings: RunSettings,
    ledger: Ledger,
    on_step: Callable[[int, float], None],
) -> int:
    """Charge every example for one round of DP-SGD, train on those that could pay, and return the rows that were cut.

    A round costs its share of ``sharing.epsilon`` and ``sharing.delta``, which are for all rounds of one method (basic
    composition). Every training is charged, one that is repeated after a crash once more. Examples that agree in
    question, choices and person are one example to the ledger, and one is trained on.

    Raises
    ------
    BudgetExhausted
        If no example can pay under the node's ``max-epsilon-per-example``, or the ledger's ``MAX_DELTA``.
    StoreError
        If the ledger cannot be written; nothing is trained then.
    """
    sharing, rounds = settings.sharing, settings.num_server_rounds
    privacy = Privacy(sharing.epsilon / rounds, sharing.delta / rounds, sharing.clip)
    distinct = list({item.example.release_key: item for item in items}.values())
    recipe = f"dp-sgd clip={sharing.clip:g} steps={train_settings.steps} {secrets.token_hex(8)}"
    paid = ledger.charge(
        [Charge(i.example.release_key, i.example.person, recipe, privacy.epsilon, privacy.delta, {}) for i in distinct]
    )
    able = [item for item, accepted in zip(distinct, paid, strict=True) if accepted]
    if not able:
        raise BudgetExhausted(
            f"none of the examples can pay sharing.epsilon {privacy.epsilon:.4g} a round any more under this node's "
            f"max-epsilon-per-example, or sharing.delta {privacy.delta:.3g}: all deltas of one add up to {MAX_DELTA:g}"
        )
    return train_privately(slm, able, train_settings, privacy, on_step)
