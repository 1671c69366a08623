"""Rank correlation of criteria with test accuracy, within runs and across the runs of a sweep."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from nacme.criteria.registry import oriented_values
from nacme.errors import ConfigError
from nacme.inference import bootstrap, statistics
from nacme.inference.statistics import Array
from nacme.study.selection import single_env_rows
from nacme.targets import Targets, name_cells, observations

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
    "partial_spearman_step_val_acc",
    "reason",
)
CELL = ["dataset", "algorithm", "test_env"]
STATISTICS = ("kendall_tau", "spearman_rho", "weighted_tau", "partial_spearman_step")
BEYOND = "partial_spearman_step_val_acc"
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
    targets: Targets | None = None,
    candidate: str = "raw",
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
    candidate : str
        The kind whose checkpoints are ranked: ``"raw"``, ``"sma"`` and so on.
    targets : {"each", "mean"}, optional
        As for `nacme.select`: what is correlated with where runs have several test envs.

    Returns
    -------
    pandas.DataFrame
        One row per cell and criterion: ``dataset, algorithm, test_env, population, criterion,
        n_checkpoints, n_runs, kendall_tau, kendall_low, kendall_high, spearman_rho, spearman_low,
        spearman_high, weighted_tau, partial_spearman_step, partial_spearman_step_val_acc, reason``; the last
        number is what is left once the step *and* ``val_acc`` are held fixed. With ``population="run"`` the
        counts are of the runs where tau is defined and of their checkpoints. What is undefined is NaN;
        ``reason`` says why tau is, or else why its interval is, and is None where both are defined. Intervals
        need `bootstrap.LEAST_RUNS` runs. ``attrs["notes"]`` has what was left out and undefined in words.

    Raises
    ------
    CriterionError
        If a criterion is unknown or the records do not hold it.
    SweepError
        If there are no checkpoints.
    ConfigError
        If an argument makes no sense.

    See Also
    --------
    nacme.inference.statistics : the four statistics, and how each treats ties.
    """
    import pandas as pd

    check_arguments(population, n_boot, confidence)
    names = [criteria] if isinstance(criteria, str) else list(criteria)
    df, targets_note = observations(df, targets, candidate)
    step0_note, cells = split_cells(df, names, population, include_step0, pool_algorithms)
    results: list[dict[str, object]] = []
    where: dict[str, list[str]] = {}
    of_runs = {name: run_statistics(cells, name) for name in names} if population == "run" else {}
    for number, cell in enumerate(cells):
        resample = resampler(cell, n_boot, seed)
        for name in names:
            if population == "run":
                estimates, reasons = _within_runs(cell, name, of_runs[name][number], resample, confidence)
            else:
                estimates, reasons = _across_runs(cell, name, resample, confidence)
            beyond = _beyond_val_acc(cell, name, of_runs[name][number] if population == "run" else None)
            estimates[BEYOND], reasons = beyond[0], [*reasons, *beyond[1]]
            if missing := cell.n_undefined(name):
                reasons = [f"undefined at {missing} of {len(cell.step)} checkpoints", *reasons]
            for reason in reasons:
                where.setdefault(f"{name}: {reason}", []).append(cell.label)
            results.append({**cell.key, "population": population, "criterion": name, **estimates})
    result: pd.DataFrame = pd.DataFrame(results, columns=list(CORRELATE_COLUMNS))
    notes = [f"{said} [{'; '.join(labels)}]" for said, labels in where.items()]
    result = name_cells(result, targets)
    result.attrs["notes"] = [*([targets_note] if targets_note else []), step0_note, *notes]
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
        Number of the run, from 0 to R - 1, in ascending order.
    n_runs : int
        R.
    val_acc : ndarray, shape (n,)
        Validation accuracy; NaN where undefined, and where a table does not hold it.
    """

    key: dict[str, Any]
    values: dict[str, Array]
    accuracy: Array
    step: Array
    codes: npt.NDArray[np.intp]
    n_runs: int
    val_acc: Array

    @property
    def label(self) -> str:
        """The cell in words."""
        return "{dataset}, {algorithm}, env {test_env}".format(**self.key)

    def n_undefined(self, name: str) -> int:
        """Count the checkpoints where the criterion or the accuracy is undefined."""
        return int((~np.isfinite(self.values[name] + self.accuracy)).sum())

    def defined(self, names: Sequence[str]) -> tuple[list[Array], Array, Array, npt.NDArray[np.intp]]:
        """Return values, accuracy, step and run where accuracy and all the named criteria are defined."""
        usable = np.isfinite([self.accuracy, *(self.values[name] for name in names)]).all(0)
        values = [self.values[name][usable] for name in names]
        return values, self.accuracy[usable], self.step[usable], self.codes[usable]

    def val_acc_where(self, name: str) -> Array:
        """Return validation accuracy at the checkpoints that `defined` gives for one criterion."""
        return self.val_acc[np.isfinite(self.values[name] + self.accuracy)]


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
    import pandas as pd

    df = observations(df)[0].reset_index(drop=True)
    rows = single_env_rows(df)
    if pool_algorithms:
        rows = rows.assign(algorithm="all")
    grouped = rows.groupby(CELL, sort=True)
    where = rows.index.to_numpy()
    cell_of, run_of = (np.full(len(df), -1) for _ in range(2))
    cell_of[where] = grouped.ngroup()
    run_of[where] = rows.groupby(["run", "test_env"], sort=False).ngroup()
    step = df["step"].to_numpy(float)
    step0 = (cell_of >= 0) & (step == 0)
    counted = (cell_of >= 0) & (include_step0 | ~step0)
    number = np.where(counted, run_of if population == "run" else cell_of, np.nan)
    populations = pd.Series(number, index=df.index)
    values = {name: oriented_values(df, name, populations).to_numpy(float) for name in names}
    accuracy = df["test_acc"].to_numpy(float)
    val_acc = df["val_acc"].to_numpy(float) if "val_acc" in df else np.full(len(df), np.nan)
    order = np.flatnonzero(counted)
    order = order[np.lexsort((run_of[order], cell_of[order]))]
    keys: list[Any] = sorted(grouped.indices)
    bounds = np.searchsorted(cell_of[order], np.arange(len(keys) + 1))
    cells = []
    for i, key in enumerate(keys):
        mine = order[bounds[i] : bounds[i + 1]]
        new = np.diff(run_of[mine], prepend=-1) != 0
        cells.append(
            Cell(
                key=dict(zip(CELL, key)),
                values={name: of_all[mine] for name, of_all in values.items()},
                accuracy=accuracy[mine],
                step=step[mine],
                codes=np.cumsum(new) - 1,
                n_runs=int(new.sum()),
                val_acc=val_acc[mine],
            )
        )
    said = "counts" if include_step0 else "is left out"
    return f"step 0 {said}: {int(step0.sum())} of {len(rows)} checkpoints", cells


Estimates = dict[str, float | int | str | None]
Resample = Callable[[int], Array]


def resampler(cell: Cell, n_boot: int, seed: int) -> Resample:
    """Return what draws a cell's resamples of so many runs: the same whenever it is asked for as many."""

    @functools.cache
    def resample(n_runs: int) -> Array:
        return bootstrap.run_weights(n_runs, n_boot, bootstrap.generator(seed, cell.label))

    return resample


def run_statistics(cells: Sequence[Cell], name: str) -> list[dict[str, Array]]:
    """Correlate a criterion within each run.

    Parameters
    ----------
    cells : sequence of Cell
    name : str

    Returns
    -------
    list of dict of str to ndarray, shape (R,)
        For each cell what `statistics.within_runs` gives, and ``n_checkpoints``, the number that counted.
    """
    defined = [cell.defined([name]) for cell in cells]
    firsts = np.cumsum([0, *(cell.n_runs for cell in cells)])
    x = np.concatenate([values for (values,), *_ in defined])
    y, step = (np.concatenate([of_cell[i] for of_cell in defined]) for i in (1, 2))
    run = np.concatenate([of_cell[3] + first for of_cell, first in zip(defined, firsts)])
    val_acc = np.concatenate([cell.val_acc_where(name) for cell in cells])
    whole = statistics.within_runs(x, y, step, run, int(firsts[-1]), val_acc)
    whole["n_checkpoints"] = np.bincount(run, minlength=firsts[-1]).astype(float)
    return [
        {kind: values[first:last] for kind, values in whole.items()} for first, last in itertools.pairwise(firsts)
    ]


def _within_runs(
    cell: Cell, name: str, of_runs: dict[str, Array], resample: Resample, confidence: float
) -> tuple[Estimates, list[str]]:
    """Average the statistics over runs; the interval is over runs."""
    values = np.stack([of_runs[kind] for kind in STATISTICS], axis=1)
    is_defined = np.isfinite(values[:, 0])
    defined = int(is_defined.sum())
    reasons, reason = [], None
    if defined < cell.n_runs or not cell.n_runs:
        (x,), y, _, codes = cell.defined([name])
        why = Counter(undefined(x[codes == r], y[codes == r]) for r in np.flatnonzero(~is_defined))
        listed = ", ".join(f"{reason}: {count}" for reason, count in sorted(why.items())) or "no checkpoint"
        reasons.append(f"undefined in {cell.n_runs - defined} of {cell.n_runs} runs ({listed})")
        if not defined:
            reason = ", ".join(sorted(filter(None, why))) or "no checkpoint"
    partial = int(np.isfinite(values[:, 3]).sum())
    if partial < defined:
        reasons.append(
            f"partial_spearman_step undefined in {defined - partial} of {defined} runs (fewer than 4 "
            "checkpoints, or monotone in the step)"
        )
    means = bootstrap.weighted_mean(values, np.ones((1, cell.n_runs)))[0]
    ends = bootstrap.mean_interval(values[is_defined, :2], resample(defined), confidence)
    n_checkpoints = int(of_runs["n_checkpoints"][is_defined].sum())
    return _estimates(n_checkpoints, defined, means, ends, reason, reasons)


def _beyond_val_acc(cell: Cell, name: str, of_runs: dict[str, Array] | None) -> tuple[float, list[str]]:
    """Correlate with step and val_acc held fixed: the mean over runs, or across them where there is none."""
    if of_runs is None:
        (x,), y, step, _ = cell.defined([name])
        val_acc = cell.val_acc_where(name)
        whole = len(x) > 0 and np.isfinite(val_acc).all()
        values = np.array([statistics.partial_spearman_both(x, y, step, val_acc) if whole else _NAN])
    else:
        values = of_runs[BEYOND][np.isfinite(of_runs["kendall_tau"])]
    defined = values[np.isfinite(values)]
    reasons = []
    if name != "val_acc" and len(defined) < len(values):
        where = f" in {len(values) - len(defined)} of {len(values)} runs" if of_runs is not None else ""
        reasons.append(f"{BEYOND} undefined{where} (fewer than 5 checkpoints, or a function of step and val_acc)")
    return (float(defined.mean()) if len(defined) else _NAN), reasons


def _across_runs(cell: Cell, name: str, resample: Resample, confidence: float) -> tuple[Estimates, list[str]]:
    """One statistic over all checkpoints of all runs; the interval resamples whole runs."""
    (x,), y, step, codes = cell.defined([name])
    present, codes = np.unique(codes, return_inverse=True)
    if reason := undefined(x, y):
        nothing = np.full((2, 2), _NAN)
        return _estimates(len(x), len(present), (_NAN,) * 4, nothing, reason, [f"undefined: {reason}"])
    pairs = statistics.RunPairs(x, y, codes)
    whole, weights = np.ones((1, len(present))), resample(len(present))
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
    ends = [
        bootstrap.pooled_interval(pairs.kendall, pairs.kendall_influence, weights, confidence),
        bootstrap.pooled_interval(pairs.spearman, pairs.spearman_influence, weights, confidence),
    ]
    return _estimates(len(x), len(present), estimates, np.transpose(ends), None, reasons)


def undefined(x: Array, y: Array) -> str | None:
    """Say why a rank correlation of a criterion and test accuracy is undefined, if it is."""
    if len(x) < 2:
        return "one checkpoint" if len(x) else "no checkpoint"
    if np.ptp(x) == 0:
        return "constant criterion"
    return "constant test accuracy" if np.ptp(y) == 0 else None


def _estimates(
    n_checkpoints: int,
    n_runs: int,
    values: Iterable[float],
    ends: Any,
    reason: str | None,
    reasons: list[str],
) -> tuple[Estimates, list[str]]:
    """Lay out one row's numbers; ``values`` are in the order of STATISTICS, ``ends`` (2, 2) of the first two."""
    if reason is None and (reason := bootstrap.too_few(n_runs)):
        reasons = [*reasons, f"intervals undefined: {reason}"]
    row: Estimates = {"n_checkpoints": n_checkpoints, "n_runs": n_runs}
    row |= {kind: float(value) for kind, value in zip(STATISTICS, values)}
    low, high = (np.clip(side, -1, 1).tolist() for side in ends)
    row |= {"kendall_low": low[0], "kendall_high": high[0], "spearman_low": low[1], "spearman_high": high[1]}
    return row | {"reason": reason}, reasons
