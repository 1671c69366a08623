"""Resampling of runs: checkpoints of one run are autocorrelated, so the run is the unit of uncertainty."""

from __future__ import annotations

import warnings
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def generator(seed: int, label: str) -> np.random.Generator:
    """Return a generator that depends on a seed and a label alone.

    Parameters
    ----------
    seed : int
        Not negative.
    label : str
        What is resampled, so that one cell's interval does not depend on which other cells there are.

    Returns
    -------
    numpy.random.Generator
    """
    return np.random.default_rng([seed, zlib.crc32(label.encode())])


def run_weights(n_runs: int, n_boot: int, rng: np.random.Generator) -> Array:
    """Draw how often each run occurs in each bootstrap resample.

    Parameters
    ----------
    n_runs, n_boot : int
        Number of runs and of resamples.
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    ndarray, shape (n_boot, n_runs)
        Counts that sum to ``n_runs`` in each row.
    """
    if not n_runs:
        return np.empty((n_boot, 0))
    drawn = rng.integers(n_runs, size=(n_boot, n_runs)) + n_runs * np.arange(n_boot)[:, None]
    return np.bincount(drawn.ravel(), minlength=n_boot * n_runs).reshape(n_boot, n_runs).astype(float)


def weighted_mean(values: Array, weights: Array) -> Array:
    """Average over the runs where a value is defined.

    Parameters
    ----------
    values : ndarray, shape (n_runs, ...)
        NaN where undefined.
    weights : ndarray, shape (n_boot, n_runs)
        How often each run counts.

    Returns
    -------
    ndarray, shape (n_boot, ...)
        NaN where no defined run counts.
    """
    defined = np.isfinite(values)
    total = weights @ defined
    return np.asarray(weights @ np.where(defined, values, 0) / np.where(total > 0, total, np.nan))


def percentile_interval(draws: Array, confidence: float, n_runs: int) -> tuple[Any, Any]:
    """Return the expanded percentile interval of bootstrap draws; NaN twice if none is defined.

    Parameters
    ----------
    draws : ndarray, shape (n_boot, ...)
        NaN draws (resamples in which the statistic is undefined) are left out.
    confidence : float
        Between 0 and 1.
    n_runs : int
        How many runs were resampled, at least 2.

    Returns
    -------
    low, high : float, or ndarray of shape (...)

    Notes
    -----
    The plain percentile interval is too narrow by ``sqrt((R - 1) / R)`` and by using the normal's quantiles
    where Student's are due: with 10 autocorrelated runs the plain 95% interval of a mean tau held the truth
    in 90% of simulations, this one in 94%. It takes the percentiles at which a normal distribution has what
    Student's ``t`` with ``R - 1`` degrees of freedom, times ``sqrt(R / (R - 1))``, has at the ones asked for.

    References
    ----------
    Hesterberg, What teachers should know about the bootstrap, The American Statistician 69 (2015).
    """
    from scipy.special import ndtr, stdtrit

    tail = ndtr(np.sqrt(n_runs / (n_runs - 1)) * stdtrit(n_runs - 1, (1 - confidence) / 2))
    defined = np.isfinite(draws)
    if defined.all():
        low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    else:
        with warnings.catch_warnings():  # of columns without a defined draw, which are NaN as they should
            warnings.simplefilter("ignore", RuntimeWarning)
            low, high = np.nanquantile(np.where(defined, draws, np.nan), [tail, 1 - tail], axis=0)
    return low, high


def bca_interval(draws: Array, estimate: float, jackknife: Array, confidence: float) -> tuple[float, float]:
    """Return the bias-corrected and accelerated interval; NaN twice where it is undefined.

    Parameters
    ----------
    draws : ndarray, shape (n_boot,)
        Bootstrap draws; NaN ones are left out.
    estimate : float
        The statistic on the data themselves.
    jackknife : ndarray, shape (n_runs,)
        The statistic with each run left out in turn; NaN ones are left out.
    confidence : float
        Between 0 and 1.

    Returns
    -------
    low, high : float
        NaN if all draws lie on one side of the estimate.

    References
    ----------
    Efron, Better bootstrap confidence intervals, JASA 82 (1987), equation 2.3; draws equal to the estimate
    count half, since rank statistics of few runs are discrete.
    """
    from scipy.special import ndtr, ndtri

    draws, jackknife = draws[np.isfinite(draws)], jackknife[np.isfinite(jackknife)]
    if not len(draws) or len(jackknife) < 2:
        return float("nan"), float("nan")
    below = np.mean(draws < estimate) + np.mean(draws == estimate) / 2
    bias = ndtri(below)
    if not np.isfinite(bias):
        return float("nan"), float("nan")
    from_mean = jackknife.mean() - jackknife
    spread = (from_mean**2).sum()
    acceleration = (from_mean**3).sum() / (6 * spread**1.5) if spread > 0 else 0.0
    tail = ndtri((1 - confidence) / 2)
    levels = [ndtr(bias + (bias + z) / (1 - acceleration * (bias + z))) for z in (tail, -tail)]
    low, high = np.quantile(draws, levels)
    return float(low), float(high)


def swaps(n_runs: int, n_permutations: int, rng: np.random.Generator) -> tuple[npt.NDArray[np.bool_], bool]:
    """List ways to swap two criteria run by run.

    Parameters
    ----------
    n_runs, n_permutations : int
        Number of runs, and how many ways at most.
    rng : numpy.random.Generator
        Draws the ways where there are more than that.

    Returns
    -------
    swapped : ndarray of bool, shape (n_ways, n_runs)
        All ``2 ** n_runs`` ways if they are no more than ``n_permutations``.
    complete : bool
        Whether they are all.
    """
    if n_runs < 63 and 2**n_runs <= n_permutations:
        ways = np.arange(2**n_runs)
        return (ways[:, None] >> np.arange(n_runs)) & 1 == 1, True
    return rng.random((n_permutations, n_runs)) < 0.5, False


def permutation_p(draws: Array, estimate: float, complete: bool) -> float:
    """Return the two-sided p-value of an estimate among its values under permutation.

    Parameters
    ----------
    draws : ndarray, shape (n_ways,)
        The statistic under each permutation; NaN ones are left out.
    estimate : float
        The statistic on the data themselves.
    complete : bool
        Whether the draws are all permutations; otherwise the data's own counts as one draw more, so that
        the p-value is never 0 (Phipson & Smyth 2010).

    Returns
    -------
    float
    """
    draws = draws[np.isfinite(draws)]
    as_extreme = int((np.abs(draws) >= abs(estimate) - 1e-12).sum())
    return as_extreme / len(draws) if complete else (as_extreme + 1) / (len(draws) + 1)


def holm(p_values: npt.ArrayLike) -> Array:
    """Adjust p-values for their number so that the family-wise error is controlled.

    Parameters
    ----------
    p_values : array_like, shape (n,)
        NaN for a test that could not be made; it does not count.

    Returns
    -------
    ndarray, shape (n,)
        Adjusted p-values, NaN where they were.

    References
    ----------
    Holm, A simple sequentially rejective multiple test procedure, Scand. J. Stat. 6 (1979).
    """
    p = np.asarray(p_values, float)
    adjusted = np.full(p.shape, np.nan)
    order = np.argsort(p)[: np.count_nonzero(np.isfinite(p))]  # NaN sorts last
    factors = len(order) - np.arange(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1)
    return adjusted
