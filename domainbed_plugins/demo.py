"""``nacme demo``: the whole journey on the embedded testbed, from training to the report."""

from __future__ import annotations

import math
import os
import sys
import warnings
from pathlib import Path

import pandas as pd

from domainbed_plugins.launchers import Progress, run_local
from domainbed_plugins.sweep import SweepSpec, make_jobs
from nacme.errors import ConfigError, DegenerateCoverageWarning, NacmeError
from nacme.measurement import CoverageSettings

SPEC = SweepSpec(datasets=["RotatedDigits"], algorithms=["ERM", "CORAL"], hparams_seeds=range(4))
QUICK = SweepSpec(
    datasets=["RotatedDigits"],
    algorithms=["ERM", "CORAL"],
    test_envs=[[0], [5]],
    hparams_seeds=range(2),
    steps=151,
    checkpoint_freq=15,
)
#: The authors' alpha of 0.1 and count of 500 are made for larger features and data: here every state would fall in
#: one bin. alpha = 1 is the smallest power of ten that spreads the states; 0.08 is 500 of PACS's 6,000 images.
SETTINGS = CoverageSettings(alpha=1.0, bins=50, fill=0.08)
CRITERIA = ("nac_me", "val_acc", "val_loss", "last")


def run(out: Path, quick: bool = False) -> None:
    """Train the demo's sweep, print who selects what, and write the report.

    Parameters
    ----------
    out : path
        Where ``sweep/`` and ``report.html`` go. What is trained there already is not trained again.
    quick : bool
        A sixth of the runs, half as long.

    Raises
    ------
    ConfigError
        If ``out`` cannot be written.
    NacmeError
        If a run failed.
    """
    sweep = out / ("sweep_quick" if quick else "sweep")
    try:
        sweep.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be written: {error.strerror}; choose another") from error
    _train(sweep, QUICK if quick else SPEC)
    _study(sweep, out / ("report_quick.html" if quick else "report.html"))


def _train(sweep: Path, spec: SweepSpec) -> None:
    from tqdm import tqdm

    jobs = make_jobs(spec, sweep, data_dir=None)
    waiting = sum(job.state != "done" for job in jobs)
    print(
        f"{len(jobs)} runs, {len(jobs) - waiting} done already; records go to {sweep}",
        file=sys.stderr,
        flush=True,
    )
    # disable=None: a bar on a terminal, quiet in a pipe
    form = "{percentage:3.0f}%|{bar:24}| {elapsed} elapsed, {remaining} left{postfix}"
    with tqdm(total=1.0, disable=None, bar_format=form, file=sys.stderr) as bar:

        def show(progress: Progress) -> None:
            bar.set_postfix_str(f"{progress.finished}/{progress.total} runs; {'; '.join(progress.running)}")
            bar.update(progress.fraction - bar.n)

        failures = run_local(jobs, {"settings": SETTINGS}, processes=max(1, os.cpu_count() or 1), on_progress=show)
    if failures:
        job, reason = failures[0]
        raise NacmeError(f"{len(failures)} of {len(jobs)} runs failed; {job} ({job.output_dir}): {reason}")


def _study(sweep: Path, report: Path) -> None:
    import nacme
    from nacme.output import write_frame
    from nacme.report import write_report

    df = nacme.load_sweep(sweep)
    selected = nacme.select(df, [*CRITERIA, "oracle"], per="sweep")
    print("Checkpoint chosen among all runs of an algorithm and test env: mean and standard error over the cells")
    write_frame(_summary(selected), "table")
    print("\nRank correlation with test accuracy within a run, mean over runs, and its 95% interval")
    correlated = nacme.rank_correlation(df, list(CRITERIA), population="run", pool_algorithms=True)
    write_frame(_taus(correlated), "table")
    degenerate = int(df["degenerate"].sum())
    if degenerate:
        message = f"coverage is degenerate at {degenerate} of {len(df)} checkpoints; see the report"
        warnings.warn(message, DegenerateCoverageWarning, stacklevel=2)
    path = write_report(df, report, criteria=list(CRITERIA), command="nacme demo")
    print(f"\nReport: {path}")


def _summary(selected: pd.DataFrame) -> pd.DataFrame:
    """Average over (algorithm, test env) cells."""

    def spread(column: pd.Series[float]) -> str:
        values = column.to_numpy(float)
        return f"{values.mean():.1f} ± {values.std(ddof=1) / math.sqrt(len(values)):.1f}"

    rows = [
        {
            "criterion": name,
            "cells": len(chosen),
            "test accuracy (%)": spread(100 * chosen["test_acc"]),
            "regret (points)": spread(chosen["regret"]),
        }
        for name, chosen in selected.groupby("criterion", sort=False)
    ]
    table: pd.DataFrame = pd.DataFrame(rows)
    return table


def _taus(correlated: pd.DataFrame) -> pd.DataFrame:
    """Kendall's tau: a row for each test env, a column for each criterion."""
    texts = correlated.assign(
        tau=[
            "undefined" if math.isnan(tau) else f"{tau:.2f} [{low:.2f}, {high:.2f}]"
            for tau, low, high in correlated[["kendall_tau", "kendall_low", "kendall_high"]].to_numpy(float)
        ]
    )
    wide = texts.pivot(index="test_env", columns="criterion", values="tau")[list(CRITERIA)]
    wide.insert(0, "runs", texts.groupby("test_env")["n_runs"].max())
    table: pd.DataFrame = wide.rename_axis(columns=None).reset_index()
    return table
