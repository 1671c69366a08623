from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from nacme.inference import bootstrap


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


def draws(x: np.ndarray, n_boot: int = 4000) -> np.ndarray:
    return bootstrap.run_weights(len(x), n_boot, np.random.default_rng(2))


def test_the_interval_of_a_mean_is_students_where_runs_are_normal_and_leans_where_they_are_skewed() -> None:
    x = scipy.stats.norm.ppf((np.arange(36) + 0.5) / 36)
    low, high = bootstrap.mean_interval(x, draws(x, 20_000), 0.95)
    student = scipy.stats.t.ppf(0.975, 35) * x.std(ddof=1) / 6
    assert (low, high) == pytest.approx((-student, student), rel=0.08)
    skewed = scipy.stats.expon.ppf((np.arange(12) + 0.5) / 12)
    low, high = bootstrap.mean_interval(skewed, draws(skewed), 0.95)
    assert high - skewed.mean() > 1.3 * (skewed.mean() - low)


def test_the_interval_of_a_mean_follows_a_change_of_unit_and_of_sign() -> None:
    x = np.random.default_rng(0).exponential(size=9)
    low, high = bootstrap.mean_interval(x, draws(x), 0.95)
    assert bootstrap.mean_interval(5 - 3 * x, draws(x), 0.95) == pytest.approx((5 - 3 * high, 5 - 3 * low))
    both = bootstrap.mean_interval(np.stack([x, 5 - 3 * x], axis=1), draws(x), 0.95)
    assert both[0] == pytest.approx([low, 5 - 3 * high])


def test_there_is_no_interval_below_four_runs_and_one_from_there() -> None:
    for n_runs in range(1, 8):
        x = np.random.default_rng(0).normal(size=n_runs)
        assert np.isfinite(bootstrap.mean_interval(x, draws(x), 0.95)).all() == (n_runs >= 4)


def test_equal_runs_have_an_interval_without_width_and_one_that_differs_a_finite_one() -> None:
    assert bootstrap.mean_interval(np.full(6, 0.1), draws(np.ones(6)), 0.95) == pytest.approx((0.1, 0.1))
    x = np.array([1.0, 1, 1, 1, 1, 0.8])
    low, high = bootstrap.mean_interval(x, draws(x), 0.95)
    assert 0.5 < low < 0.95 < 1 <= high < 1.5


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
