"""The run's settings about sharing small models' weights (``sharing.*``)."""

from __future__ import annotations

from dataclasses import dataclass

from pdss_fl.rules import NOT_NEGATIVE, POSITIVE, one_of, setting

OFF, FEDAVG = "off", "fedavg"


@dataclass(frozen=True)
class SharingSettings:
    """Whether clients with the same small model average it (``sharing.*``); a node has to allow it.

    ``mode = "fedavg"`` sends each client's weights (its LoRA adapters alone, where it trains adapters) to the
    strategy after every round. Weights tell about the private text that they were trained on. With ``epsilon``
    above 0 they are trained by DP-SGD (needs the extra ``dp-sgd``) and the ledger is charged that much for every
    example, for the whole run of one method, at ``delta``; ``clip`` bounds the norm of one example's gradient.
    """

    mode: str = setting(OFF, one_of(OFF, FEDAVG))
    epsilon: float = setting(0.0, NOT_NEGATIVE)
    delta: float = setting(1e-5, {"check": lambda v: 0 < v <= 1e-3, "expected": "above 0, at most 0.001"})
    clip: float = setting(1.0, POSITIVE)
