"""Comparing the rank correlations of two criteria on the same runs and the same resamples."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from nacme.errors import ConfigError
from nacme.inference import bootstrap, statistics
from nacme.inference.decision import LEVEL, PRIMARY, equivalent
from nacme.inference.statistics import Array
from nacme.study.correlation import Cell, Population, check_arguments, split_cells, undefined
from nacme.targets import Targets, name_cells, observations

if TYPE_CHECKING:
    import pandas as pd

Statistic = Literal["kendall_tau", "spearman_rho"]

COMPARE_COLUMNS = (
    "dataset",
    "algorithm",
    "test_env",
    "n_test_envs",
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
    "p_value",
    "p_holm",
    "primary",
    "equivalent",
    "reason",
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
    pool_test_envs: bool = False,
    margin: float | None = None,
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
        Most permutations to look at; all of them where those are no more.
    pool_test_envs : bool
        Whether a row holds all test envs of a data set; its ``test_env`` is then ``"all"``. Within runs the
        difference is the mean over all runs, across the sweep the mean over test envs of what each one gives.
    margin : float, optional
        The largest difference that does not matter, stated beforehand: asks for a test of equivalence.

    Returns
    -------
    pandas.DataFrame
        One row per criterion and cell: ``dataset, algorithm, test_env, n_test_envs, population, statistic,
        criterion, baseline, n_checkpoints, n_runs, value, baseline_value, difference, low, high, p_value,
        p_holm, primary, equivalent, reason``. Both criteria are looked at in the same runs and checkpoints,
        those where both are defined; ``n_runs``, ``n_checkpoints`` and ``n_test_envs`` count them. ``low`` and
        ``high`` are the interval of the difference over resampled runs (`nacme.inference.bootstrap.run_interval`).
        ``primary`` marks the rows of the one comparison that a study declares (`decision.PRIMARY`):
        ``p_holm`` is the p-value adjusted for all of those, or for all of the others. ``equivalent`` is what
        `decision.equivalent` says, None without a margin. Undefined values are NaN; ``reason`` says why
        the difference is, or else its interval.

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
    The p-value is of an exact permutation test, valid however autocorrelated a run's checkpoints are. Its null
    hypothesis is that within every run the two criteria are exchangeable, each on whatever scale. With
    ``population="run"`` a swap turns the sign of that run's difference (a sign-flip test of the mean). Across
    runs a swap in one run would need to know how one criterion's scale compares with the other's, and ranks
    over all runs, which would give them one, are no longer exchangeable; so with ``population="sweep"``
    the runs are paired at random (the last three stay together where their number is odd), the statistics are
    computed over the checkpoints of each pair, and the criteria are swapped pair by pair. R runs within a run
    cannot give less than p = 2 / 2^R, and across the sweep 2 / 2^(R // 2): 0.05 takes 6 runs, or 12.
    """
    import pandas as pd

    check_arguments(population, n_boot, confidence)
    if statistic not in ("kendall_tau", "spearman_rho"):
        raise ConfigError(f"statistic must be 'kendall_tau' or 'spearman_rho', not {statistic!r}")
    if n_permutations < 1:
        raise ConfigError(f"n_permutations must be at least 1, not {n_permutations}")
    if pool_test_envs and targets == "each":
        raise ConfigError("pool_test_envs counts a run once: targets must be 'mean' or None, not 'each'")
    if margin is not None and not margin > 0:
        raise ConfigError(f"margin must be positive, not {margin}")
    names = [a] if isinstance(a, str) else list(a)
    if b in names:
        raise ConfigError(f"{b!r} is compared with itself; leave it out of the criteria, or change the baseline")
    df, targets_note = observations(df, targets)
    step0_note, cells = split_cells(df, [*names, b], population, include_step0, pool_algorithms)
    results: list[dict[str, object]] = []
    notes = [*([targets_note] if targets_note else []), step0_note]
    for key, label, members in _groups(cells, pool_test_envs):
        for name in names:
            differ = (_WithinRuns if population == "run" else _AcrossRuns)(members, name, b, statistic)
            row = _compare(differ, seed, label, n_boot, n_permutations, confidence, margin)
            if said := differ.note or row["reason"]:
                notes.append(f"{name} against {b}: {said} [{label}]")
            head = {"population": population, "statistic": statistic, "criterion": name, "baseline": b}
            primary = (name, b, population, statistic) == PRIMARY
            results.append({**key, **head, **row, "primary": primary})
    result: pd.DataFrame = pd.DataFrame(results, columns=list(COMPARE_COLUMNS))
    result["p_holm"] = result.groupby("primary")["p_value"].transform(bootstrap.holm)
    result = name_cells(result, targets)
    result.attrs["notes"] = notes
    return result


def _groups(cells: Sequence[Cell], pool: bool) -> list[tuple[dict[str, object], str, list[Cell]]]:
    """Return key, label and cells of each row: a cell, or those of a data set and algorithm."""
    if not pool:
        return [(cell.key, cell.label, [cell]) for cell in cells]
    found = []
    for (dataset, algorithm), group in itertools.groupby(cells, lambda c: (c.key["dataset"], c.key["algorithm"])):
        key = {"dataset": dataset, "algorithm": algorithm, "test_env": "all"}
        found.append((key, f"{dataset}, {algorithm}, all envs", list(group)))
    return found


def _compare(
    differ: _WithinRuns | _AcrossRuns,
    seed: int,
    label: str,
    n_boot: int,
    n_permutations: int,
    confidence: float,
    margin: float | None,
) -> dict[str, object]:
    """Estimate a difference, its interval and its p-value."""
    difference = differ.value - differ.baseline
    row: dict[str, object] = {
        "n_test_envs": differ.n_test_envs,
        "n_checkpoints": differ.n_checkpoints,
        "n_runs": differ.n_runs,
        "value": differ.value,
        "baseline_value": differ.baseline,
        "difference": difference,
        "reason": differ.reason or bootstrap.too_few(min(differ.sizes, default=0)),
        "equivalent": None,
    }
    if differ.n_runs < 2 or not np.isfinite(difference):
        return row | dict.fromkeys(("low", "high", "p_value"), float("nan"))
    rng = bootstrap.generator(seed, label)
    weights = np.hstack([bootstrap.run_weights(size, n_boot, rng) for size in differ.sizes])
    row["low"], row["high"] = differ.interval(weights, confidence)
    if margin is not None:
        row["equivalent"] = equivalent(*differ.interval(weights, 1 - 2 * LEVEL), margin)
    units = differ.units(rng)
    swapped, complete = bootstrap.swaps(len(units), n_permutations, rng)
    row["p_value"] = bootstrap.permutation_p(np.where(swapped, -1.0, 1.0) @ units, float(units.sum()), complete)
    return row


class _WithinRuns:
    """The difference of two means over runs of a statistic within each run."""

    def __init__(self, cells: Sequence[Cell], a: str, b: str, statistic: Statistic) -> None:
        found, counts, total = [], [], 0
        for cell in cells:
            xs, y, step, codes = cell.defined([a, b])
            values = np.stack([statistics.within_runs(x, y, step, codes, cell.n_runs)[statistic] for x in xs])
            defined = np.asarray(np.isfinite(values).all(0))
            found.append(values[:, defined])
            counts.append(int(defined[codes].sum()))
            total += cell.n_runs
        values = np.hstack(found)
        self._differences = values[0] - values[1]
        self.n_runs, self.n_checkpoints = values.shape[1], sum(counts)
        self.n_test_envs = sum(of_cell.shape[1] > 0 for of_cell in found)
        self.sizes = [self.n_runs]
        self.value, self.baseline = map(float, values.mean(1) if self.n_runs else (np.nan, np.nan))
        left = total - self.n_runs
        self.note = f"undefined in {left} of {total} runs" if left or not total else None
        self.reason = None if self.n_runs else "no run where both are defined"

    def interval(self, weights: Array, confidence: float) -> tuple[float, float]:
        """Return the interval of the difference, from resamples of the runs, shape (B, R)."""
        low, high = bootstrap.mean_interval(self._differences, weights, confidence)
        return max(float(low), -2.0), min(float(high), 2.0)

    def units(self, rng: np.random.Generator) -> Array:
        """Return the independent parts of the difference, each of which a swap turns round."""
        return np.asarray(self._differences / self.n_runs)


class _AcrossRuns:
    """The difference of two statistics over all checkpoints of all runs; of several cells, its mean."""

    def __init__(self, cells: Sequence[Cell], a: str, b: str, statistic: Statistic) -> None:
        self._pairs: list[tuple[statistics.RunPairs, statistics.RunPairs]] = []
        self._statistic = "kendall" if statistic == "kendall_tau" else "spearman"
        self.sizes: list[int] = []
        self.n_checkpoints = 0
        reasons = []
        for cell in cells:
            xs, y, _, codes = cell.defined([a, b])
            if reason := undefined(xs[0], y) or undefined(xs[1], y):
                reasons.append(reason)
                continue
            present, codes = np.unique(codes, return_inverse=True)
            first, second = (statistics.RunPairs(x, y, codes) for x in xs)
            self._pairs.append((first, second))
            self.sizes.append(len(present))
            self.n_checkpoints += len(y)
        self.n_runs, self.n_test_envs = sum(self.sizes), len(self.sizes)
        self.reason = None if self.sizes else ", ".join(sorted(set(reasons))) or "no checkpoint"
        self.note = f"undefined in {len(reasons)} of {len(cells)} test envs" if reasons and self.sizes else None
        ones = [np.ones((1, size)) for size in self.sizes]
        values = [[self._of(p, one)[0] for p in pairs] for pairs, one in zip(self._pairs, ones)]
        self.value, self.baseline = map(float, np.mean(values, axis=0) if values else (np.nan, np.nan))

    def _of(self, pairs: statistics.RunPairs, weights: Array) -> Array:
        value: Array = getattr(pairs, self._statistic)(weights)
        return value

    def _parts(self, weights: Array) -> list[Array]:
        return np.split(weights, np.cumsum(self.sizes)[:-1], axis=1)

    def _difference(self, weights: Array) -> Array:
        """Return the difference, shape (B,), with runs counted as in weights, shape (B, R)."""
        parts = zip(self._pairs, self._parts(weights))
        return np.asarray(np.mean([self._of(a, part) - self._of(b, part) for (a, b), part in parts], axis=0))

    def _influence(self, weights: Array) -> tuple[Array, Array]:
        """Return the difference and its derivatives by the weights."""
        values, slopes = [], []
        for pairs, part in zip(self._pairs, self._parts(weights)):
            (a, of_a), (b, of_b) = (getattr(p, f"{self._statistic}_influence")(part) for p in pairs)
            values.append(a - b)
            size = part.shape[1]  # whose degree of freedom is lost in each cell, not once
            lost = np.sqrt(size / (size - 1) * (self.n_runs - 1) / self.n_runs)
            slopes.append(lost * (of_a - of_b) / len(self._pairs))
        return np.mean(values, axis=0), np.hstack(slopes)

    def interval(self, weights: Array, confidence: float) -> tuple[float, float]:
        """Return the interval of the difference, from resamples of the runs, shape (B, R)."""
        if min(self.sizes) < bootstrap.LEAST_RUNS:
            return float("nan"), float("nan")
        low, high = bootstrap.pooled_interval(self._difference, self._influence, weights, confidence)
        return max(low, -2.0), min(high, 2.0)

    def units(self, rng: np.random.Generator) -> Array:
        """Return the independent parts of a difference like it, each of which a swap turns round."""
        found = []
        for (a, b), size in zip(self._pairs, self.sizes):
            blocks = np.zeros((max(size // 2, 1), size))
            order = rng.permutation(size)
            blocks[np.minimum(np.arange(size) // 2, len(blocks) - 1), order] = 1
            parts = self._of(a, blocks) - self._of(b, blocks)
            defined = parts[np.isfinite(parts)]
            found.append(defined / max(len(defined), 1))
        return np.concatenate(found)
