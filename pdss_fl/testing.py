"""A proof, on small vocabularies, that a privacy mechanism does what it claims; for its authors' tests.

    from pdss_fl.testing import check_mechanism

    def test_my_mechanism():
        check_mechanism(lambda vocabulary: MyMechanism(vocabulary, epsilon=2.0, neighbours=3))

What is claimed of a vocabulary that is too large to look at follows from the construction, not from this:
but a construction that is wrong is wrong on small ones, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from pdss_fl.check_counts import CHANCE, ROUNDING, check_count, check_counts, require
from pdss_fl.document_checks import check_document_mechanism
from pdss_fl.privacy import PrivacyMechanism, Vocabulary
from pdss_fl.privacy.audit import audit
from pdss_fl.privacy.rewriting import RewritingMechanism

_DRAWS_A_WORD = 2000
_SHORT_DRAWS = 40  # of a word in calls and documents of one token
_TOKENS = 4  # of the documents whose composition is recomputed
_KEPT_ERROR = 0.03  # of a ``kept_tokens`` that was counted and not computed
_PRIVATE = "Zanzibarqx owes 4471993 euros to Mr. O'Quuxington of Zürichsee, 日本語 秘密 \ud800 !"


def check_mechanism(factory: Callable[[Vocabulary], PrivacyMechanism]) -> None:
    """Check a mechanism's claims against its matrix, and its matrix against what it releases.

    On vocabularies with equal and with zero embeddings, and with hardly more words than neighbours:

    - rows of ``log_prob`` sum to one;
    - the exact worst case over all pairs of inputs is within the claimed epsilon (and delta), of those in one of
      the mechanism's ``classes`` for ``partition-ldp``, and within epsilon times its ``distances`` for ``metric-ldp``;
    - so is the worst bounded range, where the mechanism states one, and ``classes`` hold every id once;
    - what ``compose`` says of documents covers those of the two inputs that are furthest apart;
    - what comes out is within the vocabulary, whatever text went in;
    - equal seeds give equal outputs; unequal seeds, and calls without a seed, give different ones;
    - outputs are distributed as ``log_prob`` says, with a generator and without, in long calls, in calls of one
      token and in documents of one token;
    - words and documents do not share their noise, and as many are unchanged as ``kept_tokens`` says.

    A mechanism without a matrix (``NotImplementedError`` with a reason) is checked for the rest. Of one that rewrites
    whole documents (``RewritingMechanism``) the laws of all short documents take the place of the matrix.

    Parameters
    ----------
    factory : Callable[[Vocabulary], PrivacyMechanism]
        Makes the mechanism for a given vocabulary.

    Raises
    ------
    AssertionError
        If a check fails; the message says which, on which vocabulary, and what was found. A correct
        mechanism fails with a probability below 1e-7.
    """
    for what, vocabulary in _vocabularies():
        mechanism = factory(vocabulary)
        where = f"mechanism {mechanism.name!r} on {what}"
        if isinstance(mechanism, RewritingMechanism):
            texts = [*(vocabulary.encode(text) for text in _texts(vocabulary)), _every_id(mechanism, 1)]
            check_document_mechanism(mechanism, where, texts)
            continue
        matrix = _matrix(mechanism, where)
        _check_description(mechanism, where)
        _check_closed(mechanism, where)
        _check_randomness(mechanism, matrix, where)
        if matrix is not None:
            _check_claim(mechanism, where)
            _check_documents(mechanism, matrix, where)
            for generator in (np.random.default_rng(0), None):
                _check_sampler(mechanism, matrix, generator, where)
                _check_short(mechanism, matrix, generator, where)
        _check_kept(mechanism, matrix, where)


def _vocabularies() -> Iterator[tuple[str, Vocabulary]]:
    words = [f"word{i}" for i in range(16)]
    rows = torch.randn(16, 5, generator=torch.Generator().manual_seed(0))
    yield "16 words with embeddings at random", Vocabulary(words, rows)
    yield "16 words in pairs of equal embeddings", Vocabulary(words, rows[:8].repeat_interleave(2, dim=0))
    yield "16 words with zero embeddings", Vocabulary(words, torch.zeros(16, 5))
    yield "2 words and 1 blank", Vocabulary(words[:2], rows[:2], blanks=1)


def _matrix(mechanism: PrivacyMechanism, where: str) -> Tensor | None:
    """Return the matrix after the checks on its form, or ``None`` if there is none for a stated reason."""
    try:
        matrix = mechanism.log_prob()
    except NotImplementedError as err:
        require(bool(str(err)), f"{where}: log_prob raises NotImplementedError without a reason")
        return None
    size = len(mechanism.vocabulary)
    form = (tuple(matrix.shape), matrix.dtype)
    require(form == ((size, size), torch.float64), f"{where}: log_prob is {form}, not float64 of {size} x {size}")
    off = float((matrix.exp().sum(dim=1) - 1).abs().max())
    require(off <= ROUNDING, f"{where}: a row of log_prob sums to one but for {off:.3g}")
    ids = torch.arange(size).flip(0)
    same = torch.allclose(mechanism.log_prob_rows(ids).exp(), matrix[ids].exp(), rtol=ROUNDING, atol=0)
    require(same, f"{where}: log_prob_rows are not the rows of log_prob")
    return matrix


def _check_description(mechanism: PrivacyMechanism, where: str) -> None:
    require(0 <= mechanism.kept_tokens <= 1, f"{where}: kept_tokens is {mechanism.kept_tokens}, no share")
    one, many = mechanism.compose(1, 1e-5), mechanism.compose(20, 1e-5)
    require(
        many.epsilon >= one.epsilon >= 0,
        f"{where}: 20 tokens compose to epsilon {many.epsilon}, one to {one.epsilon}",
    )


def _check_kept(mechanism: PrivacyMechanism, matrix: Tensor | None, where: str) -> None:
    """Compare ``kept_tokens`` with the diagonal, or with a count where there is no matrix."""
    if matrix is not None:
        kept, error = float(matrix.diagonal().exp().mean()), ROUNDING
    else:
        ids = _every_id(mechanism, 100)
        kept = float((mechanism.perturb(ids, np.random.default_rng(0)) == ids).double().mean())
        error = _KEPT_ERROR + math.sqrt(-math.log(CHANCE / 2) / (2 * len(ids)))  # Hoeffding's inequality
    stated = mechanism.kept_tokens
    require(abs(stated - kept) <= error, f"{where}: kept_tokens is {stated:.6g}, and {kept:.6g} are unchanged")


def _check_closed(mechanism: PrivacyMechanism, where: str) -> None:
    vocabulary = mechanism.vocabulary
    for ids in [vocabulary.encode(text) for text in _texts(vocabulary)] + [_every_id(mechanism, 100)]:
        out = mechanism.perturb(ids, np.random.default_rng(0))
        require(out.dtype == torch.long and out.shape == ids.shape, f"{where}: ids come out in another form")
        inside = bool(((out >= 0) & (out < len(vocabulary))).all())
        require(inside, f"{where}: an id outside of the vocabulary comes out")


def _check_randomness(mechanism: PrivacyMechanism, matrix: Tensor | None, where: str) -> None:
    ids = _every_id(mechanism, 200)
    first, again, other = (mechanism.perturb(ids, np.random.default_rng(seed)) for seed in (1, 1, 2))
    require(torch.equal(first, again), f"{where}: equal seeds give different outputs")
    if matrix is None or _agreement(matrix[ids]) >= CHANCE:
        return
    require(not torch.equal(first, other), f"{where}: different seeds give equal outputs")
    unseeded = torch.equal(mechanism.perturb(ids), mechanism.perturb(ids))
    require(not unseeded, f"{where}: without a generator, two calls give equal outputs")


def _agreement(rows: Tensor) -> float:
    """Return how likely two independent draws from every row agree in all of them."""
    return math.exp(float((2 * rows).logsumexp(dim=1).sum()))


def _check_claim(mechanism: PrivacyMechanism, where: str) -> None:
    found, kind = audit(mechanism), mechanism.guarantee.kind
    require(found.holds is not False, f"{where}: {found.verdict}")
    if kind != "none":
        require(found.holds is not None, f"{where}: {found.verdict}; state them as ``classes``")
    stated = mechanism.bounded_range
    require(
        stated is None or found.bounded_range <= stated + ROUNDING,
        f"{where}: states a bounded range of {stated}, but the worst case is {found.bounded_range:.10g}",
    )


def _check_documents(mechanism: PrivacyMechanism, matrix: Tensor, where: str) -> None:
    """Recompute what documents of the worst two inputs, each repeated, are worth, and compare it with ``compose``."""
    if mechanism.classes is not None:
        every = torch.cat(list(mechanism.classes)).sort().values
        require(torch.equal(every, torch.arange(len(matrix))), f"{where}: the classes do not hold every id once")
    first, second, _ = audit(mechanism).worst
    for a, b in ((first, second), (second, first)):
        rows = [matrix[x] for x in (a, b)]
        for tokens in range(1, _TOKENS + 1):
            if tokens > 1:
                rows = [(row[:, None] + matrix[x]).flatten() for row, x in zip(rows, (a, b), strict=True)]
            for delta in (0.0, 1e-5, 0.05):
                stated = mechanism.compose(tokens, delta)
                spent = (
                    0.0 if math.isinf(stated.epsilon) else _hockey_stick(rows[0], rows[1], stated.epsilon + ROUNDING)
                )
                require(
                    spent <= stated.delta * (1 + ROUNDING) + 1e-12,
                    f"{where}: {tokens} tokens compose to epsilon {stated.epsilon:.6g} at delta {stated.delta:g} "
                    f"({stated.composition}), but two documents have delta {spent:.3g} there",
                )


def _hockey_stick(first: Tensor, second: Tensor, epsilon: float) -> float:
    """Return the sum of (P - e^epsilon Q)+ of two rows of log-probabilities."""
    beyond = first > second + epsilon
    return float((first[beyond].exp() - (second[beyond] + epsilon).exp()).sum())


def _check_sampler(
    mechanism: PrivacyMechanism, matrix: Tensor, generator: np.random.Generator | None, where: str
) -> None:
    """Compare counts of (input, output) with the matrix: frequent pairs one by one, rare ones together."""
    size, ids = len(matrix), _every_id(mechanism, _DRAWS_A_WORD)
    pairs = ids * size + mechanism.perturb(ids, generator)
    counts = torch.bincount(pairs, minlength=size * size).double().numpy()
    expected = _DRAWS_A_WORD * matrix.exp().flatten().numpy()
    check_counts(counts, expected, where + ("" if generator is None else ", seeded"))


def _check_short(
    mechanism: PrivacyMechanism, matrix: Tensor, generator: np.random.Generator | None, where: str
) -> None:
    """Count what is unchanged in short calls and short documents, and how often successive releases agree."""
    where += "" if generator is None else ", seeded"
    ids = torch.arange(len(matrix)).repeat_interleave(_SHORT_DRAWS)
    tokens = list(torch.split(ids, 1))
    long = torch.arange(len(matrix)).repeat_interleave(_DRAWS_A_WORD)
    for name, inputs, released in (
        ("calls of one token", ids, torch.cat([mechanism.perturb(token, generator) for token in tokens])),
        ("documents of one token", ids, torch.cat(mechanism.perturb_documents(tokens, generator))),
        ("one call", long, mechanism.perturb(long, generator)),
    ):
        kept = matrix.diagonal().exp()[inputs]
        check_count(released == inputs, kept, f"{where}: words that are unchanged in {name}")
        pairs = released.view(-1, 2, 2)  # of one word, two after two
        agree = (2 * matrix).logsumexp(dim=1).exp()[inputs].view(-1, 2, 2)[:, 0]
        for lag, other in ((1, pairs.transpose(1, 2)), (2, pairs)):
            what = f"{where}: releases of a word in {name} that agree with the one {lag} before"
            check_count((other[:, 0] == other[:, 1]).flatten(), agree.flatten(), what)


def _texts(vocabulary: Vocabulary) -> list[str]:
    return ["", _PRIVATE, " ".join(vocabulary.tokens)]


def _every_id(mechanism: PrivacyMechanism, times: int) -> Tensor:
    return torch.arange(len(mechanism.vocabulary)).repeat(times)
