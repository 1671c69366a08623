"""What can be shipped: raw checkpoints, averages along a run, averages and ensembles across runs.

A table of a sweep says in the column ``candidate`` what each row is: ``"raw"``, ``"sma"``, ``"ema"``,
``"soup:greedy"`` and so on. The part before the colon is the kind. A table without that column holds raw
checkpoints only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nacme.errors import ConfigError, nearest

if TYPE_CHECKING:
    import pandas as pd

RAW = "raw"
#: Where the candidates across the runs of a sweep lie, in the sweep's directory: a file for each.
FOLDER = "candidates"
#: Kinds that take a network for each of their members to predict.
SEVERAL_NETWORKS = ("ensemble",)


def kinds(df: pd.DataFrame) -> list[str]:
    """Name the candidates that a table holds, raw first, then in order of name."""
    found = set(df["candidate"]) if "candidate" in df else {RAW}
    return sorted(found, key=lambda name: (name != RAW, name))


def of_kinds(df: pd.DataFrame, wanted: Sequence[str] | None) -> pd.DataFrame:
    """Take the rows of some candidates.

    Parameters
    ----------
    df : DataFrame
        As `nacme.load_sweep` returns it.
    wanted : sequence of str or None
        Kinds (``soup``: all soups) or whole names (``soup:greedy``). None: all.

    Returns
    -------
    DataFrame
        Rows with their index, and the table's ``attrs``.

    Raises
    ------
    ConfigError
        If there are none of a name.
    """
    if wanted is None or ("candidate" not in df and set(wanted) == {RAW}):
        return df
    there = kinds(df)
    taken = set()
    for name in wanted:
        found = {kind for kind in there if name in (kind, kind.partition(":")[0])}
        if not found and name != RAW:
            known = sorted({*there, *(kind.partition(":")[0] for kind in there)})
            raise ConfigError(f"--candidates {name!r}: none are recorded; {nearest(name, known)}")
        taken |= found
    if taken == set(there):
        return df
    rows: pd.DataFrame = df[df["candidate"].isin(taken)]
    rows.attrs = dict(df.attrs)
    return rows


def across_runs(df: pd.DataFrame) -> pd.Series[bool]:
    """Say of each row whether its candidate was made from several runs, hence belongs to none."""
    found: pd.Series[bool] = df["run"].astype(str).str.startswith(f"{FOLDER}/")
    return found


def n_networks(candidate: str, members: int = 1) -> int:
    """Count the networks that a prediction takes."""
    return members if candidate.partition(":")[0] in SEVERAL_NETWORKS else 1
