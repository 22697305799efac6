"""How often an attacker finds the private word, question or answer behind a release, beside what is allowed.

``run_attacks`` runs them all. Numbers and words only: language models come in as callables.
"""

from pdss_fl.privacy.attacks.answers import Seen
from pdss_fl.privacy.attacks.bayes import candidates, optimal_success, word_prior
from pdss_fl.privacy.attacks.caps import Cap, Targets, token_cap
from pdss_fl.privacy.attacks.language import Completer, MaskedScores, SequenceScore
from pdss_fl.privacy.attacks.linkage import Document, link
from pdss_fl.privacy.attacks.membership import Membership, membership_attack
from pdss_fl.privacy.attacks.posterior import document_log_prob, posterior_attack
from pdss_fl.privacy.attacks.results import AttackResult, Rate
from pdss_fl.privacy.attacks.shadow import empirical_success, token_overlap
from pdss_fl.privacy.attacks.stems import stem_classes, text_classes
from pdss_fl.privacy.attacks.suite import Releases, run_attacks

__all__ = [
    "AttackResult",
    "Cap",
    "Completer",
    "Document",
    "MaskedScores",
    "Membership",
    "Rate",
    "Releases",
    "Seen",
    "SequenceScore",
    "Targets",
    "candidates",
    "document_log_prob",
    "empirical_success",
    "link",
    "membership_attack",
    "optimal_success",
    "posterior_attack",
    "run_attacks",
    "stem_classes",
    "text_classes",
    "token_cap",
    "token_overlap",
    "word_prior",
]
