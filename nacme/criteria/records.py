"""Criteria that follow from the records alone, as functions of the frame that ``load_sweep`` returns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nacme.errors import CriterionError

if TYPE_CHECKING:
    import pandas as pd


def last(df: pd.DataFrame) -> pd.Series[float]:
    """Return the step of each row."""
    return df["step"]


def oracle(df: pd.DataFrame) -> pd.Series[float]:
    """Return the test accuracy of each row."""
    return df["test_acc"]


def domainbed_oracle(df: pd.DataFrame) -> pd.Series[float]:
    """Return accuracy on the test env's held-out split at the last checkpoint of each run, NaN elsewhere."""
    final = df.groupby(["run", *_kind(df)], sort=False)["step"].transform("max")
    values: pd.Series[float] = df["test_out_acc"].where(df["step"] == final)
    return values


def leave_one_out(df: pd.DataFrame) -> pd.Series[float]:
    """Mean, over the envs left, of the accuracy on each when it is left out of training as well.

    The checkpoint of a run with test env ``t`` takes its value from the runs with test envs ``{t, v}`` of
    the same dataset, algorithm, trial, hyper-parameter seed and step: the mean over ``v`` of
    ``env{v}_in_acc``. It is undefined unless every ``v`` is there, or if several runs share the key.

    Parameters
    ----------
    df : pandas.DataFrame
        As `nacme.load_sweep` returns it.

    Returns
    -------
    pandas.Series
        One value per row; NaN where undefined, and for the rows of runs with several test envs.

    Raises
    ------
    CriterionError
        If no run has a pair of test envs.
    """
    pairs = df.loc[df["n_test_envs"] == 2]
    if pairs.empty:
        raise CriterionError(
            "criterion 'leave_one_out' needs runs with pairs of test envs, and "
            f"{df.attrs.get('path', 'the sweep')} has none; add them to the sweep, or leave this criterion out"
        )
    place = ["dataset", "algorithm", "trial_seed", "hparams_seed", "step", *_kind(df)]
    key = [*place, "test_env"]
    # A row of run {t, v} that tests on v says how well v does when t is the final test env.
    other = pairs["test_envs"].map(lambda text: sum(int(e) for e in text.split(","))) - pairs["test_env"]
    accs = pairs[place].assign(test_env=other, left_out=pairs["test_env"], acc=pairs["test_acc"])
    accs = accs.drop_duplicates([*key, "left_out"], keep="last")
    means = accs.groupby(key)["acc"].agg(["mean", "size", "count"]).reset_index()
    singles = df.loc[df["n_test_envs"] == 1, [*key, "n_envs"]]
    alone = singles.groupby(key)["n_envs"].transform("size") == 1
    merged = singles.merge(means, on=key, how="left").set_axis(singles.index)
    complete = (merged["count"] == merged["n_envs"] - 1) & (merged["size"] == merged["count"]) & alone
    values: pd.Series[float] = merged["mean"].where(complete).reindex(df.index)
    return values


def _kind(df: pd.DataFrame) -> list[str]:
    """Averages along a run are no further checkpoints of it."""
    return ["candidate"] if "candidate" in df else []
