"""Tokens and their keys: who is let in, and for how long."""

from __future__ import annotations

import stat
import time
from pathlib import Path

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdss_fl.errors import SettingError
from pdss_fl.llm.tokens import ALGORITHM, AUDIENCE, Caller, TokenIssuer, TokenRefused, create_key, read_key, verify

KEY, OTHER = b"k" * 32, b"o" * 32


def token(seconds: float = 100.0, offset: float = 0.0, key: bytes = KEY, node: int = 7) -> str:
    """Make a token on a machine whose clock is ``offset`` seconds ahead."""
    return TokenIssuer(key, 12, seconds, lambda: time.time() + offset).token(node)


def test_a_token_says_for_which_run_and_node_it_is() -> None:
    caller = verify(token(), KEY, 0.0)
    assert caller == Caller(12, 7)
    assert caller.tenant != verify(token(node=8), KEY, 0.0).tenant
    large = 2**64 - 1
    assert verify(TokenIssuer(KEY, large, 10).token(large), KEY, 0.0) == Caller(large, large)


def signed(key: bytes | None = KEY, algorithm: str = ALGORITHM, **changes: object) -> str:
    """Make a good token with changed claims; a claim that is ``None`` is left out."""
    claims = {"aud": AUDIENCE, "scope": "generate", "run": "1", "node": "1", "iat": 1, "exp": 2**40, **changes}
    return jwt.encode({k: v for k, v in claims.items() if v is not None}, key, algorithm)


def test_claims_as_they_should_be_are_accepted() -> None:
    assert verify(signed(), KEY, 0.0) == Caller(1, 1)


@pytest.mark.parametrize(
    ("made", "text", "scope"),
    [
        (token(key=OTHER), "not one of this server's key", False),
        (token(offset=-100_000), "has expired", False),
        (token(offset=100_000), "not valid yet", False),
        ("", "not one of this server's key", False),
        ("a.b.c", "not one of this server's key", False),
        ("x" * 100_000, "not one of this server's key", False),
        (signed(aud="other"), "another service", True),
        (signed(scope="admin"), "does not allow to generate", True),
        (signed(exp=None), "not one of", False),
        (signed(run="x"), "not one of", False),
        (signed(run=float("inf")), "not one of", False),
        (signed(node=None), "not one of", False),
        (signed(None, "none"), "not one of", False),
    ],
)
def test_any_other_token_is_refused_with_a_reason(made: str, text: str, scope: bool) -> None:
    with pytest.raises(TokenRefused, match=text) as refused:
        verify(made, KEY, 0.0)
    assert refused.value.scope is scope


@pytest.mark.parametrize(
    ("offset", "leeway", "accepted"),
    [(30, 60, True), (-130, 60, True), (90, 60, False), (-190, 60, False), (30, 0, False), (-130, 0, False)],
)
def test_clocks_may_differ_by_the_leeway_and_no_more(offset: float, leeway: float, accepted: bool) -> None:
    """The tokens are good for 100 seconds."""
    made = token(100.0, offset)
    if accepted:
        assert verify(made, KEY, leeway) == Caller(12, 7)
    else:
        with pytest.raises(TokenRefused):
            verify(made, KEY, leeway)


@given(st.integers(0, 10_000), st.characters(codec="ascii"))
def test_a_token_with_another_character_anywhere_is_refused(place: int, character: str) -> None:
    good = token()
    place %= len(good)
    changed = good[:place] + character + good[place + 1 :]
    try:
        assert verify(changed, KEY, 0.0) == Caller(12, 7)
        # Base64 has spare bits in the last character of a part: the same bytes again, so the same token.
        assert jwt.decode(changed, KEY, [ALGORITHM], audience=AUDIENCE) == jwt.decode(
            good, KEY, [ALGORITHM], audience=AUDIENCE
        )
    except TokenRefused:
        assert changed != good


def test_a_key_is_random_private_and_never_overwritten(tmp_path: Path) -> None:
    create_key(tmp_path / "a")
    create_key(tmp_path / "b")
    keys = {read_key(tmp_path / name, "--token-key") for name in "ab"}
    assert len(keys) == 2
    assert min(map(len, keys)) >= 32
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600
    with pytest.raises(SettingError, match="exists already"):
        create_key(tmp_path / "a")
    assert read_key(tmp_path / "a", "--token-key") in keys
    with pytest.raises(SettingError, match="cannot be written"):
        create_key(tmp_path / "missing" / "a")


def test_a_key_file_that_others_can_read_or_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    with pytest.raises(SettingError, match="PDSS_TOKEN_KEY: the key file cannot be read"):
        read_key(path, "PDSS_TOKEN_KEY")
    create_key(path)
    path.chmod(0o644)
    with pytest.raises(SettingError, match="chmod 600"):
        read_key(path, "--token-key")
    path.chmod(0o600)
    path.write_text("short\n")
    with pytest.raises(SettingError, match="holds 5 bytes"):
        read_key(path, "--token-key")
