"""The run's settings about sharing small models' weights (``sharing.*``)."""

from __future__ import annotations

from dataclasses import dataclass

from pdss_fl.errors import SettingError
from pdss_fl.rules import NOT_NEGATIVE, one_of, setting, within

OFF, FEDAVG = "off", "fedavg"


@dataclass(frozen=True)
class SharingSettings:
    """Whether clients with the run's small model average it (``sharing.*``); a node has to allow it.

    A client that chose another ``slm.*`` takes part without sharing.
    ``mode = "fedavg"`` sends each client's weights to the strategy after every round. Weights tell about the
    private text that they were trained on. With ``epsilon`` above 0 they are trained by DP-SGD (needs the extra
    ``dp-sgd``) and the ledger is charged that much for every example, for the whole run of one method, at ``delta``;
    ``clip`` bounds the norm of one example's gradient.
    """

    mode: str = setting(OFF, one_of(OFF, FEDAVG))
    epsilon: float = setting(0.0, NOT_NEGATIVE)
    delta: float = setting(1e-5, {"check": lambda v: 0 < v <= 1e-3, "expected": "above 0, at most 0.001"})
    clip: float = setting(1.0, within(1e-3, 1e3))  # where float32 is far from its ends


def check_sharing(sharing: SharingSettings, rationale_filter: str, dtype: str) -> None:
    """Refuse settings under which ``epsilon`` has no effect or does not hold.

    Raises
    ------
    SettingError
        Naming the two settings that do not go together.
    """
    if sharing.epsilon and sharing.mode == OFF:
        raise SettingError(f"sharing.epsilon = {sharing.epsilon!r} has no effect while sharing.mode is 'off'")
    if sharing.epsilon and dtype != "float32":
        raise SettingError(
            f"slm.dtype = {dtype!r} rounds clipped gradients and their noise so far that sharing.epsilon would not "
            "hold: with it set slm.dtype to 'float32'"
        )
    if sharing.epsilon and rationale_filter != "off":
        raise SettingError(
            f"distill.filter = {rationale_filter!r} compares a client's examples with each other, so that one of them "
            "would tell in more than its own gradient: with sharing.epsilon set distill.filter to 'off'"
        )
