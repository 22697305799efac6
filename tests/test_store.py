"""A client's files: written whole, private to their owner, and refused early where they cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from pdss_fl.errors import StoreError
from pdss_fl.files import write_atomically
from pdss_fl.store import ClientStore, private_seed


def test_what_was_asked_and_answered_outlives_the_process(tmp_path: Path) -> None:
    ClientStore(tmp_path / "state").save_asked("pdss", 1, ["b", "a"])
    ClientStore(tmp_path / "state").save_rationales("pdss", {"a": {"raw": "x", "decoded": None}})
    again = ClientStore(tmp_path / "state")
    again.save_rationales("pdss", {"b": {"raw": "y", "decoded": "z"}})
    assert again.load_asked("pdss", 1) == ["b", "a"]
    assert set(again.load_rationales("pdss")) == {"a", "b"}
    assert again.load_rationales("dss") == {}
    assert (tmp_path / "state").stat().st_mode & 0o077 == 0


def test_rationales_for_a_round_that_asked_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="sent no prompts"):
        ClientStore(tmp_path).load_asked("pdss", 3)


def test_a_state_directory_that_cannot_be_made_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="state-dir") as refusal:
        ClientStore(tmp_path / "file" / "state")
    assert str(tmp_path) not in str(refusal.value)


def test_a_damaged_file_is_named_and_its_path_kept_private(tmp_path: Path) -> None:
    store = ClientStore(tmp_path)
    store.save_asked("pdss", 1, ["a"])
    (tmp_path / "asked" / "pdss-1.json").write_text('["a"')
    with pytest.raises(StoreError, match="damaged") as refusal:
        store.load_asked("pdss", 1)
    assert str(tmp_path) not in refusal.value.public
    assert str(tmp_path) in refusal.value.local


@pytest.mark.parametrize("method", ["../../etc", "a/b", "", "A"])
def test_a_method_cannot_name_a_path(tmp_path: Path, method: str) -> None:
    with pytest.raises(StoreError, match="plain word"):
        ClientStore(tmp_path).slm_directory(method)


def test_a_write_replaces_or_leaves_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")
    write_atomically(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("left", [b"", b"\0" * 64, b"ab"])
def test_an_order_key_that_is_no_secret_any_more_is_refused(tmp_path: Path, left: bytes) -> None:
    private_seed(tmp_path, "0 120")
    (tmp_path / "order.key").write_bytes(left)
    with pytest.raises(StoreError, match=r"order\.key below this node's state-dir is damaged"):
        private_seed(tmp_path, "0 120")
