"""Figures of runs and their checkpoints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nacme.candidates import RAW, of_kinds
from nacme.errors import ConfigError
from nacme.plots.style import (
    MARKERS,
    OKABE_ITO,
    PANEL,
    RASTERIZE_ABOVE,
    counted,
    dress,
    panel_grid,
    percent_axis,
    require,
    say,
    set_title,
    styled,
)


@styled
def scatter(df: pd.DataFrame, criterion: str, *, columns: int = 3) -> Figure:
    """Criterion against test accuracy, one panel per (dataset, test env), points coloured by step.

    Parameters
    ----------
    df : DataFrame, one row per (checkpoint, test_env)
        As `nacme.load_sweep` returns it. Rows without the criterion or the accuracy are left out and counted.
    criterion : str
        Column to draw along x.
    columns : int
        Panels per row at most.

    Returns
    -------
    Figure
        Points of more than 1,500 checkpoints in a panel are rasterized, so that vector files stay small.

    Raises
    ------
    ConfigError
        If the frame is empty or lacks a column.
    """
    require(df, criterion, "test_acc", "step", "run", "dataset", "test_env")
    df = of_kinds(df, [RAW])
    cells = list(df.groupby(["dataset", "test_env"], sort=True))
    figure, axes = panel_grid(len(cells), 3.3, columns)
    low, high = float(df["step"].min()), float(df["step"].max())
    points = None
    for ax, ((dataset, env), cell) in zip(axes, cells):
        kept = cell.dropna(subset=[criterion, "test_acc"])
        many = len(kept) > RASTERIZE_ABOVE
        # Shuffled, so that where points overlap late ones do not always hide early ones.
        kept = kept.iloc[np.random.default_rng(0).permutation(len(kept))]
        points = ax.scatter(
            kept[criterion],
            kept["test_acc"],
            c=kept["step"],
            cmap="cividis",
            vmin=low,
            vmax=max(high, low + 1),
            s=6 if many else 16,
            linewidths=0 if many else 0.3,
            edgecolors="white",
            rasterized=many,
        )
        left_out = len(cell) - len(kept)
        note = counted(len(kept), "checkpoint") + f" of {counted(kept['run'].nunique(), 'run')}"
        set_title(ax, f"{dataset}, test env {env}", note + (f", {left_out} left out" if left_out else ""))
        ax.set_xlabel(criterion)
        ax.set_ylabel("test accuracy")
        ax.xaxis.set_major_locator(MaxNLocator(5))
        if criterion.endswith("_acc"):
            percent_axis(ax.xaxis)
        percent_axis(ax.yaxis)
        ax.grid(True)
        if kept.empty:
            say(ax, f"no checkpoint has {criterion}")
    if points is not None:
        bar = figure.colorbar(points, ax=axes, label="training step", shrink=0.9, pad=0.02, aspect=24)
        bar.outline.set_visible(False)
        bar.ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    return figure


@styled
def training_curves(
    df: pd.DataFrame, picks: pd.DataFrame | None = None, *, max_runs: int = 3, columns: int = 3
) -> Figure:
    """Test (solid) and validation (dashed) accuracy over the steps of some runs, and what was picked.

    Parameters
    ----------
    df : DataFrame, one row per (checkpoint, test_env)
        As `nacme.load_sweep` returns it.
    picks : DataFrame, optional
        Columns `criterion`, `run`, `test_env`, `step`: what a criterion chose within each run, as
        ``nacme.select(df, criterion, per="run")`` returns it. Each criterion has a row under the curves, with
        a mark at the step that it chose in each run.
    max_runs : int
        Runs drawn per panel, evenly spaced over the runs in the order of their best test accuracy; the
        panel's title says how many of how many.
    columns : int
        Panels per row at most.

    Returns
    -------
    Figure
        One panel per (dataset, test env); with picks, a strip below each.

    Raises
    ------
    ConfigError
        If the frame is empty or lacks a column, or if `max_runs` is below 1.
    """
    require(df, "test_acc", "val_acc", "step", "run", "dataset", "test_env")
    df = of_kinds(df, [RAW])
    if max_runs < 1:
        raise ConfigError(f"max_runs is {max_runs}; draw at least 1 run")
    cells = list(df.groupby(["dataset", "test_env"], sort=True))
    criteria = list(dict.fromkeys(picks["criterion"])) if picks is not None else []
    strip = 0.3 + 0.14 * max_runs * len(criteria) if criteria else 0.0
    columns = min(columns, len(cells))
    rows = math.ceil(len(cells) / columns)
    figure = Figure(figsize=(PANEL * columns, (3.3 + strip) * rows), layout="constrained")
    per_cell = 2 if criteria else 1
    grid = figure.subplots(
        rows * per_cell,
        columns,
        squeeze=False,
        height_ratios=[2.7, strip] * rows if criteria else None,
    )
    for index, ((dataset, env), cell) in enumerate(cells):
        row, column = divmod(index, columns)
        ax = dress(grid[row * per_cell, column])
        runs = _sample_runs(cell, max_runs)
        for position, run in enumerate(runs):
            curve = cell[cell["run"] == run].sort_values("step")
            look: dict[str, Any] = {"color": OKABE_ITO[position % 7], "marker": MARKERS[position % 7]}
            ax.plot(curve["step"], curve["test_acc"], "-", ms=4, lw=1.4, **look)
            ax.plot(curve["step"], curve["val_acc"], "--", ms=2.5, lw=0.9, alpha=0.75, **look)
        shown = f"{len(runs)} of {counted(cell['run'].nunique(), 'run')} shown"
        set_title(ax, f"{dataset}, test env {env}", f"{shown}; solid: test, dashed: validation")
        ax.set_ylabel("accuracy")
        percent_axis(ax.yaxis)
        ax.grid(True)
        lowest = ax
        if criteria and picks is not None:
            lowest = dress(grid[row * per_cell + 1, column])
            here = picks[(picks["test_env"] == env) & picks["run"].isin(runs)]
            _pick_strip(lowest, here, criteria, runs)
            lowest.sharex(ax)
            ax.tick_params(labelbottom=False)
        lowest.set_xlabel("training step")
        lowest.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    for spare in range(len(cells), rows * columns):
        row, column = divmod(spare, columns)
        for part in range(per_cell):
            grid[row * per_cell + part, column].set_axis_off()
    return figure


def _sample_runs(cell: pd.DataFrame, count: int) -> list[str]:
    """Return runs evenly spaced over all, in the order of their best test accuracy, best first."""
    best = cell.groupby("run")["test_acc"].max().sort_values(ascending=False, kind="stable")
    places = np.linspace(0, len(best) - 1, min(count, len(best))).round().astype(int)
    return [str(best.index[place]) for place in places]


def _pick_strip(ax: Axes, picks: pd.DataFrame, criteria: Sequence[str], runs: Sequence[str]) -> None:
    """Mark the step that each criterion chose in each run; runs stand apart within a criterion's row."""
    for index, criterion in enumerate(criteria):
        if index % 2 == 0:
            ax.axhspan(index - 0.5, index + 0.5, color="#f3f5f7", lw=0)
        for position, run in enumerate(runs):
            shift = 0.0 if len(runs) == 1 else 0.56 * (position / (len(runs) - 1) - 0.5)
            steps = picks.loc[(picks["criterion"] == criterion) & (picks["run"] == run), "step"].dropna()
            ax.plot(
                steps,
                np.full(len(steps), index + shift),
                MARKERS[position % 7],
                color=OKABE_ITO[position % 7],
                ms=5,
                mew=0,
            )
    ax.set_yticks(range(len(criteria)), list(criteria))
    ax.set_ylim(len(criteria) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.set_ylabel("picked by")
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)
