"""Attacks on whole documents: on the staircase as strong as the optimum, and able to read what is not protected."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pdss_fl.privacy import Staircase, create_mechanism
from pdss_fl.privacy.attacks import (
    Document,
    Releases,
    document_log_prob,
    empirical_success,
    optimal_success,
    posterior_attack,
    run_attacks,
    token_cap,
    token_overlap,
    word_prior,
)
from pdss_fl.privacy.document_audit import every_document
from tests.privacy.rewriters import NAMES, copier, make, table, words

PRIOR = torch.arange(40, 0, -1, dtype=torch.float64) ** 1.2
PRIOR /= PRIOR.sum()


def drawn(count: int, length: int, seed: int) -> list[Tensor]:
    generator = np.random.default_rng(seed)
    return list(torch.from_numpy(generator.choice(40, size=(count, length), p=PRIOR.numpy())))


def error(rate: float, trials: int) -> float:
    return 4 * math.sqrt(rate * (1 - rate) / trials)


@pytest.mark.parametrize("epsilon", [2.0, 5.0])
def test_on_one_word_of_the_staircase_the_posterior_attack_is_the_optimum(epsilon: float) -> None:
    mechanism = Staircase(words(40), epsilon=epsilon, neighbours=3)
    private = drawn(4000, 1, 0)
    released = mechanism.perturb_documents(private, np.random.default_rng(1))
    found = posterior_attack(mechanism, private, released, list(torch.arange(40)[:, None]), PRIOR)
    best = optimal_success(mechanism, PRIOR)
    assert found == pytest.approx(best, abs=error(best, 4000))


def test_on_longer_documents_with_all_of_them_in_the_bank_it_still_is() -> None:
    mechanism, generator = Staircase(words(6), epsilon=3.0, neighbours=2), np.random.default_rng(0)
    bank = every_document(6, 3)
    own = word_prior([torch.tensor([0, 0, 0, 1, 2, 2, 3, 4, 5])], 6, 0.0)
    private = list(torch.from_numpy(generator.choice(6, size=(1500, 3), p=own.numpy())))
    released = mechanism.perturb_documents(private, generator)
    found = posterior_attack(mechanism, private, released, list(bank), own[bank].prod(dim=1))
    best = optimal_success(mechanism, own)
    assert found == pytest.approx(best, abs=error(best, 4500))


@pytest.mark.parametrize("length", [1, 6])
@pytest.mark.parametrize("epsilon", [2.0, 5.0])
def test_on_the_staircase_counting_on_shadow_documents_comes_to_the_optimum(epsilon: float, length: int) -> None:
    mechanism = Staircase(words(40), epsilon=epsilon, neighbours=3)
    private, shadow = drawn(3000 // length, length, 2), drawn(30_000 // length, length, 3)
    released, shadow_released = (
        mechanism.perturb_documents(of, np.random.default_rng(i)) for i, of in enumerate((private, shadow))
    )
    found = empirical_success(private, released, shadow, shadow_released, words(40))
    best = optimal_success(mechanism, PRIOR)
    assert found <= best + error(best, 3000)
    assert found >= best - error(best, 3000) - 0.02


@pytest.mark.parametrize("name", NAMES)
def test_the_law_of_documents_is_what_the_posterior_attack_reads(name: str) -> None:
    mechanism = make(name, words(5), table(5))
    documents = every_document(5, 2)
    assert torch.equal(
        document_log_prob(mechanism, documents, documents[:7]), mechanism.log_prob_documents(documents, documents[:7])
    )
    staircase = Staircase(words(5), epsilon=2.0, neighbours=2)
    law = document_log_prob(staircase, documents, documents)
    rows = staircase.log_prob()
    torch.testing.assert_close(law, (rows[:, None, :, None] + rows[None, :, None, :]).reshape(25, 25))


def test_what_promises_nothing_is_read_and_what_promises_more_is_read_less() -> None:
    """The rewriter scrambles places, so that only who knows it can read it: a bank of candidates is enough."""

    def reversed_copy(documents: Tensor | None, prefixes: Tensor) -> Tensor:
        if documents is None:
            return torch.zeros(len(prefixes), 40)
        return copier(40)(documents.flip(1), prefixes)

    bank, private = drawn(60, 4, 4), drawn(60, 4, 4)
    read = {}
    for name, epsilon in [
        ("encoder-empirical", 1.0),
        ("encoder-top", 5.0),
        ("encoder-top", 2.0),
        ("encoder-top", 1e-3),
    ]:
        mechanism = make(name, words(40), reversed_copy, epsilon, neighbours=2)
        released = mechanism.perturb_documents(private, np.random.default_rng(0))
        read[name, epsilon] = posterior_attack(mechanism, private, released, bank)
    assert read["encoder-empirical", 1.0] == 1.0
    assert 1.0 > read["encoder-top", 5.0] > read["encoder-top", 2.0] > read["encoder-top", 1e-3]
    assert read["encoder-top", 1e-3] < 0.25


def test_counting_finds_words_that_moved_to_another_place() -> None:
    """Two-word documents come out in either order: the other place tells as much as the own one."""
    private, shadow = drawn(400, 2, 5), drawn(8000, 2, 6)
    generator = np.random.default_rng(0)
    released, moved = ([d.flip(0) if generator.random() < 0.9 else d for d in of] for of in (private, shadow))
    assert empirical_success(private, released, shadow, moved, words(40)) > 0.8
    still = [torch.zeros(2, dtype=torch.long)] * len(private), [torch.zeros(2, dtype=torch.long)] * len(shadow)
    chance = empirical_success(private, still[0], shadow, still[1], words(40))
    assert chance == pytest.approx(float(PRIOR.max()), abs=error(float(PRIOR.max()), 800))


def test_filling_words_are_not_counted() -> None:
    vocabulary = words(40, blanks=4)
    private = [torch.tensor([1, 2, 37, 38])] * 8
    mechanism = create_mechanism("identity", vocabulary)
    assert posterior_attack(mechanism, private, private, [private[0]]) == 1.0
    assert empirical_success(private, private, private, private, vocabulary) == 1.0
    assert posterior_attack(mechanism, private, private, [torch.tensor([5])]) == 0.0, "no candidate is as long"
    only_filling = [torch.tensor([37, 38])] * 8
    for attack in (
        lambda: posterior_attack(mechanism, only_filling, only_filling, only_filling),
        lambda: empirical_success(only_filling, only_filling, private, private, vocabulary),
        lambda: token_overlap(only_filling, only_filling, vocabulary.words),
    ):
        with pytest.raises(ValueError, match="word"):
            attack()


def test_overlap_is_the_share_of_private_words_that_come_out_anywhere() -> None:
    private = [torch.tensor([1, 1, 2, 9]), torch.tensor([3])]
    released = [torch.tensor([9, 1, 5, 5]), torch.tensor([4])]
    assert token_overlap(private, released) == pytest.approx(2 / 5)
    assert token_overlap(private, released, words=9) == pytest.approx(1 / 4)
    assert token_overlap(private, private) == 1.0


@pytest.mark.parametrize("name", ["encoder-top", "encoder-composed"])
def test_caps_count_all_words_of_a_document(name: str) -> None:
    """One private word may be in every released one: its cap is the document's epsilon, not the word's."""
    mechanism = make(name, words(40), copier(40), 2.0, neighbours=1)
    cap = token_cap(mechanism, 5)
    assert cap is not None
    assert (cap.log_gain, cap.unit) == (10.0, "document")
    private = drawn(40, 5, 7)
    documents = [Document(ids, ()) for ids in private]
    out = [Document(ids, ()) for ids in mechanism.perturb_documents(private, np.random.default_rng(0))]
    results = run_attacks(Releases(mechanism, documents, out), released_again=50, generator=np.random.default_rng(0))
    assert results
    assert all(result.passes for result in results)
