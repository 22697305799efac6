"""What the ServerApp shows an LLM server: tokens of its run, and its certificate.

Both come from the ServerApp's environment, which the machine's owner sets, and never from the run's settings,
which every node receives.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from pdss_fl.errors import SettingError
from pdss_fl.llm.tls import ClientTls
from pdss_fl.llm.tokens import KEY_VARIABLE, TokenIssuer, read_key

CERTIFICATE_VARIABLE, TLS_KEY_VARIABLE = "PDSS_TLS_CERTIFICATE", "PDSS_TLS_KEY"


def token_maker(run: int, seconds: float) -> Callable[[int], str] | None:
    """Return what makes a node's token (node 0: the strategy's own), ``None`` without ``PDSS_TOKEN_KEY``."""
    path = _path(KEY_VARIABLE)
    return None if path is None else TokenIssuer(read_key(path, KEY_VARIABLE), run, seconds).token


def client_tls(root_certificates: str) -> ClientTls | None:
    """Return the TLS files of the strategy, ``None`` where ``llm.root-certificates`` is empty."""
    if not root_certificates:
        return None
    return ClientTls(Path(root_certificates), _path(CERTIFICATE_VARIABLE), _path(TLS_KEY_VARIABLE))


def _path(variable: str) -> Path | None:
    value = os.environ.get(variable, "")
    if value and not Path(value).is_absolute():
        raise SettingError(f"the environment's {variable} is a relative path: give an absolute one")
    return Path(value) if value else None
