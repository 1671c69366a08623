"""Rank correlation of criteria with test accuracy, within runs and across the runs of a sweep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from nacme import bootstrap, statistics
from nacme.criteria import oriented_values
from nacme.errors import ConfigError
from nacme.selection import single_env_rows
from nacme.statistics import Array

if TYPE_CHECKING:
    import pandas as pd

Population = Literal["run", "sweep"]

CORRELATE_COLUMNS = (
    "dataset",
    "algorithm",
    "test_env",
    "population",
    "criterion",
    "n_checkpoints",
    "n_runs",
    "kendall_tau",
    "kendall_low",
    "kendall_high",
    "spearman_rho",
    "spearman_low",
    "spearman_high",
    "weighted_tau",
    "partial_spearman_step",
)
CELL = ["dataset", "algorithm", "test_env"]
_NAN = float("nan")


def rank_correlation(
    df: pd.DataFrame,
    criteria: str | Sequence[str] = ("nac_me", "val_acc"),
    population: Population = "run",
    *,
    include_step0: bool = False,
    n_boot: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    pool_algorithms: bool = False,
) -> pd.DataFrame:
    """Correlate criteria with test accuracy in each (dataset, algorithm, test env).

    Every criterion is turned so that higher is better; a positive correlation is a good criterion.

    Parameters
    ----------
    df : pandas.DataFrame
        As `nacme.load_sweep` returns it.
    criteria : str or sequence of str
        Names of criteria, combinations like ``rank_mean(nac_me, val_acc)`` among them.
    population : {"run", "sweep"}
        ``"run"``: the statistic within each run, averaged over the runs where it is defined (early
        stopping). ``"sweep"``: one statistic over all checkpoints of all the cell's runs (hyper-parameter
        search).
    include_step0 : bool
        Whether the untrained network at step 0 counts as a checkpoint, as in the paper.
    n_boot, seed : int
        Number of bootstrap resamples over runs, and their seed. A cell's resamples are the same for
        every criterion, and do not depend on which other cells there are.
    confidence : float
        Of the intervals.
    pool_algorithms : bool
        Whether a cell holds all algorithms; its ``algorithm`` is then ``"all"``.

    Returns
    -------
    pandas.DataFrame
        One row per cell and criterion: ``dataset, algorithm, test_env, population, criterion,
        n_checkpoints, n_runs, kendall_tau, kendall_low, kendall_high, spearman_rho, spearman_low,
        spearman_high, weighted_tau, partial_spearman_step``. With ``population="run"`` the counts are of
        the runs where tau is defined and of their checkpoints. What is undefined is NaN, and
        ``attrs["notes"]`` says why; intervals need two runs.

    Raises
    ------
    CriterionError
        If a criterion is unknown or the records do not hold it.
    SweepError
        If no run has a single test env.
    ConfigError
        If an argument makes no sense.

    See Also
    --------
    nacme.statistics : the four statistics, and how each treats ties.
    """
    import pandas as pd

    check_arguments(population, n_boot, confidence)
    names = [criteria] if isinstance(criteria, str) else list(criteria)
    step0_note, cells = split_cells(df, names, population, include_step0, pool_algorithms)
    results: list[dict[str, object]] = []
    where: dict[str, list[str]] = {}
    for cell in cells:
        weights = bootstrap.run_weights(cell.n_runs, n_boot, bootstrap.generator(seed, cell.label))
        for name in names:
            (x,), y, step, codes = cell.defined([name])
            estimates, reasons = (_within_runs if population == "run" else _across_runs)(
                x, y, step, codes, weights, confidence
            )
            if len(x) < len(cell.step):
                reasons = [f"undefined at {len(cell.step) - len(x)} of {len(cell.step)} checkpoints", *reasons]
            for reason in reasons:
                where.setdefault(f"{name}: {reason}", []).append(cell.label)
            results.append({**cell.key, "population": population, "criterion": name, **estimates})
    result: pd.DataFrame = pd.DataFrame(results, columns=list(CORRELATE_COLUMNS))
    notes = [f"{said} [{'; '.join(labels)}]" for said, labels in where.items()]
    result.attrs["notes"] = [step0_note, *notes]
    return result


def check_arguments(population: str, n_boot: int, confidence: float) -> None:
    """Raise a ConfigError for arguments of `rank_correlation` that make no sense."""
    if population not in ("run", "sweep"):
        raise ConfigError(f"population must be 'run' or 'sweep', not {population!r}")
    if n_boot < 1:
        raise ConfigError(f"n_boot must be at least 1, not {n_boot}")
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence must lie between 0 and 1, not {confidence}")


@dataclass(frozen=True)
class Cell:
    """The checkpoints of one (dataset, algorithm, test env), n of them in R runs.

    Parameters
    ----------
    key : dict
        ``dataset``, ``algorithm`` and ``test_env``.
    values : dict of str to ndarray, shape (n,)
        Each criterion, turned so that higher is better; NaN where undefined.
    accuracy, step : ndarray, shape (n,)
        Test accuracy (NaN where undefined) and step.
    codes : ndarray of int, shape (n,)
        Number of the run, from 0 to R - 1.
    n_runs : int
        R.
    """

    key: dict[str, Any]
    values: dict[str, Array]
    accuracy: Array
    step: Array
    codes: npt.NDArray[np.intp]
    n_runs: int

    @property
    def label(self) -> str:
        """The cell in words."""
        return "{dataset}, {algorithm}, env {test_env}".format(**self.key)

    def defined(self, names: Sequence[str]) -> tuple[list[Array], Array, Array, npt.NDArray[np.intp]]:
        """Return values, accuracy, step and run where accuracy and all the named criteria are defined."""
        usable = np.isfinite([self.accuracy, *(self.values[name] for name in names)]).all(0)
        values = [self.values[name][usable] for name in names]
        return values, self.accuracy[usable], self.step[usable], self.codes[usable]


def split_cells(
    df: pd.DataFrame, names: Sequence[str], population: str, include_step0: bool, pool_algorithms: bool
) -> tuple[str, list[Cell]]:
    """Split a sweep into the cells in which criteria are correlated.

    Parameters
    ----------
    df : pandas.DataFrame
        As `nacme.load_sweep` returns it.
    names, population, include_step0, pool_algorithms
        As for `rank_correlation`.

    Returns
    -------
    step0_note : str
        What became of step 0.
    cells : list of Cell
        In order of dataset, algorithm and test env.
    """
    df = df.reset_index(drop=True)
    rows = single_env_rows(df)
    if pool_algorithms:
        rows = rows.assign(algorithm="all")
    step0 = rows["step"] == 0
    counted = rows if include_step0 else rows[~step0]
    key = [*CELL, "run"] if population == "run" else CELL
    populations = counted.groupby(key).ngroup().astype(float).reindex(df.index)
    values = {name: oriented_values(df, name, populations) for name in names}
    cells = []
    held: dict[Any, Any] = counted.groupby(CELL).groups
    for of_cell, _ in rows.groupby(CELL, sort=True):
        group = counted.loc[held.get(of_cell, [])]
        runs, codes = np.unique(group["run"].to_numpy(str), return_inverse=True)
        cells.append(
            Cell(
                key=dict(zip(CELL, of_cell)),
                values={name: series[group.index].to_numpy() for name, series in values.items()},
                accuracy=group["test_acc"].to_numpy(float),
                step=group["step"].to_numpy(float),
                codes=codes,
                n_runs=len(runs),
            )
        )
    said = "counts" if include_step0 else "is left out"
    return f"step 0 {said}: {int(step0.sum())} of {len(rows)} checkpoints", cells


Estimates = dict[str, float | int]


def _within_runs(
    x: Array, y: Array, step: Array, codes: npt.NDArray[np.intp], weights: Array, confidence: float
) -> tuple[Estimates, list[str]]:
    """Average the statistics over runs; the interval is over runs."""
    n_runs = weights.shape[1]
    taus, rhos, weighteds, partials = (np.full(n_runs, np.nan) for _ in range(4))
    why: Counter[str] = Counter()
    n_checkpoints = 0
    for r in range(n_runs):
        mine = codes == r
        if reason := _degenerate(x[mine], y[mine]):
            why[reason] += 1
            continue
        n_checkpoints += int(mine.sum())
        taus[r] = statistics.kendall_tau(x[mine], y[mine])
        rhos[r] = statistics.spearman_rho(x[mine], y[mine])
        weighteds[r] = statistics.weighted_tau(x[mine], y[mine])
        partials[r] = statistics.partial_spearman(x[mine], y[mine], step[mine])
    defined = int(np.isfinite(taus).sum())
    reasons = []
    if defined < n_runs or not n_runs:
        listed = ", ".join(f"{reason}: {count}" for reason, count in sorted(why.items())) or "no checkpoint"
        reasons.append(f"undefined in {n_runs - defined} of {n_runs} runs ({listed})")
    partial = int(np.isfinite(partials).sum())
    if partial < defined:
        reasons.append(
            f"partial_spearman_step undefined in {defined - partial} of {defined} runs (fewer than 4 "
            "checkpoints, or monotone in the step)"
        )
    draws = [bootstrap.weighted_mean(values, weights) for values in (taus, rhos)]
    whole = np.ones((1, n_runs))
    tau, rho, weighted, given = (
        float(bootstrap.weighted_mean(values, whole)[0]) for values in (taus, rhos, weighteds, partials)
    )
    return _estimates(n_checkpoints, defined, (tau, rho, weighted, given), draws, confidence, reasons)


def _across_runs(
    x: Array, y: Array, step: Array, codes: npt.NDArray[np.intp], weights: Array, confidence: float
) -> tuple[Estimates, list[str]]:
    """One statistic over all checkpoints of all runs; the interval resamples whole runs."""
    present, codes = np.unique(codes, return_inverse=True)
    if reason := _degenerate(x, y):
        return _estimates(len(x), len(present), (_NAN,) * 4, [], confidence, [f"undefined: {reason}"])
    pairs = statistics.RunPairs(x, y, codes)
    whole, weights = np.ones((1, len(present))), weights[:, present]
    partial = statistics.partial_spearman(x, y, step)
    reasons = []
    if not np.isfinite(partial):
        reasons.append("partial_spearman_step undefined (fewer than 4 checkpoints, or monotone in the step)")
    estimates = (
        float(pairs.kendall(whole)[0]),
        float(pairs.spearman(whole)[0]),
        statistics.weighted_tau(x, y),
        partial,
    )
    draws = [pairs.kendall(weights), pairs.spearman(weights)]
    return _estimates(len(x), len(present), estimates, draws, confidence, reasons)


def _degenerate(x: Array, y: Array) -> str | None:
    """Say why a rank correlation of two arrays is undefined, if it is."""
    if len(x) < 2:
        return "one checkpoint" if len(x) else "no checkpoint"
    if np.ptp(x) == 0:
        return "constant criterion"
    return "constant test accuracy" if np.ptp(y) == 0 else None


def _estimates(
    n_checkpoints: int,
    n_runs: int,
    values: tuple[float, ...],
    draws: Sequence[Array],
    confidence: float,
    reasons: list[str],
) -> tuple[Estimates, list[str]]:
    """Lay out one row's numbers; ``values`` are tau, rho, weighted tau, partial rho."""
    intervals = [(_NAN, _NAN), (_NAN, _NAN)]
    if n_runs >= 2 and draws:
        intervals = [bootstrap.percentile_interval(d, confidence, n_runs) for d in draws]
    elif n_runs == 1:
        reasons = [*reasons, "intervals undefined: one run"]
    (tau_low, tau_high), (rho_low, rho_high) = intervals
    tau, rho, weighted, partial = values
    row: Estimates = {
        "n_checkpoints": n_checkpoints,
        "n_runs": n_runs,
        "kendall_tau": tau,
        "kendall_low": tau_low,
        "kendall_high": tau_high,
        "spearman_rho": rho,
        "spearman_low": rho_low,
        "spearman_high": rho_high,
        "weighted_tau": weighted,
        "partial_spearman_step": partial,
    }
    return row, reasons
