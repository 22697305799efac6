"""Attacks that read the context, with language models whose every answer is known; and answer inference."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from pdss_fl.privacy import Vocabulary, create_mechanism
from pdss_fl.privacy.attacks import AttackResult, Document, Releases, Seen, candidates, run_attacks, word_prior

ANIMALS, PARTS = ("robin", "trout", "horse", "spider"), ("wings", "fins", "hooves", "webs")
WORDS = ["the", "has", *ANIMALS, *PARTS]
ROWS = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
VOCABULARY = Vocabulary(WORDS, ROWS, blanks=0)
SENTENCES = [VOCABULARY.encode(f"the {a} has {p}") for a, p in zip(ANIMALS, PARTS, strict=True)]


def fits(words: Sequence[str], at: int, word: str) -> float:
    """Return a toy language's log-score: "the ANIMAL has its own PART"."""
    kinds = [("the",), ANIMALS, ("has",), PARTS]
    score = 0.0 if word in kinds[at] else -20.0
    other = {1: 3, 3: 1}.get(at)
    if other is not None and word in (*ANIMALS, *PARTS) and words[other] in (*ANIMALS, *PARTS):
        place = (*ANIMALS, *PARTS).index(word) % 4
        score -= 0.0 if (*ANIMALS, *PARTS).index(words[other]) % 4 == place else 3.0
    return score


def masked(texts: Sequence[Sequence[str]], positions: Sequence[int]) -> Tensor:
    return torch.tensor([[fits(t, i, w) for w in VOCABULARY.tokens] for t, i in zip(texts, positions, strict=True)])


def score(texts: Sequence[str]) -> Tensor:
    """Score whole sentences of the same language, or answers by their length."""
    found = []
    for text in texts:
        words = text.split()
        found.append(sum(fits(words, i, w) for i, w in enumerate(words)) if len(words) == 4 else float(len(text)))
    return torch.tensor(found)


def releases(epsilon: float, count: int = 400, seed: int = 0) -> Releases:
    noise = np.random.default_rng(seed)
    mechanism = create_mechanism("staircase", VOCABULARY, epsilon=epsilon, neighbours=2)
    raw = [Document(SENTENCES[i]) for i in noise.integers(4, size=count)]
    released = [Document(mechanism.perturb(d.ids, noise)) for d in raw]
    return Releases(mechanism, raw, released, shadow=[Document(s) for s in SENTENCES])


def by_name(results: list[AttackResult]) -> dict[str, AttackResult]:
    return {result.name: result for result in results}


def test_context_finds_more_than_the_optimal_attack_without_it_and_stays_below_the_cap() -> None:
    results = run_attacks(releases(2.5), masked=masked, score=score, generator=np.random.default_rng(0))
    assert all(result.passes for result in results)
    rates = by_name(results)
    contextual, masks = rates["contextual Bayes over 10 candidates"], rates["masked language model"]
    assert contextual.exact.low > rates["optimal context-free Bayes, exact"].exact.value
    assert masks.exact.low > 0.5, "a toy language tells most of what stands where"
    assert masks.blind is not None
    assert masks.blind.high > masks.exact.low, "it reads nothing of the word itself: blind it is as good"


def test_contextual_bayes_weighs_the_posterior_with_the_context() -> None:
    """One document, one target, all candidates: against the sum by hand."""
    given = releases(1.0, count=30)
    shown: list[str] = []

    def spy(texts: Sequence[str]) -> Tensor:
        shown.extend(texts)
        return score(texts)

    found = by_name(run_attacks(given, score=spy, generator=np.random.default_rng(0)))
    ids, posterior = candidates(given.mechanism, word_prior(SENTENCES, len(VOCABULARY)), 10)
    hits = 0
    for raw, out in zip(given.raw, given.released, strict=True):
        for i, y in enumerate(out.ids.tolist()):
            totals = []
            for candidate, log_posterior in zip(ids[y].tolist(), posterior[y].tolist(), strict=True):
                changed = [*out.ids[:i].tolist(), candidate, *out.ids[i + 1 :].tolist()]
                words = VOCABULARY.decode(torch.tensor(changed))
                assert " ".join(words) in shown
                totals.append(log_posterior + float(score([" ".join(words)])))
            hits += int(ids[y][int(np.argmax(totals))]) == int(raw.ids[i])
    assert found["contextual Bayes over 10 candidates"].exact.hits == hits


def test_masked_inference_never_sees_filling_words() -> None:
    filled = Vocabulary(WORDS, ROWS, blanks=2)
    blank = filled.blank_ids(1)
    document = Document(torch.cat([blank, SENTENCES[0], blank]))
    seen: list[tuple[list[str], int]] = []

    def spy(texts: Sequence[Sequence[str]], positions: Sequence[int]) -> Tensor:
        seen.extend((list(t), i) for t, i in zip(texts, positions, strict=True))
        return torch.zeros(len(texts), len(filled))

    identity = create_mechanism("identity", filled)
    run_attacks(Releases(identity, [document], [document]), masked=spy)
    assert (["the", "robin", "has", "wings"], 1) in seen
    assert (["_", "the", "robin", "has", "wings"], 0) in seen, "the word that is guessed itself has a place"


def test_a_generator_that_knows_the_texts_reconstructs_them() -> None:
    """It is shown public pairs and answers in words; what it leaves out counts as the released word."""
    given = releases(3.0, count=60)
    prompts: list[str] = []

    def complete(asked: Sequence[str]) -> list[str]:
        prompts.extend(asked)
        return ["The Robin, has\nand more" if "the" in p.split("Replaced: ")[-1] else "" for p in asked]

    result = by_name(run_attacks(given, complete=complete, blind=50))["generative reconstruction"]
    hits = 0
    for raw, out in zip(given.raw, given.released, strict=True):
        spoke = "the" in VOCABULARY.decode(out.ids)
        guess = [0, WORDS.index("robin"), 1, int(out.ids[3])] if spoke else out.ids.tolist()
        hits += sum(g == x for g, x in zip(guess, raw.ids.tolist(), strict=True))
    assert result.exact.hits == hits
    assert all(p.count("Replaced: ") == 4 and p.endswith("Original:") for p in prompts), "three public pairs each"
    assert result.blind is not None
    assert result.blind.total == 50


def seen_prompts(count: int, rationale: str) -> list[Seen]:
    return [
        Seen("the robin has", rationale.format(PARTS[i % 4]), tuple(PARTS), answer=i % 4, tokens=7)
        for i in range(count)
    ]


def test_an_answer_that_the_rationale_names_is_inferred() -> None:
    prompts = [*seen_prompts(200, "a robin has {}"), Seen("the robin", "wings", ("fins", "webs"), None, 7)]
    rates = by_name(run_attacks(releases(0.01, 4), prompts=prompts, generator=np.random.default_rng(0)))
    named = rates["answer named in the rationale"]
    assert (named.exact.value, named.exact.total) == (1.0, 200)
    assert named.blind is not None
    assert named.blind.value == 0.25
    assert named.cap is not None
    assert named.cap < 0.4
    assert not named.passes, "at this epsilon the server cannot have written that from the prompt alone"


def test_a_rationale_that_names_nothing_tells_nothing() -> None:
    noise = np.random.default_rng(0)
    rates = by_name(
        run_attacks(releases(0.01, 4), prompts=seen_prompts(400, "who knows"), score=score, generator=noise)
    )
    named, likeliest = rates["answer named in the rationale"], rates["answer by language model"]
    assert named.exact.low < 0.25 < named.exact.high
    assert named.passes
    assert likeliest.exact.value == 0.25, "the longest choice is always the same one"


def test_stems_count_as_named() -> None:
    prompts = [Seen("q", "it has a wing", ("fins", "wings"), 1, 3)] * 20
    words = Vocabulary(["wing", "wings", "fins"], torch.eye(3), blanks=1)
    given = Releases(create_mechanism("identity", words), [Document(torch.tensor([0]))], [Document(torch.tensor([0]))])
    assert by_name(run_attacks(given, prompts=prompts))["answer named in the rationale"].exact.value == 1.0


def test_the_blind_guess_knows_how_many_choices_there_are() -> None:
    two, three = Seen("q", "", ("a", "b"), 1, 1), Seen("q", "", ("a", "b", "c"), 2, 1)
    results = by_name(run_attacks(releases(1.0, 4), prompts=[two, three] * 10))
    blind = results["answer named in the rationale"].blind
    assert blind is not None
    assert blind.value == 1.0


def test_everything_is_right_at_identity() -> None:
    identity = create_mechanism("identity", VOCABULARY)
    raw = [Document(s) for s in SENTENCES]
    for result in run_attacks(Releases(identity, raw, raw, shadow=raw), score=score, bank=raw, truth=[0, 1, 2, 3]):
        if result.name != "linkage by lengths alone":
            assert result.exact.value == pytest.approx(1.0), result.name
            assert math.isclose(result.cap or 0, 1.0)
