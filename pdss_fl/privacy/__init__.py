"""Privacy mechanisms over closed public vocabularies, their guarantees, accounting and ledger.

Numbers and tokens only: nothing here knows Flower, models or data sets.
"""

from pdss_fl.privacy.adaptive import AdaptiveStaircase
from pdss_fl.privacy.blocks import Blocks
from pdss_fl.privacy.contextual import Contextual
from pdss_fl.privacy.custext import CusText, CusTextOverlapping
from pdss_fl.privacy.decoding import EncoderDecoding, EncoderDifference, EncoderTop
from pdss_fl.privacy.exponential import Exponential
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
from pdss_fl.privacy.metric_laplace import MetricLaplace, MetricMahalanobis
from pdss_fl.privacy.randomized_response import RandomizedResponse
from pdss_fl.privacy.rantext import Rantext, RantextFate
from pdss_fl.privacy.rewriting import EncoderComposed, EncoderEmpirical
from pdss_fl.privacy.santext import SanText, SanTextPlus
from pdss_fl.privacy.staircase import Staircase
from pdss_fl.privacy.vocabulary import BLANK, Vocabulary

__all__ = [
    "BLANK",
    "AdaptiveStaircase",
    "Blocks",
    "Charge",
    "Contextual",
    "CusText",
    "CusTextOverlapping",
    "DocumentGuarantee",
    "EncoderComposed",
    "EncoderDecoding",
    "EncoderDifference",
    "EncoderEmpirical",
    "EncoderTop",
    "Exponential",
    "Identity",
    "Ledger",
    "MetricLaplace",
    "MetricMahalanobis",
    "PrivacyGuarantee",
    "PrivacyMechanism",
    "RandomizedResponse",
    "Rantext",
    "RantextFate",
    "SanText",
    "SanTextPlus",
    "Staircase",
    "Vocabulary",
    "available_mechanisms",
    "create_mechanism",
    "register_mechanism",
]
