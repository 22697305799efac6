"""Divisions give every example to one client, leave none empty, follow the seed, and become even as alpha grows."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdss_fl.data.division import MIN_PART, Division, divide, divide_sides
from pdss_fl.data.everyday import private_examples
from pdss_fl.data.example import Example
from pdss_fl.errors import DataError

KINDS = ("iid", "dirichlet", "size", "entity")


def examples(count: int, labels: int = 3, things: int = 12, tag: str = "") -> list[Example]:
    return [
        Example(f"{tag} question {i}?", (), f"label {i % labels}", entity=f"thing {i % things}") for i in range(count)
    ]


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(KINDS), st.integers(24, 90), st.integers(1, 6), st.integers(1, 8), st.integers(0, 9),
    st.sampled_from([0.05, 0.5, 5.0]),
)  # fmt: skip
def test_every_example_is_one_clients_and_nobody_is_empty(
    kind: str, count: int, parts: int, labels: int, seed: int, alpha: float
) -> None:
    whole = examples(count, labels)
    try:
        divided = divide(whole, Division(kind, alpha), parts, seed)
    except DataError as err:
        refusal = err.public
    else:
        refusal = ""
    if refusal:
        assert kind in ("dirichlet", "size"), "twelve things of two examples and more suffice for six clients"
        assert "data.partition" in refusal
        assert "data.alpha" in refusal
        return
    assert sorted(e.question for part in divided for e in part) == sorted(e.question for e in whole)
    assert len(divided) == parts
    assert min(len(part) for part in divided) >= MIN_PART
    assert divide(whole, Division(kind, alpha), parts, seed) == divided


@pytest.mark.parametrize("kind", KINDS)
def test_another_seed_divides_otherwise(kind: str) -> None:
    assert divide(examples(90), Division(kind), 3, 1) != divide(examples(90), Division(kind), 3, 2)


@given(st.integers(0, 20))
def test_a_large_alpha_is_even_and_a_small_one_is_not(seed: int) -> None:
    whole = examples(300, labels=3)

    def unevenness(alpha: float) -> int:
        parts = divide(whole, Division("dirichlet", alpha), 5, seed)
        counts = [Counter(e.answer for e in part)[f"label {label}"] for part in parts for label in range(3)]
        return max(counts) - min(counts)

    assert unevenness(1e7) <= 2
    assert unevenness(0.3) >= 20
    sizes = [len(part) for part in divide(whole, Division("size", 1e7), 5, seed)]
    assert max(sizes) - min(sizes) <= 2


def test_labels_with_one_example_are_spread_over_all_clients() -> None:
    sizes = [len(part) for part in divide(examples(400, labels=400), Division("dirichlet", 1e7), 4, 0)]
    assert min(sizes) > 60  # 100 expected, standard deviation 9


def test_entities_stay_whole_and_are_spread_evenly() -> None:
    parts = divide(private_examples(), Division("entity"), 4, 0)
    things = [{e.entity for e in part} for part in parts]
    assert not any(things[i] & things[j] for i in range(4) for j in range(i))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) < 12


def test_both_sides_of_a_data_set_go_by_the_same_things_and_shares() -> None:
    train, test = examples(240, tag="train"), examples(120, tag="test")
    parts = divide_sides(train, test, Division("entity"), 3, 0)
    assert sorted(e.question for t, _ in parts for e in t) == sorted(e.question for e in train)
    for left, right in parts:
        assert {e.entity for e in left} == {e.entity for e in right}
    for left, right in divide_sides(train, test, Division("dirichlet", 0.5), 3, 0):
        shares = [
            [Counter(e.answer for e in side)[f"label {i}"] / len(side) for i in range(3)] for side in (left, right)
        ]
        assert max(abs(a - b) for a, b in zip(*shares, strict=True)) < 0.35


def test_what_cannot_be_divided_is_named_with_a_remedy() -> None:
    with pytest.raises(DataError, match=r"data\.partition = 'size'.*data\.alpha or fewer clients"):
        divide(examples(9), Division("size", 0.01), 5, 0)
    with pytest.raises(DataError, match="fewer clients"):
        divide(examples(30, things=2), Division("entity"), 3, 0)
    with pytest.raises(DataError, match="entity=COLUMN"):
        divide([Example(f"{i}?", (), "a") for i in range(9)], Division("entity"), 2, 0)
