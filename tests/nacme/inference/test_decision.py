from __future__ import annotations

import numpy as np
import pytest

from nacme.inference.decision import decide, equivalent


@pytest.mark.parametrize(
    ("low", "high", "p", "kind"),
    [
        (0.01, 1, 0.05, "better"),
        (-1, -0.01, 0.01, "worse"),
        (0.01, 1, 0.06, "none"),  # the interval alone does not do
        (-0.1, 0.1, 0.01, "none"),  # nor the p-value
        (0, 1, 0.01, "none"),
        (np.nan, np.nan, 0.01, "none"),
        (0.01, 1, np.nan, "undefined"),
    ],
)
def test_a_way_is_claimed_only_where_interval_and_p_value_agree(
    low: float, high: float, p: float, kind: str
) -> None:
    assert decide(low, high, p) == kind


def test_equivalence_is_an_interval_within_the_margin() -> None:
    assert equivalent(-0.04, 0.04, 0.05)
    assert equivalent(-0.05, 0.04, 0.05) is False
    assert equivalent(-0.04, 0.3, 0.05) is False
    assert equivalent(np.nan, np.nan, 0.05) is None
