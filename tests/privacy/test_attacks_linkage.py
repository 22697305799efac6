"""Linking released documents with a public bank, against enumeration of all assignments."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pdss_fl.privacy import PrivacyMechanism, Vocabulary, create_mechanism
from pdss_fl.privacy.attacks import AttackResult, Document, Releases, link, run_attacks

SIZE = 40


def a_vocabulary() -> Vocabulary:
    rows = torch.randn(SIZE - 2, 3, generator=torch.Generator().manual_seed(0))
    return Vocabulary([f"w{i}" for i in range(SIZE - 2)], rows, blanks=2)


def staircase(epsilon: float) -> PrivacyMechanism:
    return create_mechanism("staircase", a_vocabulary(), epsilon=epsilon, neighbours=3)


def a_bank(entries: int, noise: np.random.Generator, lengths: tuple[int, ...] = (3, 4)) -> list[Document]:
    def text(n: int) -> Tensor:
        return torch.from_numpy(noise.integers(SIZE - 2, size=n))

    return [
        Document(text(int(noise.choice(lengths))), tuple(text(int(noise.integers(1, 3))) for _ in range(3)))
        for _ in range(entries)
    ]


def shuffled(document: Document, noise: np.random.Generator, keep: int | None = None) -> Document:
    order = noise.permutation(len(document.choices))[:keep]
    return Document(document.question, tuple(document.choices[i] for i in order))


def released_of(mechanism: PrivacyMechanism, raw: list[Document], noise: np.random.Generator) -> list[Document]:
    return [d.of_ids(mechanism.perturb(d.ids, noise)) for d in raw]


def by_enumeration(released: Document, bank: list[Document], log_prob: Tensor) -> list[float]:
    def fit(y: Tensor, x: Tensor) -> float:
        return float(log_prob[x, y].sum()) if len(x) == len(y) else -np.inf

    def choices(entry: Document) -> float:
        orders = itertools.permutations(entry.choices, len(released.choices))
        return max(sum(fit(y, x) for y, x in zip(released.choices, order, strict=True)) for order in orders)

    return [fit(released.question, entry.question) + choices(entry) for entry in bank]


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.floats(0.1, 12), st.sampled_from([3, 2]))
def test_the_linked_entry_is_the_likeliest_over_all_orders(seed: int, epsilon: float, sent: int) -> None:
    noise, mechanism = np.random.default_rng(seed), staircase(epsilon)
    bank = a_bank(12, noise)
    raw = [shuffled(bank[i], noise, sent) for i in (0, 3, 7)]
    released = released_of(mechanism, raw, noise)
    log_prob = mechanism.log_prob()
    for document, found in zip(released, link(released, bank, mechanism, noise), strict=True):
        scores = by_enumeration(document, bank, log_prob)
        assert scores[found] == pytest.approx(max(scores), abs=1e-9)


def attacked(epsilon: float | None, entries: int = 60, seed: int = 0) -> list[AttackResult]:
    noise = np.random.default_rng(seed)
    mechanism = staircase(epsilon) if epsilon else create_mechanism("identity", a_vocabulary())
    bank = a_bank(entries, noise)
    truth = noise.integers(entries, size=200).tolist()
    raw = [shuffled(bank[i], noise) for i in truth]
    released = released_of(mechanism, raw, noise)
    results = run_attacks(Releases(mechanism, raw, released), bank=bank, truth=truth, generator=noise)
    assert all(result.passes for result in results)
    return [result for result in results if result.target == "document"]


def test_without_perturbation_every_document_is_found() -> None:
    lengths, found = attacked(None)
    assert (found.exact.value, found.cap) == (1.0, 1.0)
    assert found.stem is None
    assert lengths.exact.value < 0.5
    assert lengths.cap is None


def test_at_a_tiny_epsilon_words_tell_no_more_than_lengths_do() -> None:
    lengths, found = attacked(1e-4)
    assert found.exact.low < lengths.exact.value < found.exact.high
    assert found.blind is not None
    assert found.blind.low < lengths.exact.value < found.blind.high
    assert found.cap is not None
    assert found.cap < 0.5
    assert "chance is 0.017" in found.note


def test_more_is_found_at_a_higher_epsilon() -> None:
    assert attacked(2.0)[1].exact.high < attacked(8.0)[1].exact.low


def test_lengths_alone_find_what_has_a_length_of_its_own() -> None:
    noise = np.random.default_rng(0)
    bank = [Document(torch.zeros(n, dtype=torch.long)) for n in (1, 2, 3)]
    assert link(list(reversed(bank)), bank, None, noise) == [2, 1, 0]
    assert link([Document(torch.zeros(9, dtype=torch.long))], bank, None, noise) == [-1]
    same = [Document(torch.zeros(2, dtype=torch.long))] * 4
    picked = np.bincount(link(same * 500, same, None, noise), minlength=4)
    assert picked.min() > 400, "equally likely entries are decided by lot"


def test_a_document_that_is_not_in_the_bank_is_never_found() -> None:
    noise, mechanism = np.random.default_rng(0), staircase(5.0)
    raw = a_bank(5, noise)
    results = run_attacks(Releases(mechanism, raw, raw), bank=a_bank(5, noise), truth=[-1] * 5)
    assert all(result.exact.hits == 0 for result in results if result.target == "document")


def test_entries_with_fewer_choices_than_were_sent_are_impossible() -> None:
    noise, one = np.random.default_rng(0), torch.tensor([1])
    bank = [Document(one, (one,)), Document(one, (one, one, one))]
    assert link([Document(one, (one, one))], bank, staircase(1.0), noise) == [1]


def test_nothing_is_claimed_of_a_document_part_of_which_passed_through() -> None:
    noise, mechanism = np.random.default_rng(0), staircase(1.0)
    raw = a_bank(5, noise)
    masks = [torch.arange(len(d.ids)) > 0 for d in raw]
    results = run_attacks(Releases(mechanism, raw, raw, protected=masks), bank=raw, truth=list(range(5)))
    assert [result.cap for result in results if result.target == "document"] == [None, None]
