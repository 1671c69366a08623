"""The table of NAC's authors in their own way, to be read beside ours.

Their trainer (``domainbed/trainer_nac.py`` and ``benchmark_notes/metrics.py`` of BierOne/ood_coverage) takes all
checkpoints of a run, step 0 among them, and the mean accuracy over the run's test envs. It selects the first of
the checkpoints with the highest score, and correlates by ``1 - 6 sum d^2 / (n (n^2 - 1))`` with ranks that break
ties by position. That formula gives a *constant* score what it gives the step counter, so both stand in the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from nacme.criteria.registry import criterion_values, get_criterion
from nacme.inference import statistics
from nacme.inference.statistics import Array
from nacme.study.selection import single_env_rows
from nacme.targets import observations

if TYPE_CHECKING:
    import pandas as pd

#: Rows beside the criteria: a score that knows nothing, and their oracle, which sees the targets' held-out splits.
CONSTANT, ORACLE = "constant", "oracle_test_out"
AUTHORS_COLUMNS = (
    "dataset",
    "algorithm",
    "test_env",
    "criterion",
    "n_runs",
    "n_checkpoints",
    "test_acc",
    "authors_rank_correlation",
    "kendall_tau",
    "spearman_rho",
    "n_undefined",
)
#: In the column ``test_env``: their last column, the average over the others.
AVERAGE = "average"
NOTES = (
    "the authors' way: all checkpoints, step 0 among them; test accuracy is the mean over a run's test envs; the "
    "first of the highest is selected; 1 - 6 sum d^2 / (n (n^2 - 1)) with ties broken by position, by a stable "
    "sort (theirs is not, and differs between processors). It gives a constant what it gives the step counter "
    "(last). kendall_tau and spearman_rho beside it count ties and are undefined for a constant",
    "their example (README of BierOne/ood_coverage: PACS, one training env, pretrained ResNet-18, one run a "
    "source, 4,801 steps): coverage selects 58.1%, validation 56.0%, last 57.8%, oracle 59.3%; rank correlation "
    "of coverage 0.512, of validation 0.524",
)


def authors_rank_correlation(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Correlate two scores as the authors' ``rank_correlation`` does.

    Parameters
    ----------
    a, b : array_like, shape (n,)

    Returns
    -------
    float
        ``1 - 6 sum d^2 / (n (n^2 - 1))``, where equal values have different ranks, in order of position; NaN for
        fewer than two values. Without ties it is Spearman's rho. With ties it may lie far from it, and is finite
        even for a constant.

    Notes
    -----
    NumPy's default sort, which the authors use, leaves equal values in an order that differs between processors;
    this one is stable, and so the same everywhere.
    """
    ranks = [np.argsort(np.argsort(np.asarray(v, float), kind="stable"), kind="stable") for v in (a, b)]
    n = len(ranks[0])
    if n < 2:
        return float("nan")
    apart = float(((ranks[0] - ranks[1]) ** 2).sum())
    return 1 - 6 * apart / (n * (n**2 - 1))


def authors_table(df: pd.DataFrame, criteria: Sequence[str] = ("nac_me",)) -> pd.DataFrame:
    """Make the authors' table, with our rank correlations of the same checkpoints beside theirs.

    Parameters
    ----------
    df : DataFrame
        As `nacme.load_sweep` returns it. Of runs with several test envs the mean accuracy is taken.
    criteria : sequence of str
        Names of criteria; ``val_acc``, ``last``, a constant and the authors' oracle are added.

    Returns
    -------
    DataFrame
        One row per (dataset, algorithm, test env, criterion), and ``test_env == "average"``, the mean over the
        test envs: ``dataset, algorithm, test_env, criterion, n_runs, n_checkpoints, test_acc,
        authors_rank_correlation, kendall_tau, spearman_rho, n_undefined``. Each is a mean over runs; a run in
        which the criterion is undefined at some checkpoint does not count for it (``n_undefined`` of them). Ours
        are means over the runs where they are defined. ``attrs["notes"]`` says what is what.

    Raises
    ------
    CriterionError
        If a criterion is unknown or the records do not hold it.
    """
    import pandas as pd

    rows, note = observations(df)
    rows = single_env_rows(rows).sort_values(["run", "step"], kind="stable").reset_index(drop=True)
    number = rows.groupby("run").ngroup().astype(float)
    names = list(dict.fromkeys([*criteria, "val_acc", "last"]))
    scores: dict[str, Array] = {}
    for name in names:
        values = criterion_values(rows, name, number).to_numpy(float)
        scores[name] = values if get_criterion(name).higher_is_better else -values
    scores |= {CONSTANT: np.zeros(len(rows)), ORACLE: rows["test_out_acc"].to_numpy(float)}
    found = []
    runs = rows.groupby(["dataset", "algorithm", "test_env", "run"])
    for (dataset, algorithm, env, _), places in runs.indices.items():
        accuracy = rows["test_acc"].to_numpy(float)[places]
        for name, values in scores.items():
            score = values[places]
            usable = bool(np.isfinite(score).all() and np.isfinite(accuracy).all())
            found.append(
                {
                    "dataset": dataset,
                    "algorithm": algorithm,
                    "test_env": env,
                    "criterion": name,
                    "n_runs": int(usable),
                    "n_undefined": int(not usable),
                    "n_checkpoints": len(places) if usable else 0,
                    "test_acc": accuracy[np.argmax(score)] if usable else np.nan,
                    "authors_rank_correlation": authors_rank_correlation(score, accuracy) if usable else np.nan,
                    "kendall_tau": statistics.kendall_tau(score, accuracy) if usable else np.nan,
                    "spearman_rho": statistics.spearman_rho(score, accuracy) if usable else np.nan,
                }
            )
    cell = ["dataset", "algorithm", "test_env", "criterion"]
    counts = ["n_runs", "n_checkpoints", "n_undefined"]
    means = ["test_acc", "authors_rank_correlation", "kendall_tau", "spearman_rho"]
    how = {**dict.fromkeys(counts, "sum"), **dict.fromkeys(means, "mean")}
    table = pd.DataFrame(found).groupby(cell, sort=False, as_index=False).agg(how)
    table = table.sort_values(cell[:3], kind="stable")
    average = table.groupby(["dataset", "algorithm", "criterion"], sort=False, as_index=False).agg(how)
    result: pd.DataFrame = pd.concat([table.astype({"test_env": object}), average.assign(test_env=AVERAGE)])
    result = result.sort_values(["dataset", "algorithm"], kind="stable")[list(AUTHORS_COLUMNS)].reset_index(
        drop=True
    )
    result.attrs["notes"] = [*NOTES, *([note] if note else [])]
    return result
