"""Which checkpoints a candidate is made of: the runs of a group, or the saved checkpoints of one run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from nacme.candidates import RAW, across_runs, of_kinds
from nacme.criteria.registry import oriented_values
from nacme.errors import ConfigError, SweepError

#: Which checkpoint of a run is a member: its best-validated where it was kept, its last, or an average along it.
MEMBERS = ("best", "last", "sma", "ema")
_GROUP = ["dataset", "algorithm", "test_envs", "trial_seed"]


@dataclass(frozen=True)
class Member:
    """One checkpoint of a candidate.

    Attributes
    ----------
    run : str
    step : int
    candidate : str
        What it is itself: ``"raw"``, ``"sma"`` or ``"ema"``.
    checkpoint : Path
    val_acc : float
        As recorded.
    order : float
        By what a greedy soup takes one after another, higher first.
    """

    run: str
    step: int
    candidate: str
    checkpoint: Path
    val_acc: float
    order: float


@dataclass(frozen=True)
class Group:
    """Runs whose members may be put together.

    Attributes
    ----------
    key : tuple
        Data set, algorithm, test envs and trial seed; of one run's own checkpoints the run, too.
    members : tuple of Member
        In falling order.
    """

    key: tuple[Any, ...]
    members: tuple[Member, ...]

    def __str__(self) -> str:
        dataset, algorithm, envs, trial, *run = self.key
        return f"{dataset} {algorithm} test env {envs} trial {trial}" + (f" run {run[0]}" if run else "")


def find_groups(df: pd.DataFrame, wanted: str, order: str, failures: list[str]) -> list[Group]:
    """Find the groups of a sweep and a member of each of their runs.

    Parameters
    ----------
    df : DataFrame
        As `nacme.load_sweep` returns it.
    wanted : {"best", "last", "sma", "ema"}
        The best-validated checkpoint counts where it was kept, else the last that was saved; so it is among the
        averages of a kind.
    order : str
        The criterion that members are ordered by. It must not look at the test environments.
    failures : list of str
        Receives a line for each run that is not finished, or has no saved checkpoint.

    Returns
    -------
    list of Group
        Those with two runs or more.

    Raises
    ------
    SweepError
        If there is none.
    ConfigError
        For averages that no run has.
    """
    rows = _rows(df, RAW if wanted in ("best", "last") else wanted, order)
    groups = []
    for key, of_group in rows.groupby(_GROUP, sort=True):
        members = []
        for run, of_run in of_group.groupby("run", sort=True):
            if not of_run["done"].all():
                failures.append(f"{run}: not finished, so it is no member")
                continue
            saved = of_run[of_run["checkpoint"].notna()]
            if saved.empty:
                failures.append(f"{run}: no checkpoint was saved, so it is no member")
                continue
            best = of_run.sort_values(["val_acc", "step"], ascending=[False, True]).iloc[0]
            if wanted == "last" or best["checkpoint"] is None:
                best = saved.sort_values("step").iloc[-1]
            members.append(_member(best))
        if len(members) > 1:
            groups.append(Group(tuple(key), _ordered(members)))
    if not groups:
        raise SweepError(
            f"{df.attrs.get('path', 'the sweep')} has no two runs with saved checkpoints of the same data set, "
            "algorithm, test envs and trial; train more hparams_seeds, or average --kinds average swad along runs"
        )
    return groups


def along_runs(df: pd.DataFrame, start: float, failures: list[str], *, swad: bool) -> Iterator[Group]:
    """Find the saved checkpoints of each run that are averaged.

    Parameters
    ----------
    df : DataFrame
    start : float
        The part of a run's steps after which its checkpoints count; not read with ``swad``.
    failures : list of str
        Receives a line for each run that has less than two such, or no validation loss to see a valley in.
    swad : bool
        Whether to take SWAD's window (`loss_valley`) in place of all from ``start`` on.

    Yields
    ------
    Group
    """
    for key, of_run in _rows(df, RAW, "val_acc").groupby([*_GROUP, "run"], sort=True):
        of_run = of_run.sort_values("step")
        if swad:
            losses = of_run["val_loss"] if "val_loss" in of_run else pd.Series(dtype=float)
            if losses.empty or losses.isna().any():
                failures.append(
                    f"{key[-1]}: no val_loss of every checkpoint; measure them with 'nacme score' first"
                )
                continue
            first, last = loss_valley(losses.tolist())
            of_run = of_run.iloc[first : last + 1]
        else:
            of_run = of_run[of_run["step"] >= start * of_run["step"].max()]
        members = [_member(row) for _, row in of_run[of_run["checkpoint"].notna()].iterrows()]
        if len(members) < 2:
            failures.append(f"{key[-1]}: fewer than two of its checkpoints to average are saved; keep all")
            continue
        yield Group(tuple(key), _ordered(members))


def loss_valley(
    losses: Sequence[float], converge: int = 3, tolerance: int = 6, ratio: float = 1.3
) -> tuple[int, int]:
    """Find where SWAD starts and ends to average.

    It starts at the first loss that none of the ``converge - 1`` after it is below, and ends before the first
    window of ``tolerance`` losses that all lie above ``ratio`` times the mean of the ``converge`` at the start.

    Parameters
    ----------
    losses : sequence of float
        Validation losses in order of time, at least one.
    converge, tolerance, ratio
        The paper's ``N_s``, ``N_e`` and ``r``.

    Returns
    -------
    first, last : int
        Positions, both counted in. Without a start, it is the last one alone.

    Notes
    -----
    Source: Cha et al. 2021, arXiv 2102.08604, algorithm 1; their unit is the evaluation, as it is here.
    """
    count = len(losses)
    start = next(
        (i for i in range(count - converge + 1) if losses[i] == min(losses[i : i + converge])),
        None,
    )
    if start is None:
        return count - 1, count - 1
    limit = ratio * sum(losses[start : start + converge]) / converge
    for i in range(start + max(1, converge - tolerance + 1), count - tolerance + 1):
        if min(losses[i : i + tolerance]) > limit:
            return start, i - 1
    return start, count - 1


def _rows(df: pd.DataFrame, kind: str, order: str) -> pd.DataFrame:
    """One row a checkpoint of a kind, with what members are ordered by."""
    own = of_kinds(df[~across_runs(df)], [kind])
    own = own[~own.duplicated(["run", "step"])].reset_index(drop=True)
    if order == "oracle" or order == "domainbed_oracle":
        raise ConfigError(f"--order {order} looks at the test environments; nothing but InD data may decide")
    populations = own.groupby(_GROUP).ngroup().astype(float)
    rows: pd.DataFrame = own.assign(_order=oriented_values(own, order, populations))
    return rows


def _member(row: Any) -> Member:
    order = float(row["_order"])
    return Member(
        str(row["run"]),
        int(row["step"]),
        str(row["candidate"]),
        Path(row["checkpoint"]),
        float(row["val_acc"]),
        float("-inf") if order != order else order,
    )


def _ordered(members: list[Member]) -> tuple[Member, ...]:
    return tuple(sorted(members, key=lambda member: (-member.order, member.run, member.step)))
