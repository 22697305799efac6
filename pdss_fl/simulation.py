"""Tells a simulated client from a deployed one."""

from __future__ import annotations

import sys


def in_simulation() -> bool:
    """Return whether this process is a Ray worker, as Flower's simulated clients are.

    A deployed ClientApp runs in a process of its own without Ray. The difference decides whether the
    simulation policy may stand in for a missing node policy, so it does not rest on what a message or
    a run's settings say.
    """
    ray = sys.modules.get("ray")
    return bool(ray and ray.is_initialized() and ray.get_runtime_context().get_actor_id())
