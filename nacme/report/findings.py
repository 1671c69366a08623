"""What a sweep shows: every statistic of its report, computed once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from nacme.criteria.registry import criterion_values
from nacme.errors import NacmeWarning
from nacme.study.comparison import compare_criteria
from nacme.study.correlation import rank_correlation
from nacme.study.quality import selection_quality, summarise_quality
from nacme.study.selection import select, single_env_rows
from nacme.targets import Targets, observations

Population = Literal["run", "sweep"]
POPULATIONS: tuple[Population, ...] = ("run", "sweep")
#: Runs above which only the judged criterion is compared with its rival.
LARGE = 2_000
#: How often `gather` says that it got on.
STEPS = 6


@dataclass(frozen=True)
class Findings:
    """The rows of a sweep's single-test-env runs, with the statistics of both populations.

    Parameters
    ----------
    rows : DataFrame
        As `nacme.load_sweep` returns it, single test env only, with a column per criterion.
    criteria : list of str
        In the order of the report; the first is the one that is judged.
    picks : dict
        What `nacme.select` returns, per population.
    quality, summary : dict
        What `selection_quality` and `summarise_quality` return, per population, with `rival` as
        the baseline; the summary also has the standard error of regret over the choices, `regret_error`.
    ranks : dict
        What `nacme.rank_correlation` returns, per population; algorithms are pooled where there are several.
    comparisons : dict
        What `nacme.study.comparison.compare_criteria` returns for every other criterion against `rival`, per
        population; empty without a rival.
    overall : dict
        The judged criterion against `rival`, one row per data set, its test envs taken together, per population;
        empty without a rival.
    notes : list of str
        What was left out, undefined or tied.
    n_boot, seed : int
        Of the bootstrap.
    """

    rows: pd.DataFrame
    criteria: list[str]
    picks: dict[Population, pd.DataFrame]
    quality: dict[Population, pd.DataFrame]
    summary: dict[Population, pd.DataFrame]
    ranks: dict[Population, pd.DataFrame]
    comparisons: dict[Population, pd.DataFrame]
    overall: dict[Population, pd.DataFrame]
    notes: list[str]
    n_boot: int
    seed: int

    @property
    def judged(self) -> str:
        """The criterion that the verdict is about."""
        return self.criteria[0]

    @property
    def rival(self) -> str | None:
        """The criterion that it is compared with."""
        return rival_of(self.criteria)


def rival_of(criteria: Sequence[str]) -> str | None:
    """Name what the first criterion is compared with: ``val_acc``, or the second; None if there is none."""
    others = list(criteria[1:])
    return "val_acc" if "val_acc" in others else next(iter(others), None)


def gather(
    df: pd.DataFrame,
    criteria: Sequence[str],
    *,
    include_step0: bool,
    n_boot: int,
    seed: int,
    targets: Targets | None = None,
    tick: Callable[[], object] = lambda: None,
) -> Findings:
    """Compute every statistic of the report; what the computation warns of becomes a note.

    Parameters
    ----------
    df : DataFrame
        As `nacme.load_sweep` returns it.
    criteria : sequence of str
        Names of criteria.
    include_step0 : bool
        Whether the untrained network counts in the correlations.
    n_boot, seed : int
        Of the bootstrap over runs.
    targets : {"each", "mean"}, optional
        As for `nacme.select`.
    tick : callable
        Called after each of the steps, `STEPS` times at most.

    Returns
    -------
    Findings

    Raises
    ------
    CriterionError, SweepError
        As `nacme.select` and `nacme.rank_correlation` raise them.
    """
    # one observation a run, whatever the tables of single test envs show
    whole = observations(df, "mean" if targets == "each" else targets)[0]
    df, targets_note = observations(df, targets)
    df = df.reset_index(drop=True)
    names = list(criteria)
    cells = df.groupby(["dataset", "test_env"]).ngroup().astype(float)
    values = {name: criterion_values(df, name, cells) for name in names}
    rows = single_env_rows(df.assign(**values))
    options: dict[str, Any] = {
        "include_step0": include_step0,
        "n_boot": n_boot,
        "seed": seed,
        "pool_algorithms": rows["algorithm"].nunique() > 1,
    }
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", NacmeWarning)
        rival = rival_of(names)
        picks, quality, ranks, summary = {}, {}, {}, {}
        for per in POPULATIONS:
            picks[per] = select(df, names, per)
            quality[per] = selection_quality(df, names, per, baselines=[rival] if rival else [])
            tick()
            ranks[per] = rank_correlation(df, names, per, **options)
            tick()
        comparisons, overall = _compare(df, whole, names, options, tick)
    for per in POPULATIONS:
        errors = picks[per].groupby("criterion")["regret"].sem()
        summary[per] = summarise_quality(quality[per])
        summary[per]["regret_error"] = summary[per]["criterion"].map(errors)
    notes = [f"left out: {exclusion}" for exclusion in df.attrs.get("exclusions", [])]
    if targets_note:
        notes.append(targets_note)
    runs = rows.drop_duplicates("run")
    if unfinished := int((~runs["done"]).sum()):
        notes.append(f"{unfinished:,} of {len(runs):,} runs are not finished")
    if "degenerate" in rows and not rows["degenerate"].fillna(False).any():
        bins = f"; {rows['occupied_bins'].mean():.1f} bins occupied on average" if "occupied_bins" in rows else ""
        notes.append(
            f"coverage was measured at {rows['degenerate'].count():,} checkpoints{bins}; degenerate at none"
        )
    if runs["run"].nunique() > LARGE and rival is not None:
        notes.append(
            f"more than {LARGE:,} runs: only {names[0]} is compared with {rival}, with 1,000 permutations"
        )
    notes += dict.fromkeys(str(warning.message) for warning in caught)
    for table in ranks.values():
        said = table.attrs.get("notes", [])
        notes += [note for note in said if note not in notes]
    return Findings(rows, names, picks, quality, summary, ranks, comparisons, overall, notes, n_boot, seed)


def _compare(
    df: pd.DataFrame, whole: pd.DataFrame, names: list[str], options: dict[str, Any], tick: Callable[[], object]
) -> tuple[dict[Population, pd.DataFrame], dict[Population, pd.DataFrame]]:
    """Compare every criterion with the rival in each test env, and the judged one over all test envs at once."""
    rival = rival_of(names)
    if rival is None:
        return {}, {}
    others = [name for name in names if name != rival]
    if df["run"].nunique() > LARGE:
        others, options = [names[0]], {**options, "n_permutations": 1_000}
    pooled = {**options, "pool_algorithms": True, "pool_test_envs": True}
    tables, overall = {}, {}
    for population in POPULATIONS:
        tables[population] = compare_criteria(df, others, rival, population, **options)
        overall[population] = compare_criteria(whole, names[0], rival, population, **pooled)
        tick()
    return tables, overall
