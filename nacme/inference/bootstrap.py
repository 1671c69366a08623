"""Resampling of runs: checkpoints of one run are autocorrelated, so the run is the unit of uncertainty."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable
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


#: Runs below which no interval is given: three take too few values for one that holds the truth as it says.
LEAST_RUNS = 4
#: Runs above which the errors of draws of a statistic over all checkpoints are not worth their cost.
MANY_RUNS = 100
_PRIOR = 0.25  # of a run: keeps the spread of a resample of equal values from vanishing
_STRETCH = 12.0  # how much wider few runs make the interval of a mean; both were found by simulation


def too_few(n_runs: int) -> str | None:
    """Say why there is no interval over so many runs, if there is none."""
    if n_runs >= LEAST_RUNS:
        return None
    return "one run" if n_runs == 1 else f"{n_runs} runs, an interval needs {LEAST_RUNS}"


def mean_interval(values: Array, weights: Array, confidence: float) -> tuple[Any, Any]:
    """Return the interval of means over runs.

    Parameters
    ----------
    values : ndarray, shape (R, ...)
        Finite.
    weights : ndarray, shape (n_boot, R)
        What `run_weights` returns.
    confidence : float
        Between 0 and 1.

    Returns
    -------
    low, high : float, or ndarray of shape (...)
        What `run_interval` gives.
    """
    count = len(values)
    if count < LEAST_RUNS:
        return run_interval(np.full(values.shape[1:], np.nan), 0, weights, weights, count, confidence)
    mean = values.mean(0)
    from_mean = values - mean  # differences of squares lose few digits near zero
    # one product for both: weights are by far the largest factor
    draws, squares = np.moveaxis(
        np.tensordot(weights, np.stack([from_mean, from_mean**2], axis=-1), 1) / count, -1, 0
    )
    errors = np.sqrt(np.maximum(squares - draws**2, 0) / (count - 1))
    error = values.std(0, ddof=1) / np.sqrt(count)
    return run_interval(mean, error, mean + draws, errors, count, confidence)


def run_interval(
    estimate: Array | float,
    error: Array | float,
    draws: Array,
    errors: Array,
    n_runs: int,
    confidence: float,
    *,
    mean: bool = True,
) -> tuple[Any, Any]:
    """Return the interval of a statistic of runs, from its bootstrap draws and their standard errors.

    Parameters
    ----------
    estimate, error : float, or ndarray of shape (...)
        The statistic of the runs and its standard error.
    draws, errors : ndarray, shape (n_boot, ...)
        The same of each resample; NaN where undefined.
    n_runs : int
        How many runs were resampled.
    confidence : float
        Between 0 and 1.
    mean : bool
        Whether the statistic is a mean over runs, or one over all their checkpoints.

    Returns
    -------
    low, high : float, or ndarray of shape (...)
        NaN with fewer than `LEAST_RUNS` runs.

    Notes
    -----
    The bootstrap-t interval (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 12.5): where
    run values are skewed it lies to the side that a percentile interval misses. Two changes, found by
    simulation, make it serve few runs: a quarter of a run with the spread of them all is added to each resample's
    own, and the interval of a mean is stretched by ``1 + 12 / R^2``. A statistic over all checkpoints is curved in
    the runs, and resamples that hold a run twice know it too well; so its interval is joined with
    `percentile_interval`, which errs where the other does not. docs/criteria.md has the simulated coverage.
    """
    if n_runs < LEAST_RUNS:
        nothing = np.full(np.shape(estimate), np.nan)[()]
        return nothing, nothing
    estimate, error = np.asarray(estimate), np.asarray(error)
    spread = np.sqrt(((n_runs - 1) * errors**2 + _PRIOR * error**2) / (n_runs - 1 + _PRIOR))
    certain = spread <= 1e-12 * np.maximum(1, np.abs(estimate))  # equal run values, but for rounding
    studentised = np.where(certain, 0, (draws - estimate) / np.where(certain, 1, spread))
    low, high = _quantiles(studentised, (1 - confidence) / 2)
    stretch = 1 + _STRETCH / n_runs**2 if mean else 1
    ends = estimate - stretch * high * error, estimate - stretch * low * error
    if mean:
        return ends[0][()], ends[1][()]
    other = percentile_interval(draws, confidence, n_runs)
    return np.fmin(ends[0], other[0])[()], np.fmax(ends[1], other[1])[()]


def pooled_interval(
    statistic: Callable[[Array], Array],
    influence: Callable[[Array], tuple[Array, Array]],
    weights: Array,
    confidence: float,
) -> tuple[float, float]:
    """Return the interval of a statistic over all checkpoints of all runs.

    Parameters
    ----------
    statistic : callable
        From weights of the runs, shape (B, R), to the statistic, shape (B,).
    influence : callable
        The same, and its derivatives by the weights, shape (B, R): what the error of a draw is computed from.
    weights : ndarray, shape (n_boot, R)
        What `run_weights` returns.
    confidence : float
        Between 0 and 1.

    Returns
    -------
    low, high : float
        What `run_interval` gives; with more than `MANY_RUNS` runs, `percentile_interval` alone.
    """
    count = weights.shape[1]
    if count < LEAST_RUNS:
        return float("nan"), float("nan")
    if count > MANY_RUNS:
        low, high = percentile_interval(statistic(weights), confidence, count)
    else:
        (estimate,), (error,) = with_errors(*influence(np.ones((1, count))), np.ones((1, count)))
        draws, errors = with_errors(*influence(weights), weights)
        low, high = run_interval(estimate, error, draws, errors, count, confidence, mean=False)
    return float(low), float(high)


def with_errors(values: Array, slopes: Array, weights: Array) -> tuple[Array, Array]:
    """Return a statistic, shape (B,), and the standard errors that its derivatives, shape (B, R), give."""
    count = weights.shape[1]
    return values, np.sqrt(count / (count - 1) * np.einsum("br,br->b", weights, slopes**2))


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
    where Student's are due. This one takes the percentiles at which a normal distribution has what
    Student's ``t`` with ``R - 1`` degrees of freedom, times ``sqrt(R / (R - 1))``, has at the ones asked for.
    By itself it still covers too little for a mean of fewer than eight runs or of skewed values: `run_interval`.

    References
    ----------
    Hesterberg, What teachers should know about the bootstrap, The American Statistician 69 (2015).
    """
    from scipy.special import ndtr, stdtrit

    return _quantiles(draws, ndtr(np.sqrt(n_runs / (n_runs - 1)) * stdtrit(n_runs - 1, (1 - confidence) / 2)))


def _quantiles(draws: Array, tail: float) -> tuple[Any, Any]:
    """Return the quantiles at both tails over the first axis, NaN left out."""
    defined = np.isfinite(draws)
    if defined.all():
        low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    else:
        with warnings.catch_warnings():  # of columns without a defined draw, which are NaN as they should
            warnings.simplefilter("ignore", RuntimeWarning)
            low, high = np.nanquantile(np.where(defined, draws, np.nan), [tail, 1 - tail], axis=0)
    return low, high


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
