"""What every mechanism should prove of itself, in one line."""

from __future__ import annotations

import pytest
from pdss_two_rings import TwoRings

from pdss_fl.testing import check_mechanism


@pytest.mark.parametrize(("epsilon", "neighbours"), [(0.5, 1), (2.0, 3), (8.0, 3), (12.0, 100)])
def test_its_claims_hold(epsilon: float, neighbours: int) -> None:
    """Rows sum to one, epsilon is exact over all pairs, and what comes out is distributed as stated."""
    check_mechanism(lambda vocabulary: TwoRings(vocabulary, epsilon=epsilon, neighbours=neighbours))
