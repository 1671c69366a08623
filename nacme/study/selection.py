"""Choosing a checkpoint by a criterion, within each run or across the runs of a sweep, and what it costs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from nacme.candidates import RAW, across_runs
from nacme.criteria.registry import criterion_values, get_criterion
from nacme.errors import ConfigError, NacmeWarning, SweepError
from nacme.targets import Targets, name_cells, observations

if TYPE_CHECKING:
    import pandas as pd

Per = Literal["run", "sweep"]

SELECT_COLUMNS = (
    "dataset",
    "algorithm",
    "test_env",
    "trial_seed",
    "criterion",
    "run",
    "hparams_seed",
    "step",
    "value",
    "test_acc",
    "oracle_acc",
    "regret",
    "checkpoint",
    "n_tied",
    "regret_over_ties",
    "candidate",
    "no_choice",
)
#: The rule that breaks ties wherever a checkpoint is chosen, from first to last; it is DomainBed's.
TIE_RULE = (
    "the raw checkpoint before an average, the highest hparams_seed, the last directory name, and of a run the "
    "earliest step"
)
_GROUP = ["dataset", "algorithm", "test_env", "trial_seed"]


def population_key(per: str) -> list[str]:
    """Return the columns that tell the populations of `select` apart.

    Raises
    ------
    ConfigError
        If ``per`` is neither ``"run"`` nor ``"sweep"``.
    """
    if per not in ("run", "sweep"):
        raise ConfigError(f"per must be 'run' or 'sweep', not {per!r}")
    return [*_GROUP, "run"] if per == "run" else list(_GROUP)


def single_env_rows(df: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of runs with one target, which are what selection and correlation look at.

    Runs with several test envs are among them once `nacme.targets.observations` has made targets of these.

    Raises
    ------
    SweepError
        If there are none.
    """
    rows: pd.DataFrame = df.loc[df["n_test_envs"] == 1]
    if rows.empty:
        raise SweepError(
            f"{df.attrs.get('path', 'the sweep')} has no run with a single test env; train some with one "
            "--test_envs value each"
        )
    return rows


def select(
    df: pd.DataFrame,
    criterion: str | Sequence[str] = "nac_me",
    per: Per = "sweep",
    *,
    targets: Targets | None = None,
    candidates: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Choose the checkpoint that a criterion ranks first in each population.

    Parameters
    ----------
    df : pandas.DataFrame
        As `nacme.load_sweep` returns it.
    criterion : str or sequence of str
        One criterion or several, combinations like ``rank_mean(nac_me, val_acc)`` among them.
    per : {"sweep", "run"}
        A population is all checkpoints of a (dataset, algorithm, test env, trial seed), so hyper-parameters
        and stopping time are chosen at once as DomainBed does; or those of one run (early stopping).
    targets : {"each", "mean"}, optional
        What is looked at where runs have several test envs (single source): every test env by itself, or their
        mean accuracy, so that one choice is right for all of them. Without it runs with several test envs only
        serve ``leave_one_out``, unless all runs are such; then it is ``"mean"``.
    candidates : sequence of str, optional
        What may be chosen: ``["raw"]``, ``["raw", "sma"]`` and so on. None: all that are recorded; regret is
        against the best of these. Candidates across runs are in no run's population.

    Returns
    -------
    pandas.DataFrame
        One row per criterion and population: ``dataset, algorithm, test_env, trial_seed, criterion, run,
        hparams_seed, step, value, test_acc, oracle_acc, regret, checkpoint, n_tied, regret_over_ties,
        candidate, no_choice``. ``value`` is the criterion's own, ``oracle_acc`` the best test accuracy among *all*
        checkpoints of the population (also those where the criterion is undefined), ``regret = 100 *
        (oracle_acc - test_acc)`` in points. ``n_tied`` checkpoints share the best value (1: the chosen one
        alone), ``regret_over_ties`` is the regret to be expected if one of them is drawn, and ``no_choice``
        says that they are more than half of those where the criterion is defined: what it names then is
        the tie rule's choice, not its own. Where a criterion is undefined at every checkpoint, the row says
        so with nulls. With ``targets="mean"``, ``test_env`` is a text such as ``"1,2,3"`` for runs with several;
        with ``"each"`` a last column ``train_envs`` says on what the runs trained, for runs that trained on
        other envs are other populations.

    Raises
    ------
    CriterionError
        If a criterion is unknown or the records do not hold it.
    SweepError
        If there are no checkpoints.
    ConfigError
        If ``per`` or ``targets`` is unknown or no criterion is given.

    Warns
    -----
    NacmeWarning
        If a criterion is undefined in a whole population, or at some checkpoints that hence cannot be
        selected.

    Notes
    -----
    Ties are broken by `TIE_RULE`, as DomainBed breaks them, for every criterion: ``last`` too ties across the
    runs of a sweep. Undefined and infinite values are never selected.
    """
    import pandas as pd

    key = population_key(per)
    df, _ = observations(df, targets, candidates)
    df = df.reset_index(drop=True)
    if "candidate" not in df:
        df = df.assign(candidate=RAW)
    if per == "run":
        df = df[~across_runs(df)].reset_index(drop=True)
    rows = single_env_rows(df)
    number = rows.groupby(key).ngroup()
    oracle = rows.groupby(number).agg(oracle_acc=("test_acc", "max"), n=("step", "size"))
    oracle = rows.loc[~number.duplicated(), key].set_index(number[~number.duplicated()]).join(oracle).sort_index()
    names = [criterion] if isinstance(criterion, str) else list(criterion)
    if not names:
        raise ConfigError("no criterion given; name at least one")
    tables = []
    for name in names:
        scored = _score(df, rows, number, name)
        sizes = scored.groupby("_population").size().reindex(oracle.index, fill_value=0)
        _warn_undefined(name, per, oracle.assign(size=sizes), key)
        # sorting the few that tie for first place is much cheaper than sorting all
        best = scored.groupby("_population")["_score"].transform("max")
        first = _in_order(scored[scored["_score"] == best])
        chosen = first.drop_duplicates("_population")
        tied = first.groupby("_population")["test_acc"].agg(n_tied="size", tied_acc="mean")
        wanted = [
            c
            for c in ("run", "hparams_seed", "step", "value", "test_acc", "checkpoint", "candidate")
            if c not in key
        ]
        table = oracle.drop(columns="n").join(chosen.set_index("_population")[wanted])
        table["criterion"] = name
        table["regret"] = 100 * (table["oracle_acc"] - table["test_acc"])
        table = table.join(tied)
        table["regret_over_ties"] = 100 * (table["oracle_acc"] - table["tied_acc"])
        # one candidate alone is chosen for want of others, not by a tie
        none = (table["n_tied"] > 1) & (2 * table["n_tied"] > sizes)
        table["no_choice"] = none.astype("boolean").where(sizes > 0)
        tables.append(table)
    result: pd.DataFrame = pd.concat(tables, ignore_index=True)
    for column in ("hparams_seed", "step", "n_tied"):
        result[column] = result[column].astype("Int64")
    result["checkpoint"] = result["checkpoint"].astype(object).where(result["checkpoint"].notna(), None)
    result = name_cells(result[list(SELECT_COLUMNS)], targets)
    return result


def rank_checkpoints(df: pd.DataFrame, criterion: str, per: Per) -> pd.DataFrame:
    """Sort the checkpoints of a sweep so that, within each population, the one to select comes first.

    Parameters
    ----------
    df, criterion, per
        As for `select`, with one criterion.

    Returns
    -------
    pandas.DataFrame
        The rows of ``df`` where the criterion is defined, with its ``value``.
    """
    df = observations(df)[0].reset_index(drop=True)
    rows = single_env_rows(df)
    number = rows.groupby(population_key(per)).ngroup()
    ranked: pd.DataFrame = _in_order(_score(df, rows, number, criterion)).drop(columns=["_score", "_population"])
    return ranked


def _score(df: pd.DataFrame, rows: pd.DataFrame, number: pd.Series[int], criterion: str) -> pd.DataFrame:
    """Return the rows where a criterion is defined, with its value, its score and the number of the population."""
    import pandas as pd

    values = criterion_values(df, criterion, number.astype(float).reindex(df.index))
    score = values if get_criterion(criterion).higher_is_better else -values
    # joined at once: one by one, columns fragment a table as wide as a grid of settings makes it
    found = pd.DataFrame({"value": values, "_score": score, "_population": number}, index=rows.index)
    scored: pd.DataFrame = pd.concat([rows, found], axis=1).dropna(subset="_score")
    return scored


def _in_order(scored: pd.DataFrame) -> pd.DataFrame:
    """Sort so that the checkpoint to select comes first."""
    keys = ["_score", "hparams_seed", "run", "step"]
    ascending = [False, False, False, True]
    order = scored[keys]  # of the few columns that decide: a grid of settings makes the whole wide
    if "candidate" in scored:
        kind = scored["candidate"]
        order = order.assign(_averaged=kind.ne(RAW), _kind=kind)
        keys, ascending = ["_score", "_averaged", *keys[1:], "_kind"], [False, True, *ascending[1:], True]
    ordered: pd.DataFrame = scored.loc[order.sort_values(keys, ascending=ascending).index]
    return ordered


def _warn_undefined(name: str, per: str, counts: pd.DataFrame, key: Sequence[str]) -> None:
    """Say in one line where a criterion has no value, so that nothing is skipped silently."""
    empty = counts.loc[counts["size"] == 0]
    partly = counts.loc[(counts["size"] > 0) & (counts["size"] < counts["n"])]
    parts = []
    if len(empty):
        where = "; ".join(" ".join(map(str, values)) for values in empty[list(key)].head(3).to_numpy())
        more = f" and {len(empty) - 3} more" if len(empty) > 3 else ""
        parts.append(
            f"undefined (null, NaN or infinite) at every checkpoint of {len(empty)} of {len(counts)} "
            f"populations ({where}{more}), whose rows are null"
        )
    if len(partly) and not get_criterion(name).partial:
        missing = int((partly["n"] - partly["size"]).sum())
        parts.append(
            f"undefined at {missing} checkpoints of {len(partly)} populations, which it hence cannot select"
        )
    if parts:
        warnings.warn(f"{name}, per {per}: {'; '.join(parts)}", NacmeWarning, stacklevel=3)
