"""The check for third parties passes what is right and catches every kind of false claim."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from pdss_fl.privacy import DocumentGuarantee, PrivacyGuarantee, PrivacyMechanism, Vocabulary, create_mechanism
from pdss_fl.privacy.staircase import Staircase
from pdss_fl.testing import check_mechanism


@pytest.mark.parametrize(("epsilon", "neighbours"), [(1e-6, 3), (0.5, 1), (2.0, 4), (6.0, 3), (12.0, 100), (30.0, 5)])
def test_the_staircase_passes(epsilon: float, neighbours: int) -> None:
    check_mechanism(lambda v: create_mechanism("staircase", v, epsilon=epsilon, neighbours=neighbours))


def test_identity_passes_as_what_it_is() -> None:
    check_mechanism(lambda v: create_mechanism("identity", v, epsilon=1.0, neighbours=1))


class LeakyResponse(PrivacyMechanism):
    """Approximate LDP: keeps a word with probability delta, else releases any."""

    share = 0.1
    claimed = 0.1
    parameters = "share=0.1"  # type: ignore[assignment]

    @property
    def guarantee(self) -> PrivacyGuarantee:
        return PrivacyGuarantee("approximate-ldp", 0.0, self.claimed, "token", "Words are kept with a small chance.")

    def log_prob(self) -> Tensor:
        size = len(self.vocabulary)
        rest = torch.full((size, size), (1 - self.share) / size, dtype=torch.float64)
        return (rest + self.share * torch.eye(size, dtype=torch.float64)).log()

    def perturb(self, ids: Tensor, generator: np.random.Generator | None = None) -> Tensor:
        generator = generator or np.random.default_rng()
        other = generator.integers(len(self.vocabulary), size=len(ids))
        keep = generator.random(len(ids)) < self.share
        return torch.from_numpy(np.where(keep, ids.numpy(), other))


def test_an_approximate_guarantee_passes() -> None:
    check_mechanism(lambda v: LeakyResponse(v, epsilon=1.0, neighbours=1))


class NoMatrix(LeakyResponse):
    @property
    def kept_tokens(self) -> float:
        return self.share + (1 - self.share) / len(self.vocabulary)

    def log_prob(self) -> Tensor:
        raise NotImplementedError("the probabilities depend on the words before")


def test_a_mechanism_without_a_matrix_is_checked_for_the_rest() -> None:
    check_mechanism(lambda v: NoMatrix(v, epsilon=1.0, neighbours=1))


class HalfTheClaim(Staircase):
    @property
    def guarantee(self) -> PrivacyGuarantee:
        return PrivacyGuarantee("pure-ldp", self.epsilon / 2, 0.0, "token", "False.")


class SmallerDelta(LeakyResponse):
    claimed = 0.05


class PassesOnThrough(Staircase):
    """Leaves one word alone: the one that every unknown string becomes."""

    def perturb(self, ids: Tensor, generator: np.random.Generator | None = None) -> Tensor:
        return torch.where(ids == 0, ids, super().perturb(ids, generator))


class StatedPassThrough(Staircase):
    """The same, stated in its matrix."""

    def log_prob_rows(self, ids: Tensor) -> Tensor:
        rows = super().log_prob_rows(ids)
        rows[ids == 0] = -torch.inf
        rows[ids == 0, 0] = 0.0
        return rows


class OutOfTheVocabulary(Staircase):
    """Marks what it does not know with an id of its own."""

    def perturb(self, ids: Tensor, generator: np.random.Generator | None = None) -> Tensor:
        return torch.where(ids == 0, len(self.vocabulary), super().perturb(ids, generator))


class DropsWords(Staircase):
    def perturb(self, ids: Tensor, generator: np.random.Generator | None = None) -> Tensor:
        return super().perturb(ids, generator)[1:]


class OtherSampler(Staircase):
    """Samples at a slightly higher epsilon than its matrix says."""

    def perturb(self, ids: Tensor, generator: np.random.Generator | None = None) -> Tensor:
        sharper = Staircase(self.vocabulary, epsilon=self.epsilon + 0.3, neighbours=self.neighbours)
        return sharper.perturb(ids, generator)


class OtherWithoutSeed(OtherSampler):
    """The same, but only where no generator watches."""

    def perturb(self, ids: Tensor, generator: np.random.Generator | None = None) -> Tensor:
        return super().perturb(ids) if generator is None else Staircase.perturb(self, ids, generator)


class OneDrawForAll(Staircase):
    """Right for every single word, but all words of a text share their noise."""

    def perturb(self, ids: Tensor, generator: np.random.Generator | None = None) -> Tensor:
        table = super().perturb(torch.arange(len(self.vocabulary)), generator)
        return table[ids]


class SeededByItself(Staircase):
    def perturb(self, ids: Tensor, generator: np.random.Generator | None = None) -> Tensor:
        return super().perturb(ids, generator or np.random.default_rng(7))


class IgnoresTheSeed(Staircase):
    def perturb(self, ids: Tensor, generator: np.random.Generator | None = None) -> Tensor:
        return super().perturb(ids)


class SumsToMore(Staircase):
    def log_prob(self) -> Tensor:
        return super().log_prob() + 1e-6


class SinglePrecision(Staircase):
    def log_prob(self) -> Tensor:
        return super().log_prob().float()


class NoReason(Staircase):
    def log_prob(self) -> Tensor:
        raise NotImplementedError


class RareLeak(Staircase):
    """Now and then a far word comes out that the matrix calls all but impossible."""

    def perturb(self, ids: Tensor, generator: np.random.Generator | None = None) -> Tensor:
        out = super().perturb(ids, generator).clone()
        out[::500] = (ids[::500] + 7) % len(self.vocabulary)
        return out


class OneClass(Staircase):
    """Claims half of its epsilon within the one class that holds all words."""

    @property
    def guarantee(self) -> PrivacyGuarantee:
        return PrivacyGuarantee("partition-ldp", self.epsilon / 2, 0.0, "token", "False.")

    @property
    def classes(self) -> list[Tensor]:
        return [torch.arange(len(self.vocabulary))]


class UnstatedClasses(OneClass):
    classes = None  # type: ignore[assignment]


class ByDistance(Staircase):
    """Claims that equal embeddings cannot be told apart."""

    @property
    def guarantee(self) -> PrivacyGuarantee:
        return PrivacyGuarantee("metric-ldp", 1000.0, 0.0, "token", "False.")


class NarrowRange(Staircase):
    bounded_range = 2.5  # type: ignore[assignment]


class LooksAtDocuments(Staircase):
    """Right in what it says of single calls, and sends documents as they are."""

    def perturb_documents(self, documents: Sequence[Tensor], generator: object = None) -> list[Tensor]:
        return list(documents)


class FirstTokenStays(Staircase):
    """Leaves the first token of every call alone."""

    def perturb(self, ids: Tensor, generator: np.random.Generator | None = None) -> Tensor:
        return torch.cat([ids[:1], super().perturb(ids, generator)[1:]])


class NoiseForTwo(Staircase):
    """Two tokens after each other get the same noise: equal ones come out equal."""

    def perturb(self, ids: Tensor, generator: np.random.Generator | None = None) -> Tensor:
        out = super().perturb(ids, generator)
        out[1::2] = torch.where(ids[1::2] == ids[: len(ids) // 2 * 2 : 2], out[: len(ids) // 2 * 2 : 2], out[1::2])
        return out


class NoiseForAllDocuments(Staircase):
    """Every document of a call gets the same noise."""

    def perturb_documents(
        self, documents: Sequence[Tensor], generator: np.random.Generator | None = None
    ) -> list[Tensor]:
        table = self.perturb(torch.arange(len(self.vocabulary)), generator)
        return [table[document] for document in documents]


class OtherRows(Staircase):
    """States its matrix in two ways, and only one is looked at."""

    def log_prob(self) -> Tensor:
        return Staircase(self.vocabulary, epsilon=self.epsilon / 2, neighbours=self.neighbours).log_prob()


class WorthOneToken(Staircase):
    """Claims that a document is worth no more than a token."""

    def compose(self, tokens: int, delta: float) -> DocumentGuarantee:
        return super().compose(min(tokens, 1), delta)


class RootOfTokens(Staircase):
    """Claims that epsilon grows with the root of the number of tokens, at any delta."""

    def compose(self, tokens: int, delta: float) -> DocumentGuarantee:
        epsilon = self.epsilon * (math.sqrt(tokens) if delta else tokens)
        return DocumentGuarantee(epsilon, delta, tokens, "hope")


class OfADocument(Staircase):
    """Claims for a whole document what holds for a token."""

    @property
    def guarantee(self) -> PrivacyGuarantee:
        return PrivacyGuarantee("pure-ldp", self.epsilon, 0.0, "document", "False.")

    def compose(self, tokens: int, delta: float) -> DocumentGuarantee:
        return PrivacyMechanism.compose(self, tokens, delta)


class FalseShare(Staircase):
    kept_tokens = 0.01  # type: ignore[assignment]


class LeftOut(Staircase):
    """Classes that a word is in none of."""

    @property
    def guarantee(self) -> PrivacyGuarantee:
        return PrivacyGuarantee("partition-ldp", self.epsilon, 0.0, "token", "False.")

    @property
    def classes(self) -> list[Tensor]:
        return [torch.arange(1, len(self.vocabulary))]


class OwnClasses(PrivacyMechanism):
    """True: the first word is told from all others, which are not told apart, though all outputs are possible."""

    @property
    def guarantee(self) -> PrivacyGuarantee:
        return PrivacyGuarantee("partition-ldp", 0.0, 0.0, "token", "All but one are alike.")

    @property
    def classes(self) -> list[Tensor]:
        return list(torch.arange(len(self.vocabulary)).split([1, len(self.vocabulary) - 1]))

    def log_prob(self) -> Tensor:
        size = len(self.vocabulary)
        matrix = torch.full((size, size), 1 / size, dtype=torch.float64)
        matrix[0] = torch.tensor([0.9] + [0.1 / (size - 1)] * (size - 1), dtype=torch.float64)
        return matrix.log()

    def perturb(self, ids: Tensor, generator: np.random.Generator | None = None) -> Tensor:
        generator, size = generator or np.random.default_rng(), len(self.vocabulary)
        any_word, kept = generator.integers(size, size=len(ids)), generator.random(len(ids)) < 0.9
        of_first = np.where(kept, 0, generator.integers(1, size, size=len(ids)))
        return torch.from_numpy(np.where(ids.numpy() == 0, of_first, any_word))


def test_a_guarantee_within_stated_classes_passes() -> None:
    check_mechanism(lambda v: OwnClasses(v, epsilon=1.0, neighbours=1))


Made = Callable[[Vocabulary], PrivacyMechanism]


def made(kind: type[PrivacyMechanism], epsilon: float = 2.0, neighbours: int = 3) -> Made:
    return lambda vocabulary: kind(vocabulary, epsilon=epsilon, neighbours=neighbours)


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        (made(HalfTheClaim), "claims epsilon 1, but the worst case is 2"),
        (made(SmallerDelta), "claims delta 0.05 .* worst case is 0.1"),
        (made(PassesOnThrough), "not distributed"),
        (made(StatedPassThrough), "claims epsilon 2, but the worst case is inf"),
        (made(OutOfTheVocabulary), "outside of the vocabulary"),
        (made(DropsWords), "another form"),
        (made(OtherSampler), "not distributed"),
        (made(OtherWithoutSeed), "not distributed"),
        (made(OneDrawForAll), "not distributed"),
        (made(SeededByItself), "two calls give equal outputs"),
        (made(IgnoresTheSeed), "equal seeds give different outputs"),
        (made(SumsToMore), "sums to one but for"),
        (made(SinglePrecision), "not float64"),
        (made(NoReason), "without a reason"),
        (made(RareLeak, epsilon=20.0), "calls rare came out"),
        (made(OneClass), "claims epsilon 1 within a class, but the worst case is 2"),
        (made(UnstatedClasses), "does not state its classes"),
        (made(ByDistance), "claims epsilon 1000 per unit of distance, but the worst case is inf"),
        (made(LooksAtDocuments), "unchanged in documents of one token"),
        (made(FirstTokenStays), "unchanged in calls of one token"),
        (made(NoiseForTwo), "in documents of one token that agree with the one 1 before"),
        (made(NoiseForAllDocuments), "in documents of one token: 80 of 960"),
        (made(OtherRows), "log_prob_rows are not the rows of log_prob"),
        (made(WorthOneToken), "2 tokens compose to epsilon 2 at delta 0 .* two documents have delta"),
        (made(RootOfTokens), "tokens compose to epsilon .* at delta 1e-05 .hope"),
        (made(OfADocument), "2 tokens compose to epsilon 2"),
        (made(FalseShare), "kept_tokens is 0.01, and"),
        (made(LeftOut), "do not hold every id once"),
        (made(NarrowRange), "bounded range of 2.5, but the worst case is 4"),
    ],
)
def test_a_false_claim_is_caught(factory: Made, reason: str) -> None:
    with pytest.raises(AssertionError, match=reason):
        check_mechanism(factory)
