"""``nacme demo``: the whole journey on the embedded testbed, from training to the report."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pandas as pd

from domainbed_plugins.sweep.commands import run_sweep
from domainbed_plugins.sweep.spec_file import load_spec
from nacme.errors import ConfigError, DegenerateCoverageWarning

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
    run_sweep(load_spec("demo_quick" if quick else "demo"), sweep)
    _study(sweep, out / ("report_quick.html" if quick else "report.html"))


def _study(sweep: Path, report: Path) -> None:
    import nacme
    from nacme.output import write_frame
    from nacme.report.write import write_report

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
