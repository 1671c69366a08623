"""What counts as one observation where runs have several test envs, as runs that train on a single env have.

Everything after this step (choice, correlation, report) sees runs with one target each, and cells in which no two
kinds of training are mixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from nacme.candidates import RAW, of_kinds
from nacme.errors import ConfigError, SweepError

if TYPE_CHECKING:
    import pandas as pd

Targets = Literal["each", "mean"]

_FROM = " from "
_ACCURACIES = ["test_acc", "test_out_acc"]


def observations(
    df: pd.DataFrame, targets: Targets | None = None, candidates: str | Sequence[str] | None = (RAW,)
) -> tuple[pd.DataFrame, str | None]:
    """Turn a sweep into runs with one target each.

    Parameters
    ----------
    df : DataFrame
        As `nacme.load_sweep` returns it.
    targets : {"each", "mean"}, optional
        ``"mean"``: the target is the mean accuracy over a run's test envs, one observation a run. ``"each"``:
        every test env by itself, and runs that trained on other envs apart. None: runs with one test env, if there
        are any (those with several only serve ``leave_one_out``); otherwise ``"mean"``.
    candidates : sequence of str, str or None
        Kinds of candidates to take, as for `nacme.candidates.of_kinds`: raw checkpoints alone, so that no
        population mixes kinds unasked. A name by itself: the one kind that all that follows knows, whose rows
        are without the column ``candidate``. None: all.

    Returns
    -------
    rows : DataFrame
        ``df`` as it is, with None and runs with one test env. Otherwise one row per checkpoint and target, where
        ``n_test_envs`` is 1 and ``test_env`` a text: ``"1,2,3"`` is the mean over these, which says what the run
        trained on; ``"1 from 0"`` is env 1 of runs that trained on env 0, ``"1 from 0,3"`` on two envs.
    note : str or None
        What was taken, and what left out; None where every run has one test env.

    Raises
    ------
    SweepError
        If there are no rows.
    ConfigError
        If ``targets`` is unknown.
    """
    if targets not in ("each", "mean", None):
        raise ConfigError(f"targets must be 'each' or 'mean', not {targets!r}")
    if df.empty:
        raise SweepError(f"{df.attrs.get('path', 'the sweep')} holds no checkpoints")
    df = of_kinds(df, [candidates] if isinstance(candidates, str) else candidates)
    if isinstance(candidates, str) and "candidate" in df:
        df = df.drop(columns="candidate")
    several = df["n_test_envs"] > 1
    if not several.any():
        return df, None
    count, runs = df.loc[several, "run"].nunique(), df["run"].nunique()
    if targets is None and count < runs:
        return df, (
            f"left out: {count} of {runs} runs, which have several test envs and serve leave_one_out only; "
            "--targets each or --targets mean looks at all runs"
        )
    attrs = dict(df.attrs)
    if targets == "each":
        rows = df.assign(test_env=_apart(df), n_test_envs=1)
        note = "each test env of a run by itself; '1 from 0' is test env 1 of runs that trained on env 0"
    else:
        kind = ["candidate"] if "candidate" in df else []
        place = [df[name] for name in ("run", "step", *kind)]
        grouped = df.groupby(place, sort=False)[_ACCURACIES]
        # the mean of what is there would be that of other envs
        means = grouped.transform("mean").where(grouped.transform("count").eq(df["n_test_envs"], axis=0))
        whole = df["test_envs"].astype(str)
        rows = df.assign(**{name: means[name] for name in _ACCURACIES}, test_env=whole, n_test_envs=1)
        rows = rows[~rows.duplicated(["run", "step", *kind])]
        note = f"{count} of {runs} runs have several test envs: test accuracy is the mean over them"
        if targets is None:
            note += ", one observation a run (--targets mean); --targets each looks at every test env by itself"
    rows.attrs = attrs
    return rows, note


def name_cells(table: pd.DataFrame, targets: Targets | None) -> pd.DataFrame:
    """Give a result's ``test_env`` as numbers where they are some; ``train_envs`` says the rest.

    Parameters
    ----------
    table : DataFrame
        A result with a column ``test_env`` made from what `observations` returned.
    targets : {"each", "mean"}, optional
        As they were asked for.

    Returns
    -------
    DataFrame
        With ``"each"``, ``test_env`` is an int, and a last column ``train_envs`` names the envs that the runs
        trained on (``"0"``, ``"0,3"``). With ``"mean"`` the names of single envs become ints. None: as it is.
    """
    import pandas as pd

    if targets is None or pd.api.types.is_integer_dtype(table["test_env"]):
        return table
    if targets == "mean":
        if not any(name.isdigit() for name in table["test_env"]):
            return table
        env = [int(name) if name.isdigit() else name for name in table["test_env"]]
        named: pd.DataFrame = table.assign(test_env=pd.Series(env, table.index, dtype=object))
        return named
    parts = table["test_env"].str.split(_FROM, n=1, expand=True)
    named = table.assign(test_env=parts[0].astype(int), train_envs=parts[1])
    return named


def _apart(df: pd.DataFrame) -> pd.Series[str]:
    """Name each row's test env together with what its run trained on."""
    kinds = df[["test_envs", "n_envs"]].drop_duplicates()
    names = {}
    for test_envs, n_envs in kinds.itertuples(index=False):
        held_out = set(str(test_envs).split(","))
        names[test_envs, n_envs] = ",".join(str(env) for env in range(n_envs) if str(env) not in held_out)
    sources = [names[key] for key in zip(df["test_envs"], df["n_envs"])]
    labels: pd.Series[str] = df["test_env"].astype(str) + _FROM + sources
    return labels
