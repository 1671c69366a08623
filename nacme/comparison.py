"""Comparing the rank correlations of two criteria on the same runs and the same resamples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from nacme import bootstrap, statistics
from nacme.correlation import Cell, Population, check_arguments, split_cells
from nacme.errors import ConfigError
from nacme.statistics import Array
from nacme.targets import Targets, name_cells, observations

if TYPE_CHECKING:
    import pandas as pd

Statistic = Literal["kendall_tau", "spearman_rho"]

COMPARE_COLUMNS = (
    "dataset",
    "algorithm",
    "test_env",
    "population",
    "statistic",
    "criterion",
    "baseline",
    "n_checkpoints",
    "n_runs",
    "value",
    "baseline_value",
    "difference",
    "low",
    "high",
    "bca_low",
    "bca_high",
    "p_value",
    "p_holm",
)


def compare_criteria(
    df: pd.DataFrame,
    a: str | Sequence[str],
    b: str = "val_acc",
    population: Population = "run",
    statistic: Statistic = "kendall_tau",
    *,
    include_step0: bool = False,
    n_boot: int = 1000,
    n_permutations: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
    pool_algorithms: bool = False,
    targets: Targets | None = None,
) -> pd.DataFrame:
    """Say how much better criteria rank checkpoints than a baseline, in each (dataset, algorithm, test env).

    Parameters
    ----------
    df : pandas.DataFrame
        As `nacme.load_sweep` returns it.
    a : str or sequence of str
        The criteria to compare with the baseline.
    b : str
        The baseline.
    population, include_step0, n_boot, seed, confidence, pool_algorithms, targets
        As for `nacme.rank_correlation`.
    statistic : {"kendall_tau", "spearman_rho"}
        What is compared.
    n_permutations : int
        Most permutations to look at; all ``2 ** n_runs`` where those are no more.

    Returns
    -------
    pandas.DataFrame
        One row per criterion and cell: ``dataset, algorithm, test_env, population, statistic, criterion,
        baseline, n_checkpoints, n_runs, value, baseline_value, difference, low, high, bca_low, bca_high,
        p_value, p_holm``. Only checkpoints where both criteria are defined take part. ``low`` and
        ``high`` are the expanded percentile interval of the difference over resampled runs, ``bca_*`` the
        bias-corrected and accelerated one (too narrow where runs are few). ``p_holm`` is the p-value
        adjusted for all rows of this table. Undefined values are NaN, and ``attrs["notes"]`` says why.

    Raises
    ------
    CriterionError
        If a criterion is unknown or the records do not hold it.
    SweepError
        If there are no checkpoints.
    ConfigError
        If an argument makes no sense.

    Notes
    -----
    The p-value is of a permutation test whose null hypothesis is that within every run the two criteria
    are exchangeable; so it swaps them run by run and is valid however autocorrelated a run's checkpoints
    are. With ``population="run"`` a swap turns the sign of that run's difference (a sign-flip test of the
    mean). With ``population="sweep"`` the criteria are first replaced by their average ranks over the
    cell's checkpoints, which changes neither tau nor rho but gives them one scale, and the two statistics
    are computed anew after each way of swapping. Four runs cannot give less than p = 2 / 2^4 = 0.125.
    """
    import pandas as pd

    check_arguments(population, n_boot, confidence)
    if statistic not in ("kendall_tau", "spearman_rho"):
        raise ConfigError(f"statistic must be 'kendall_tau' or 'spearman_rho', not {statistic!r}")
    if n_permutations < 1:
        raise ConfigError(f"n_permutations must be at least 1, not {n_permutations}")
    names = [a] if isinstance(a, str) else list(a)
    if b in names:
        raise ConfigError(f"{b!r} is compared with itself; leave it out of the criteria, or change the baseline")
    df, targets_note = observations(df, targets)
    step0_note, cells = split_cells(df, [*names, b], population, include_step0, pool_algorithms)
    results: list[dict[str, object]] = []
    notes = [*([targets_note] if targets_note else []), step0_note]
    for cell in cells:
        for name in names:
            differ = (_WithinRuns if population == "run" else _AcrossRuns)(cell, name, b, statistic)
            rng = bootstrap.generator(seed, cell.label)
            row = _compare(differ, rng, n_boot, n_permutations, confidence)
            if differ.reason:
                notes.append(f"{name} against {b}: {differ.reason} [{cell.label}]")
            head = {"population": population, "statistic": statistic, "criterion": name, "baseline": b}
            results.append({**cell.key, **head, **row})
    result: pd.DataFrame = pd.DataFrame(results, columns=list(COMPARE_COLUMNS))
    result["p_holm"] = bootstrap.holm(result["p_value"].to_numpy(float))
    result = name_cells(result, targets)
    result.attrs["notes"] = notes
    return result


def _compare(
    differ: _WithinRuns | _AcrossRuns,
    rng: np.random.Generator,
    n_boot: int,
    n_permutations: int,
    confidence: float,
) -> dict[str, float | int]:
    """Estimate a difference, its intervals and its p-value."""
    count = differ.n_runs
    value, baseline = (float(v[0]) for v in differ.weigh(np.ones((1, count)))) if count else (np.nan, np.nan)
    row: dict[str, float | int] = {
        "n_checkpoints": differ.n_checkpoints,
        "n_runs": count,
        "value": value,
        "baseline_value": baseline,
        "difference": value - baseline,
    }
    names = ("low", "high", "bca_low", "bca_high", "p_value")
    if count < 2 or not np.isfinite(value - baseline):
        return row | dict.fromkeys(names, float("nan"))
    draws = np.subtract(*differ.weigh(bootstrap.run_weights(count, n_boot, rng)))
    jackknife = np.subtract(*differ.weigh(1 - np.eye(count)))
    swapped, complete = bootstrap.swaps(count, n_permutations, rng)
    numbers = (
        *bootstrap.percentile_interval(draws, confidence, count),
        *bootstrap.bca_interval(draws, value - baseline, jackknife, confidence),
        bootstrap.permutation_p(differ.swap(swapped), value - baseline, complete),
    )
    return row | dict(zip(names, numbers))


class _WithinRuns:
    """The difference of two means over runs of a statistic within each run."""

    def __init__(self, cell: Cell, a: str, b: str, statistic: Statistic) -> None:
        xs, y, step, codes = cell.defined([a, b])
        values = np.stack([statistics.within_runs(x, y, step, codes, cell.n_runs)[statistic] for x in xs])
        defined = np.asarray(np.isfinite(values).all(0))
        self._values = values[:, defined]
        self.n_runs = int(defined.sum())
        self.n_checkpoints = int(defined[codes].sum())
        left = cell.n_runs - self.n_runs
        self.reason = f"undefined in {left} of {cell.n_runs} runs" if left or not cell.n_runs else None
        if self.n_runs == 1:
            self.reason = "interval and p-value undefined: one run"

    def weigh(self, weights: Array) -> tuple[Array, Array]:
        """Return both values, shape (B,) each, with runs counted as in ``weights``, shape (B, R)."""
        a, b = (bootstrap.weighted_mean(values, weights) for values in self._values)
        return a, b

    def swap(self, swapped: np.ndarray) -> Array:
        """Return the difference, shape (B,), with the criteria swapped in the runs where (B, R) says so."""
        signs = np.where(swapped, -1.0, 1.0)
        return np.asarray(signs @ np.subtract(*self._values) / self.n_runs)


class _AcrossRuns:
    """The difference of two statistics over all checkpoints of all runs."""

    def __init__(self, cell: Cell, a: str, b: str, statistic: Statistic) -> None:
        from scipy.stats import rankdata

        (x_a, x_b), y, _, codes = cell.defined([a, b])
        present, codes = np.unique(codes, return_inverse=True)
        self.n_runs = len(present)
        self.n_checkpoints = len(y)
        self.reason = None
        if len(y) < 2 or min(np.ptp(x_a), np.ptp(x_b), np.ptp(y)) == 0:
            self.reason = "undefined: a constant criterion or test accuracy, or fewer than two checkpoints"
        elif self.n_runs == 1:
            self.reason = "interval and p-value undefined: one run"
        if not self.n_runs:
            return
        # Each run twice, once with the ranks of each criterion: whatever is weighed or swapped, the
        # checkpoints that count are a choice among these.
        ranks = np.concatenate([rankdata(x_a), rankdata(x_b)])
        pairs = statistics.RunPairs(ranks, np.tile(y, 2), np.concatenate([codes, codes + self.n_runs]))
        self._correlate = pairs.kendall if statistic == "kendall_tau" else pairs.spearman

    def weigh(self, weights: Array) -> tuple[Array, Array]:
        """Return both values, shape (B,) each, with runs counted as in ``weights``, shape (B, R)."""
        none = np.zeros_like(weights)
        return self._correlate(np.hstack([weights, none])), self._correlate(np.hstack([none, weights]))

    def swap(self, swapped: np.ndarray) -> Array:
        """Return the difference, shape (B,), with the criteria swapped in the runs where (B, R) says so."""
        first, second = (~swapped).astype(float), swapped.astype(float)
        return self._correlate(np.hstack([first, second])) - self._correlate(np.hstack([second, first]))
