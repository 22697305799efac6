"""Logging of the project's own processes: one plain line an event, ids and counts only."""

from __future__ import annotations

import logging
import os
import sys

from pythonjsonlogger.json import JsonFormatter

LOG_PREFIX = "pdss "


def configure_logging() -> None:
    """Send this project's log to standard error once; a process that configured it itself is left alone.

    The model libraries' own progress bars, one for every small model that is loaded, are turned off.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if "transformers" in sys.modules:
        # Waits until another thread has imported it whole, which `from transformers.utils import` would not do.
        import transformers

        transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logger = logging.getLogger("pdss_fl")
    if logger.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(LOG_PREFIX + "%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def log_as_json() -> None:
    """Write one JSON object a line from now on: time, level, name, message, and what an event carries."""
    formatter = JsonFormatter(
        "{levelname}{name}{message}",
        style="{",
        rename_fields={"levelname": "level", "name": "logger"},
        timestamp=True,
    )
    for handler in logging.getLogger("pdss_fl").handlers:
        handler.setFormatter(formatter)
