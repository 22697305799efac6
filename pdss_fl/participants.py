"""Which clients take part in a round: those that are connected, or a part of them that all methods of a run share."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Collection

from flwr.serverapp import Grid

from pdss_fl.errors import QuorumLost

logger = logging.getLogger("pdss_fl.server")


def connected(grid: Grid, wanted: int, setting: str, timeout: float) -> list[int]:
    """Return the ids of all clients that are connected, sorted, as soon as they are enough.

    Parameters
    ----------
    grid : Grid
        Flower's.
    wanted : int
        How many have to be there.
    setting : str
        The setting that asks for them, for the error.
    timeout : float
        Seconds to wait (``perturb-timeout``).

    Raises
    ------
    QuorumLost
        If fewer are there after the timeout.
    """
    started = last = time.monotonic()
    while len(found := sorted(grid.get_node_ids())) < wanted:
        if time.monotonic() - started > timeout:
            raise QuorumLost(
                f"{len(found)} clients are connected after {timeout:g} s (perturb-timeout), fewer than "
                f"{setting} = {wanted}: start more, or lower it"
            )
        time.sleep(1.0)
        if time.monotonic() - last >= 15.0:
            last = time.monotonic()
            logger.info("%d of %d clients are connected", len(found), wanted)
    return found


def draw(nodes: Collection[int], size: int, seed: int, server_round: int) -> list[int]:
    """Return the clients of a round: a part of ``nodes`` that depends on the arguments alone.

    So every method of a run trains the same clients in a round, a resumed run goes on with them, and equal runs
    are equal. Each client has a place of its own in the round's order: if one is lost or comes between two methods,
    at most one other changes. The order is public, as the run's ``seed`` is. Nothing rests on its being secret: a
    server may ask whom it likes, and no guarantee here counts on a client's not being asked.

    Parameters
    ----------
    nodes : Collection[int]
        Node ids, in any order.
    size : int
        How many are wanted; all of them if there are no more.
    seed : int
        The run's ``seed``.
    server_round : int
        From 1.

    Returns
    -------
    list[int]
        Sorted.
    """

    def place(node: int) -> bytes:
        return hashlib.sha256(f"{seed} {server_round} {node}".encode()).digest()

    return sorted(sorted(nodes, key=place)[:size])
