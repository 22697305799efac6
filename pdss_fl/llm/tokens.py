"""Signed bearer tokens: who may ask an LLM server, for which run and node, and until when.

A token is a JSON Web Token (RFC 7519) signed with HMAC-SHA-256. The key is a file that the server
(``pdss serve --token-key``) and the strategy (``PDSS_TOKEN_KEY`` in the ServerApp's environment) share;
it never is a run's setting, since every node receives those.
"""

from __future__ import annotations

import os
import secrets
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jwt

from pdss_fl.errors import SettingError

ALGORITHM = "HS256"
AUDIENCE = "pdss.v1.RationaleService"
GENERATE = "generate"
KEY_VARIABLE = "PDSS_TOKEN_KEY"
MIN_KEY_BYTES = 32
MAX_TOKEN_CHARS = 2_000


class TokenRefused(Exception):
    """A token is missing, damaged, expired, of another key, or (``scope``) not for what was asked.

    The text says which, without a word of the token.
    """

    def __init__(self, text: str, scope: bool = False) -> None:
        super().__init__(text)
        self.text, self.scope = text, scope


@dataclass(frozen=True)
class Caller:
    """Whom a token was made for; ``tenant`` is what shares and caches go by."""

    run: int
    node: int

    @property
    def tenant(self) -> str:
        """One name a run and node."""
        return f"{self.run}/{self.node}"


def create_key(path: Path) -> None:
    """Write a fresh random key that only its owner can read; an existing file is left alone.

    Raises
    ------
    SettingError
        If the file exists or cannot be written.
    """
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(2 * MIN_KEY_BYTES) + "\n")
    except FileExistsError:
        raise SettingError("the key file exists already; remove it first, or name another", str(path)) from None
    except OSError as error:
        raise SettingError("the key file cannot be written; name another", f"{path}: {error}") from None


def read_key(path: Path, setting: str) -> bytes:
    """Read a key file; ``setting`` is what named it.

    Raises
    ------
    SettingError
        If it cannot be read, if others than its owner could read it, or if it is too short to be a key.
    """
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            key = file.read(10_000).strip()
    except OSError as error:
        raise SettingError(f"{setting}: the key file cannot be read", f"{path}: {error}") from None
    if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise SettingError(f"{setting}: other users can read the key file; run chmod 600 on it", str(path))
    if len(key) < MIN_KEY_BYTES:
        raise SettingError(
            f"{setting}: the file holds {len(key)} bytes; a key has at least {MIN_KEY_BYTES}: make one with "
            "`pdss token-key FILE`",
            str(path),
        )
    return key


@dataclass(frozen=True)
class TokenIssuer:
    """Makes the tokens of one run.

    Parameters
    ----------
    key : bytes
        See ``read_key``.
    run : int
        Flower's id of the run.
    seconds : float
        How long a token is good.
    clock : Callable[[], float] (default: time.time)
        Seconds since the epoch.
    """

    key: bytes
    run: int
    seconds: float
    clock: Callable[[], float] = time.time

    def token(self, node: int) -> str:
        """Return a fresh token for a node, 0 for the strategy itself."""
        now = int(self.clock())
        claims = {
            "aud": AUDIENCE, "scope": GENERATE, "run": str(self.run), "node": str(node),
            "iat": now, "exp": now + int(self.seconds),
        }  # fmt: skip
        return jwt.encode(claims, self.key, ALGORITHM)


def verify(token: str, key: bytes, leeway: float) -> Caller:
    """Return whom a token was made for.

    Parameters
    ----------
    token : str
        As received.
    key : bytes
        See ``read_key``.
    leeway : float
        Seconds by which the clocks of strategy and server may differ.

    Raises
    ------
    TokenRefused
        If it is not a token of this key, or is expired, or is not for generating.
    """
    try:
        claims = jwt.decode(
            token[:MAX_TOKEN_CHARS], key, [ALGORITHM], audience=AUDIENCE, leeway=leeway,
            options={"require": ["aud", "exp", "iat", "scope", "run", "node"]},
        )  # fmt: skip
        caller = Caller(int(claims["run"]), int(claims["node"]))
    except jwt.ExpiredSignatureError:
        raise TokenRefused("the token has expired") from None
    except jwt.ImmatureSignatureError:
        raise TokenRefused("the token is not valid yet; compare the clocks of strategy and server") from None
    except jwt.InvalidAudienceError:
        raise TokenRefused("the token is for another service", scope=True) from None
    except (jwt.InvalidTokenError, ValueError, TypeError, OverflowError):
        raise TokenRefused("the token is not one of this server's key") from None
    if GENERATE not in str(claims["scope"]).split():
        raise TokenRefused("the token does not allow to generate", scope=True)
    return caller
