"""What ``testing.check_mechanism`` checks of a mechanism that rewrites whole documents."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from pdss_fl.check_counts import CHANCE, check_count, check_counts, require
from pdss_fl.privacy.document_audit import audit_documents, every_document
from pdss_fl.privacy.rewriting import RewritingMechanism

_WORDS = 3  # of the longest documents that are listed, if there are few of them
_LISTED = 2**10
_SAMPLED = 2  # documents whose releases are counted
_DRAWS = 2000  # of each
_SEEDED = 20  # documents that are released twice
_COUNTED = 256  # documents of ``_LENGTH`` words with which ``kept_tokens`` is compared
_LENGTH = 8


def check_document_mechanism(mechanism: RewritingMechanism, where: str, texts: list[Tensor]) -> None:
    """Check the laws of all short documents against the claim, and what is released against its law.

    Parameters
    ----------
    mechanism : RewritingMechanism
        Over a small vocabulary.
    where : str
        Begins every message.
    texts : list[Tensor]
        Documents that anything may have been encoded into.
    """
    _check_form(mechanism, where, texts)
    longest = _longest(len(mechanism.vocabulary))
    for words in range(1, longest + 1):
        found = audit_documents(mechanism, words)
        require(found.holds, f"{where}: {found.verdict}")
        claimed, guarantee = mechanism.compose(words, 0.0).epsilon, mechanism.guarantee
        least = words * guarantee.epsilon if guarantee.for_any_inputs else math.inf
        require(claimed <= least * (1 + 1e-9), f"{where}: {words} words are charged {claimed}, above {least}")
    _check_seeds(mechanism, where)
    for generator in (np.random.default_rng(0), None):
        _check_law(mechanism, longest, generator, where + ("" if generator is None else ", seeded"))
    _check_kept(mechanism, where)


def _longest(size: int) -> int:
    return max(words for words in range(1, _WORDS + 1) if words == 1 or size**words <= _LISTED)


def _check_form(mechanism: RewritingMechanism, where: str, texts: list[Tensor]) -> None:
    require(mechanism.guarantee.unit == "document", f"{where}: what reads whole documents has unit 'document'")
    require(not mechanism.context_free, f"{where}: what reads whole documents is not context-free")
    one, many = mechanism.compose(1, 1e-5), mechanism.compose(20, 1e-5)
    require(many.epsilon >= one.epsilon >= 0, f"{where}: 20 words compose to {many.epsilon}, one to {one.epsilon}")
    for document, out in zip(texts, mechanism.perturb_documents(texts, np.random.default_rng(0)), strict=True):
        require(out.dtype == torch.long and out.shape == document.shape, f"{where}: ids come out in another form")
        inside = bool(((out >= 0) & (out < len(mechanism.vocabulary))).all())
        require(inside, f"{where}: an id outside of the vocabulary comes out")


def _check_seeds(mechanism: RewritingMechanism, where: str) -> None:
    document = _document(mechanism)
    log_agree = (2 * mechanism.log_prob_documents(document[None, :1], _words(mechanism))).logsumexp(dim=1)
    documents = [document[:1]] * _SEEDED * max(1, len(mechanism.vocabulary))
    first, again, other = (
        torch.cat(mechanism.perturb_documents(documents, np.random.default_rng(s))) for s in (1, 1, 2)
    )
    require(torch.equal(first, again), f"{where}: equal seeds give different outputs")
    if math.exp(float(log_agree) * len(documents)) < CHANCE:
        require(not torch.equal(first, other), f"{where}: different seeds give equal outputs")
        unseeded = [torch.cat(mechanism.perturb_documents(documents)) for _ in range(2)]
        require(not torch.equal(*unseeded), f"{where}: without a generator, two calls give equal outputs")


def _check_law(mechanism: RewritingMechanism, words: int, generator: np.random.Generator | None, where: str) -> None:
    """Count what is released of some documents, and how often two releases of one document agree."""
    size, released = len(mechanism.vocabulary), every_document(len(mechanism.vocabulary), words)
    place = size ** torch.arange(words - 1, -1, -1)
    chosen = released[torch.linspace(0, len(released) - 1, _SAMPLED).long()]
    for document, law in zip(chosen, mechanism.log_prob_documents(chosen, released).exp(), strict=True):
        out = torch.stack(mechanism.perturb_documents([document] * _DRAWS, generator)) @ place
        counts = torch.bincount(out, minlength=len(released)).double().numpy()
        check_counts(counts, _DRAWS * law.numpy(), f"{where}, documents of {words} words")
        agree = (law**2).sum().expand(_DRAWS // 2)
        pairs = out.view(-1, 2)
        check_count(
            pairs[:, 0] == pairs[:, 1], agree, f"{where}: releases of a document that agree with the one before"
        )


def _check_kept(mechanism: RewritingMechanism, where: str) -> None:
    """Compare ``kept_tokens``, which may be counted on few documents, with a count."""
    generator = np.random.default_rng(7)
    documents = torch.from_numpy(generator.integers(len(mechanism.vocabulary), size=(_COUNTED, _LENGTH)))
    released = torch.stack(mechanism.perturb_documents(list(documents), generator))
    kept, stated = float((released == documents).double().mean()), mechanism.kept_tokens
    # Hoeffding's inequality for the shares of so many documents, here and of the 128 that ``kept_tokens`` counts.
    error = sum(math.sqrt(-math.log(CHANCE / 4) / (2 * n)) for n in (_COUNTED, 128))
    require(0 <= stated <= 1, f"{where}: kept_tokens is {stated}, no share")
    require(abs(stated - kept) <= error, f"{where}: kept_tokens is {stated:.6g}, and {kept:.6g} are unchanged")


def _document(mechanism: RewritingMechanism) -> Tensor:
    return torch.arange(_LENGTH) % len(mechanism.vocabulary)


def _words(mechanism: RewritingMechanism) -> Tensor:
    return torch.arange(len(mechanism.vocabulary))[:, None]
