"""Logging of the project's own processes: one plain line an event, ids and counts only."""

from __future__ import annotations

import logging
import sys

LOG_PREFIX = "pdss "


def configure_logging() -> None:
    """Send this project's log to standard error once; a process that configured it itself is left alone."""
    logger = logging.getLogger("pdss_fl")
    if logger.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(LOG_PREFIX + "%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
