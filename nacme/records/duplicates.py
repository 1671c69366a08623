"""Runs that are in a sweep twice: a copied directory is no independent run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pandas as pd

_ACCURACIES = ["test_acc", "test_out_acc", "val_acc", "val_acc_worst"]
_PLACE = ["test_env", "step"]
#: What may differ between a run and its copy.
_FREE = {"run", "checkpoint", "done"}


def find_copies(
    df: pd.DataFrame, runs: npt.NDArray[Any], args: npt.NDArray[Any]
) -> tuple[dict[str, str], list[list[str]]]:
    """Find runs that are one training.

    Two runs are if they have the same ``args`` (but for ``output_dir``) and, at all checkpoints that both have,
    the same accuracies to the last digit; one of them may be further. They are copies if no criterion that both
    hold differs either.

    Parameters
    ----------
    df : DataFrame
        As `nacme.load_sweep` returns it.
    runs, args : ndarray of str, shape (n,)
        Names of runs and a digest of the ``args`` of each; a run may stand there several times, with equal args.

    Returns
    -------
    copies : dict of str to str
        By name of each run to leave out, the run that it is a copy of: of several the one that is done, has the
        most checkpoints, numbers and saved models, and comes first.
    same : list of list of str
        Runs that are one training with other criteria, hence no copies.
    """
    first = dict(zip(runs, args))
    digests, counts = np.unique(list(first.values()), return_counts=True)
    twice = set(digests[counts > 1])
    if not twice:  # sorting one digest a run is all that an ordinary sweep pays
        return {}, []
    suspects = df[df["run"].isin([run for run, digest in first.items() if digest in twice])]
    groups: dict[tuple[Any, ...], dict[str, pd.DataFrame]] = {}
    for run, rows in suspects.groupby("run", sort=True):
        start = rows[_ACCURACIES].iloc[0].to_numpy(float)
        groups.setdefault((first[run], rows["step"].iloc[0], start.tobytes()), {})[str(run)] = rows
    copies: dict[str, str] = {}
    same = []
    for group in groups.values():
        kept: list[str] = []
        for run in sorted(group, key=lambda name: _fullness(group[name]), reverse=True):
            found = [other for other in kept if _agree(group[run], group[other], _ACCURACIES)]
            equal = [other for other in found if _agree(group[run], group[other], _criteria(df.columns))]
            if equal:
                copies[run] = equal[0]
                continue
            if found:
                same.append(sorted([run, *found]))
            kept.append(run)
    return copies, same


def _fullness(rows: pd.DataFrame) -> tuple[int, ...]:
    numbers, models = rows.notna().to_numpy().sum(), rows["checkpoint"].notna().sum()
    return int(rows["done"].iloc[0]), len(rows), int(numbers), int(models)


def _criteria(columns: Iterable[str]) -> list[str]:
    return [name for name in columns if name not in _FREE and name not in _PLACE]


def _agree(some: pd.DataFrame, others: pd.DataFrame, names: list[str]) -> bool:
    """Whether two runs hold no two numbers that differ, at the checkpoints that both have."""
    a, b = (rows.set_index(_PLACE)[names] for rows in (some, others))
    both = a.index.intersection(b.index)
    a, b = a.loc[both], b.loc[both]
    return bool(((a == b) | a.isna() | b.isna()).fillna(True).to_numpy().all())
