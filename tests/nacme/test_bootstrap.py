from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from nacme import bootstrap


def test_a_generator_depends_on_seed_and_label_alone() -> None:
    draws = {
        bootstrap.generator(seed, label).random()
        for seed in (0, 1)
        for label in ("Toy, ERM, env 0", "Toy, ERM, env 1")
    }
    assert len(draws) == 4
    assert bootstrap.generator(3, "x").random() == bootstrap.generator(3, "x").random()


def test_each_resample_has_as_many_runs_and_each_run_its_share() -> None:
    weights = bootstrap.run_weights(5, 4000, np.random.default_rng(0))
    assert (weights.sum(1) == 5).all()
    assert weights.mean(0) == pytest.approx(np.ones(5), abs=0.06)
    assert bootstrap.run_weights(0, 3, np.random.default_rng(0)).shape == (3, 0)


def test_weighted_mean_leaves_undefined_runs_out() -> None:
    values = np.array([1.0, np.nan, 4.0])
    weights = np.array([[1.0, 1, 1], [2, 1, 0], [0, 3, 0]])
    np.testing.assert_allclose(bootstrap.weighted_mean(values, weights), [2.5, 1.0, np.nan])


def test_the_percentile_interval_is_as_wide_as_students() -> None:
    # For the mean of 8 numbers of a normal shape the interval has to be near mean +- t s / sqrt(8).
    x = scipy.stats.norm.ppf((np.arange(8) + 0.5) / 8)
    draws = bootstrap.weighted_mean(x, bootstrap.run_weights(8, 200_000, np.random.default_rng(0)))
    low, high = bootstrap.percentile_interval(draws, 0.9, 8)
    student = scipy.stats.t.ppf(0.95, 7) * x.std(ddof=1) / math.sqrt(8)
    assert (low, high) == pytest.approx((-student, student), rel=0.04)
    assert np.isnan(bootstrap.percentile_interval(np.full(3, np.nan), 0.9, 8)).all()


def test_bca_is_scipys() -> None:
    x = np.random.default_rng(1).exponential(size=15)
    draws = bootstrap.weighted_mean(x, bootstrap.run_weights(15, 100_000, np.random.default_rng(2)))
    jackknife = bootstrap.weighted_mean(x, 1 - np.eye(15))
    ours = bootstrap.bca_interval(draws, x.mean(), jackknife, 0.95)
    theirs = scipy.stats.bootstrap((x,), np.mean, n_resamples=100_000, method="BCa").confidence_interval
    assert ours == pytest.approx(tuple(theirs), rel=0.02)  # the name of SciPy's seed depends on its version
    plain = np.quantile(draws, [0.025, 0.975])
    assert ours[0] > plain[0] + 0.01  # skewed data: both ends move up
    assert ours[1] > plain[1] + 0.01


def test_bca_of_draws_on_one_side_or_all_equal() -> None:
    assert np.isnan(bootstrap.bca_interval(np.ones(9), 2.0, np.array([1.0, 2.0]), 0.95)).all()
    assert bootstrap.bca_interval(np.ones(9), 1.0, np.ones(3), 0.95) == (1.0, 1.0)


@given(st.lists(st.integers(-5, 5), min_size=2, max_size=7))
def test_the_sign_flip_p_value_is_scipys(differences: list[int]) -> None:
    d = np.array(differences, float)
    swapped, complete = bootstrap.swaps(len(d), 200, np.random.default_rng(0))
    assert complete
    assert len(np.unique(swapped, axis=0)) == 2 ** len(d)
    ours = bootstrap.permutation_p(np.where(swapped, -1, 1) @ d / len(d), d.mean(), complete)
    theirs = scipy.stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf)
    # Two-sided: SciPy doubles one tail of a symmetric distribution, which passes 1 for a difference of 0.
    assert ours == pytest.approx(min(theirs.pvalue, 1))


def test_a_drawn_p_value_is_never_0() -> None:
    swapped, complete = bootstrap.swaps(30, 99, np.random.default_rng(0))
    assert swapped.shape == (99, 30)
    assert not complete
    assert bootstrap.permutation_p(np.zeros(99), 1.0, complete) == 0.01


def test_holm_by_hand() -> None:
    # Sorted 0.01 0.03 0.04 times 3 2 1: 0.03 0.06 0.04, and never less than the one before.
    np.testing.assert_allclose(bootstrap.holm([0.01, 0.04, np.nan, 0.03]), [0.03, 0.06, np.nan, 0.06])
    np.testing.assert_allclose(bootstrap.holm([0.6, 0.7]), [1, 1])
    assert bootstrap.holm([]).shape == (0,)
