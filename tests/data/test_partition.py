"""Partitions are disjoint, complete, nearly equal and the same for every caller."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdss_fl.data.example import Example
from pdss_fl.data.partition import entity_partition, iid_partition, train_test_split
from pdss_fl.errors import DataError


def examples(count: int) -> list[Example]:
    return [Example(f"question {i}?", ("yes", "no"), "yes") for i in range(count)]


@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 5))
def test_parts_are_disjoint_complete_and_nearly_equal(count: int, parts: int, seed: int) -> None:
    whole = examples(count)
    divided = [iid_partition(whole, i, parts, seed) for i in range(parts)]
    assert sorted(e.question for part in divided for e in part) == sorted(e.question for e in whole)
    sizes = [len(part) for part in divided]
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(1, 60), st.integers(1, 9))
def test_slices_are_contiguous_and_complete(count: int, parts: int) -> None:
    whole = examples(count)
    divided = [entity_partition(whole, i, parts) for i in range(parts)]
    assert [e for part in divided for e in part] == whole
    sizes = [len(part) for part in divided]
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(2, 60), st.integers(1, 80), st.integers(1, 80), st.integers(0, 5))
def test_training_and_test_share_no_content(count: int, train: int, test: int, seed: int) -> None:
    twice = examples(count) * 2
    left, right = train_test_split(twice, train, test, seed)
    assert not {e.question for e in left} & {e.question for e in right}
    assert 1 <= len(left) <= train
    assert 1 <= len(right) <= min(test, max(1, count // 4))


def test_another_order_of_choices_is_the_same_question() -> None:
    twice = [Example("q?", ("yes", "no"), "yes"), Example("q?", ("no", "yes"), "yes"), *examples(3)]
    left, right = train_test_split(twice, 9, 9, 0)
    assert len(left) + len(right) == 4


def test_one_example_is_too_few() -> None:
    with pytest.raises(DataError, match="at least 2"):
        train_test_split(examples(1) * 3, 1, 1, 0)
