"""How good the checkpoints are that criteria select: regret, gains over baselines, wins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nacme.candidates import RAW, SEVERAL_NETWORKS, across_runs, kinds, of_kinds
from nacme.study.correlation import CELL
from nacme.study.selection import Per, population_key, rank_checkpoints, select, single_env_rows
from nacme.targets import Targets, observations

if TYPE_CHECKING:
    import pandas as pd

BASELINES = ("val_acc", "last")
TOP = (1, 3, 5)


def selection_quality(
    df: pd.DataFrame,
    criteria: Sequence[str],
    per: Per = "sweep",
    *,
    baselines: Sequence[str] = BASELINES,
) -> pd.DataFrame:
    """Describe what each criterion selects, in each (dataset, algorithm, test env).

    Parameters
    ----------
    df : pandas.DataFrame
        As `nacme.load_sweep` returns it, or as `nacme.targets.observations` made it of runs with several test envs
        (whose mean is taken if all are such).
    criteria : sequence of str
        Names of criteria.
    per : {"sweep", "run"}
        Populations, as for `nacme.select`; a cell of this table averages over its populations (trial seeds,
        and runs with ``per="run"``).
    baselines : sequence of str
        Criteria over which the gain is given.

    Returns
    -------
    pandas.DataFrame
        One row per cell and criterion: ``dataset, algorithm, test_env, per, criterion``, then

        ``n_populations``, ``n_undefined``
            populations of the cell, and those of them in which the criterion is nowhere defined
        ``top1_acc``, ``top3_acc``, ``top5_acc``
            mean test accuracy of the ``k`` checkpoints that the criterion ranks first, ties broken as
            `nacme.select` does, so ``top1_acc`` is that of the selected one; averaged over the populations
            where the criterion is defined at ``k`` checkpoints or more
        ``regret``
            in points, averaged over the populations where the criterion is defined
        ``regret_over_ties``, ``n_tied``
            the regret to be expected if one of the checkpoints that tie for first place is drawn, and how many
            tie, averaged likewise
        ``n_no_choice``
            populations in which more than half of the candidates tie, as `nacme.select` says it
        ``gain_over_B`` for each baseline ``B``
            in points: test accuracy of the selected checkpoint minus that of the baseline's, averaged over
            the populations where both are defined

        NaN where there is no such population.

    Raises
    ------
    CriterionError
        If a criterion is unknown or the records do not hold it.
    SweepError
        If there are no checkpoints.
    """
    import pandas as pd

    key = population_key(per)
    df, _ = observations(df)
    oracle = single_env_rows(df).groupby(key)["test_acc"].max()
    tops: dict[str, pd.DataFrame] = {}
    ties: dict[str, pd.DataFrame] = {}
    for name in dict.fromkeys([*criteria, *baselines]):
        ranked = rank_checkpoints(df, name, per)
        accuracies = {}
        for k in TOP:
            best = ranked.groupby(key)["test_acc"].head(k)
            by = ranked.loc[best.index].groupby(key)["test_acc"]
            accuracies[f"top{k}_acc"] = by.mean().where(by.size() == k)
        tops[name] = pd.DataFrame(accuracies).reindex(oracle.index)
        if name in criteria:
            by = ranked.groupby(key)
            tied = ranked[ranked["value"] == by["value"].transform("first")].groupby(key)["test_acc"]
            found = tied.agg(n_tied="size", tied_acc="mean")
            found["none"] = (found["n_tied"] > 1) & (2 * found["n_tied"] > by.size())
            ties[name] = found.reindex(oracle.index)
    tables = []
    for name in criteria:
        table = tops[name].copy()
        table["regret"] = 100 * (oracle - table["top1_acc"])
        table["regret_over_ties"] = 100 * (oracle - ties[name]["tied_acc"])
        table["n_tied"] = ties[name]["n_tied"]
        for baseline in baselines:
            table[f"gain_over_{baseline}"] = 100 * (table["top1_acc"] - tops[baseline]["top1_acc"])
        grouped = table.groupby(CELL)
        cells = grouped.mean()
        cells.insert(0, "n_populations", grouped.size())
        cells.insert(1, "n_undefined", table["top1_acc"].isna().groupby(CELL).sum())
        cells.insert(2, "n_no_choice", ties[name]["none"].eq(True).groupby(CELL).sum())
        cells = cells.reset_index()
        cells.insert(len(CELL), "per", per)
        cells.insert(len(CELL) + 1, "criterion", name)
        tables.append(cells)
    result: pd.DataFrame = pd.concat(tables, ignore_index=True)
    return result


def summarise_quality(quality: pd.DataFrame) -> pd.DataFrame:
    """Average the table of `selection_quality` over (dataset, test env) cells, and count wins.

    Parameters
    ----------
    quality : pandas.DataFrame
        As `selection_quality` returns it.

    Returns
    -------
    pandas.DataFrame
        One row per criterion, in order of appearance: ``per, criterion, n_cells``, the sums ``n_populations``
        and ``n_no_choice``, then the accuracies, regrets, ties and gains averaged first over algorithms within
        a (dataset, test env), then over those; and for each baseline ``B`` ``wins_over_B``, ``losses_to_B``,
        ``ties_with_B`` (cells with a positive, negative or zero gain), ``win_rate_over_B`` (of the cells that
        are not ties) and ``sign_p_over_B``, the two-sided p-value of a sign test over those cells. NaN where
        there is no such cell.

    Notes
    -----
    The sign test takes the cells as independent. Cells of one dataset share their training images, so
    its p-value is a lower bound on the doubt.
    """
    import pandas as pd
    from scipy.stats import binomtest

    gains = [c for c in quality.columns if c.startswith("gain_over_")]
    averaged = [f"top{k}_acc" for k in TOP] + ["regret", "regret_over_ties", "n_tied", *gains]
    counted = ["n_populations", "n_no_choice"]
    rows = []
    for (per, name), of_criterion in quality.groupby(["per", "criterion"], sort=False):
        cells = of_criterion.groupby(["dataset", "test_env"])[averaged].mean()
        row: dict[Any, Any] = {"per": per, "criterion": name, "n_cells": len(cells)}
        row |= of_criterion[counted].sum().to_dict() | cells.mean().to_dict()
        for column in gains:
            baseline = column.removeprefix("gain_over_")
            gain = cells[column].dropna().round(9)  # points; means of equal numbers may differ in the last bit
            wins, losses = int((gain > 0).sum()), int((gain < 0).sum())
            decided = wins + losses
            row |= {
                f"wins_over_{baseline}": wins,
                f"losses_to_{baseline}": losses,
                f"ties_with_{baseline}": len(gain) - decided,
                f"win_rate_over_{baseline}": wins / decided if decided else float("nan"),
                f"sign_p_over_{baseline}": binomtest(wins, decided).pvalue if decided else float("nan"),
            }
        rows.append(row)
    result: pd.DataFrame = pd.DataFrame(rows)
    return result


def candidate_gains(df: pd.DataFrame, per: Per = "sweep", *, targets: Targets | None = None) -> pd.DataFrame:
    """Say what each kind of candidate gains over the best-validated raw checkpoint, and what it costs to predict.

    Of every kind the candidate with the highest validation accuracy is taken, in each population; so is it of all
    that take one network together (``"one network"``), and of all (``"any"``).

    Parameters
    ----------
    df : pandas.DataFrame
        As `nacme.load_sweep` returns it.
    per, targets
        As for `nacme.select`. With ``per="run"`` candidates across runs are left out.

    Returns
    -------
    pandas.DataFrame
        One row per kind: ``per, candidate, n_populations`` (where there are both), ``test_acc``, ``gain`` (mean
        difference in test accuracy, in points), ``gain_error`` (its standard error; NaN for one), ``better``,
        ``worse``, ``networks`` (the most that a chosen one takes to predict).

    Raises
    ------
    SweepError
        If there are no raw checkpoints.
    """
    import pandas as pd

    key = population_key(per)
    single = [kind for kind in kinds(df) if kind.partition(":")[0] not in SEVERAL_NETWORKS]
    sets = {kind: [kind] for kind in kinds(df)} | {"one network": single, "any": kinds(df)}
    chosen: dict[str, pd.DataFrame] = {}
    for name, wanted in sets.items():
        rows = of_kinds(df, wanted)
        if per == "run":
            rows = rows[~across_runs(rows)]
        if len(rows):
            picks = select(rows, "val_acc", per, targets=targets).set_index(key)
            cost = dict(rows.groupby("run")["networks"].max()) if "networks" in rows else {}
            chosen[name] = picks.assign(networks=[int(cost.get(run, 1)) for run in picks.reset_index()["run"]])
    rows_out = []
    for name, picks in chosen.items():
        both = picks.join(chosen[RAW]["test_acc"].rename("raw_acc"), how="inner").dropna(subset="raw_acc")
        gain = (100 * (both["test_acc"] - both["raw_acc"])).round(9)
        rows_out.append(
            {
                "per": per,
                "candidate": name,
                "n_populations": len(both),
                "test_acc": both["test_acc"].mean(),
                "gain": gain.mean(),
                "gain_error": gain.std() / len(gain) ** 0.5 if len(gain) > 1 else float("nan"),
                "better": int((gain > 0).sum()),
                "worse": int((gain < 0).sum()),
                "networks": int(both["networks"].max()) if len(both) else 1,
            }
        )
    result: pd.DataFrame = pd.DataFrame(rows_out)
    return result
