"""Shams: they keep what they say, and break what they say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacme.criteria.shams import Counts, cycle, permuted_coverage


@given(st.integers(2, 40), st.integers(0, 1000))
def test_the_permutation_is_one_cycle(count, seed):
    order = cycle(count, seed)
    place, seen = 0, []
    for _ in range(count):
        place = order[place]
        seen.append(place)
    assert sorted(seen) == list(range(count))
    assert place == 0
    assert order == cycle(count, seed)


def counts(states, counted):
    return Counts({"layer": np.array(states)}, counted)


def test_a_checkpoint_gets_the_others_distribution_and_keeps_its_own_count():
    # two neurons, two bins (M = 3); the first checkpoint fills one bin, the second both evenly
    first, second = counts([[8, 0], [8, 0]], 8), counts([[2, 2], [2, 2]], 4)
    here, there = permuted_coverage([first, second], 4, seed=0)
    assert here == pytest.approx(2 * 4 / 4 / 3)  # 4 of 8 in either bin: both full
    assert there == pytest.approx(1 / 3)  # all 4 in one
    # a fraction is one of the checkpoint's own count
    here, there = permuted_coverage([first, second], 0.5, seed=0)
    assert (here, there) == pytest.approx((2 / 3, 1 / 3))


def test_where_there_is_no_other():
    assert np.isnan(permuted_coverage([counts([[1, 0]], 1)], 1, seed=0)).all()
    assert permuted_coverage([], 1, seed=0) == []
    none, some = counts([[0, 0]], 0), counts([[3, 1]], 4)
    first, second = permuted_coverage([none, some], 1, seed=0)
    assert first == 0
    assert np.isnan(second)
