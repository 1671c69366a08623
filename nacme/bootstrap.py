"""Resampling of runs: checkpoints of one run are autocorrelated, so the run is the unit of uncertainty."""

from __future__ import annotations

import zlib

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
    return rng.multinomial(n_runs, np.full(n_runs, 1 / n_runs), size=n_boot).astype(float)


def weighted_mean(values: Array, weights: Array) -> Array:
    """Average over the runs where a value is defined.

    Parameters
    ----------
    values : ndarray, shape (n_runs,)
        NaN where undefined.
    weights : ndarray, shape (n_boot, n_runs)
        How often each run counts.

    Returns
    -------
    ndarray, shape (n_boot,)
        NaN where no defined run counts.
    """
    defined = np.isfinite(values)
    total = weights[:, defined].sum(1)
    return np.asarray(weights[:, defined] @ values[defined] / np.where(total > 0, total, np.nan))


def percentile_interval(draws: Array, confidence: float) -> tuple[float, float]:
    """Return the central interval of bootstrap draws; NaN twice if none is defined.

    Parameters
    ----------
    draws : ndarray, shape (n_boot,)
        NaN draws (resamples in which the statistic is undefined) are left out.
    confidence : float
        Between 0 and 1.

    Returns
    -------
    low, high : float
    """
    defined = draws[np.isfinite(draws)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
