"""Privacy mechanisms over closed public vocabularies, their guarantees, accounting and ledger.

Numbers and tokens only: nothing here knows Flower, models or data sets.
"""

from pdss_fl.privacy.identity import Identity
from pdss_fl.privacy.ledger import Charge, Ledger
from pdss_fl.privacy.mechanism import (
    DocumentGuarantee,
    PrivacyGuarantee,
    PrivacyMechanism,
    available_mechanisms,
    create_mechanism,
    register_mechanism,
)
from pdss_fl.privacy.staircase import Staircase
from pdss_fl.privacy.vocabulary import BLANK, Vocabulary

__all__ = [
    "BLANK",
    "Charge",
    "DocumentGuarantee",
    "Identity",
    "Ledger",
    "PrivacyGuarantee",
    "PrivacyMechanism",
    "Staircase",
    "Vocabulary",
    "available_mechanisms",
    "create_mechanism",
    "register_mechanism",
]
