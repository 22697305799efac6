"""The run's settings about sharing small models' weights (``sharing.*``)."""

from __future__ import annotations

from dataclasses import dataclass

from pdss_fl.errors import SettingError
from pdss_fl.rules import NOT_NEGATIVE, one_of, setting, within

OFF, FEDAVG = "off", "fedavg"
ROBUST = ("fedtrimmedavg", "multikrum", "bulyan")  # they leave out what ``sharing.malicious`` clients may have spoilt
SERVER_STEP = ("fedavgm", "fedadam", "fedyogi", "fedadagrad")  # they take a step of their own towards the average
MODES = (OFF, FEDAVG, "fedmedian", *ROBUST, *SERVER_STEP)

_MODE = one_of(*MODES)
_MODE["expected"] += " (krum would hand one client's weights to all as they are: take multikrum)"


@dataclass(frozen=True)
class SharingSettings:
    """Whether clients with the run's small model average it (``sharing.*``), and how; a node has to allow it.

    A client that chose another ``slm.*`` takes part without sharing.
    Any ``mode`` but ``off`` sends each client's weights to the strategy after every round, and names Flower's own
    strategy that makes one model of them (``pdss_fl.aggregation``). ``malicious`` is for how many bad clients a round
    ``fedtrimmedavg``, ``multikrum`` and ``bulyan`` have to make up. ``server_learning_rate`` is the step of
    ``fedavgm``, ``fedadam``, ``fedyogi`` and ``fedadagrad``; 0 takes the one of ``aggregation.RATES``.

    Weights tell about the private text that they were trained on. With ``epsilon`` above 0 they are trained by DP-SGD
    (needs the extra ``dp-sgd``) and the ledger is charged that much for every example, for the whole run of one method,
    at ``delta``; ``clip`` bounds the norm of one example's gradient. That holds under every ``mode``: what is made of
    weights that were released is post-processing, and clients train on from it as from any public weights.
    """

    mode: str = setting(OFF, _MODE)
    malicious: int = setting(1, within(1, 10_000))
    server_learning_rate: float = setting(0.0, NOT_NEGATIVE)
    epsilon: float = setting(0.0, NOT_NEGATIVE)
    delta: float = setting(1e-5, {"check": lambda v: 0 < v <= 1e-3, "expected": "above 0, at most 0.001"})
    clip: float = setting(1.0, within(1e-3, 1e3))  # where float32 is far from its ends

    @property
    def fewest_clients(self) -> int:
        """How many clients of a round have to send weights so that there is an average.

        Of two, the median is the mean, and protects from nobody. Trimming leaves two clients' numbers to be averaged.
        The other two bounds are those of the papers' theorems: 2f + 3 (Krum), 4f + 3 (Bulyan).
        """
        bad = self.malicious
        needs = {"fedmedian": 3, "fedtrimmedavg": 2 * bad + 2, "multikrum": 2 * bad + 3, "bulyan": 4 * bad + 3}
        return needs.get(self.mode, 2)


PLAIN = SharingSettings(mode=FEDAVG)
"""Flower's FedAvg."""


def check_sharing(sharing: SharingSettings, rationale_filter: str, dtype: str, rounds: int) -> None:
    """Refuse settings that have no effect, or under which ``epsilon`` does not hold.

    Raises
    ------
    SettingError
        Naming the two settings that do not go together.
    """
    _check_mode(sharing, rounds)
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


def _check_mode(sharing: SharingSettings, rounds: int) -> None:
    mode, bad, rate = sharing.mode, sharing.malicious, sharing.server_learning_rate
    if bad != 1 and mode not in ROBUST:
        raise SettingError(
            f"sharing.malicious = {bad} has no effect with sharing.mode = {mode!r}: set that to one of "
            f"{', '.join(ROBUST)}, or leave sharing.malicious out"
        )
    if rate and mode not in SERVER_STEP:
        raise SettingError(
            f"sharing.server-learning-rate = {rate!r} has no effect with sharing.mode = {mode!r}: set that to one of "
            f"{', '.join(SERVER_STEP)}, or leave sharing.server-learning-rate out"
        )
    if mode in SERVER_STEP and rounds < 2:
        raise SettingError(
            f"sharing.mode = {mode!r} has no effect with num-server-rounds = {rounds}, since its steps begin at the "
            "first round's average: set num-server-rounds to 2 or more, or sharing.mode to 'fedavg'"
        )
