"""Figures of the study: each function turns a DataFrame (or an array) into a matplotlib Figure.

Nothing here computes a statistic beyond a mean and its standard error, touches pyplot's global state or
writes a file. Panels are four inches wide, so that one alone stays legible on a phone; colours are Okabe and
Ito's, or one ramp from dark to light where they stand for a quantity, and every series has its own marker, so
that a grey print can be read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from nacme.errors import ConfigError
from nacme.plots.style import (
    INK,
    MARKERS,
    MUTED,
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
    short,
    styled,
)

__all__ = [
    "correlation_forest",
    "coverage_picture",
    "regret_plot",
    "scatter",
    "sensitivity_heatmap",
    "training_curves",
]


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


@styled
def correlation_forest(
    table: pd.DataFrame,
    *,
    statistic: str = "kendall_tau",
    order: Sequence[str] | None = None,
    columns: int = 3,
) -> Figure:
    """Rank correlation of each criterion with its 95% interval, one panel per (dataset, test env).

    Parameters
    ----------
    table : DataFrame
        Rows of one population, as `nacme.rank_correlation` returns them.
    statistic : str
        ``"kendall_tau"`` or ``"spearman_rho"``; the interval comes from the columns of the same stem.
    order : sequence of str, optional
        Criteria from top to bottom. Without it: by the mean of the statistic over the panels, highest first,
        undefined ones last.
    columns : int
        Panels per row at most.

    Returns
    -------
    Figure
        An undefined correlation stands as ``undefined``, with its reason where the table has a column
        `reason`.

    Raises
    ------
    ConfigError
        If the table is empty, lacks a column, or mixes populations.
    """
    stem = statistic.split("_")[0]
    low, high = f"{stem}_low", f"{stem}_high"
    require(table, "dataset", "algorithm", "test_env", "population", "criterion", statistic, low, high)
    if table["population"].nunique() > 1:
        raise ConfigError("the table mixes populations 'run' and 'sweep'; draw one at a time")
    if order is None:
        means = table.groupby("criterion", sort=False)[statistic].mean()
        order = [str(name) for name in means.sort_values(ascending=False, kind="stable").index]
    cells = list(table.groupby(["dataset", "algorithm", "test_env"], sort=True))
    figure, axes = panel_grid(len(cells), 1.35 + 0.3 * len(order), columns)
    for ax, ((dataset, algorithm, env), cell) in zip(axes, cells):
        place = {name: index for index, name in enumerate(order)}
        ax.axvline(0, color=MUTED, lw=1)
        for row in cell.to_dict("records"):
            y = place[str(row["criterion"])]
            value = row[statistic]
            if pd.isna(value):
                reason = row.get("reason")
                text = "undefined" + (f": {reason}" if isinstance(reason, str) and reason else "")
                said = ax.text(0, y, text, ha="center", va="center", color=MUTED, style="italic", fontsize=9)
                said.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 2})
                continue
            if not (pd.isna(row[low]) or pd.isna(row[high])):
                ax.plot([row[low], row[high]], [y, y], color=OKABE_ITO[0], lw=2, solid_capstyle="butt")
            ax.plot([value], [y], "o", color=OKABE_ITO[0], ms=6, mec="white", mew=0.8)
        ax.set_yticks(range(len(order)), list(order))
        ax.set_ylim(len(order) - 0.5, -0.5)
        ax.set_xlim(-1.03, 1.03)
        ax.set_xticks([-1, -0.5, 0, 0.5, 1], ["−1", "−0.5", "0", "0.5", "1"])
        ax.tick_params(axis="y", length=0)
        ax.grid(True, axis="x")
        ax.set_xlabel({"kendall": "Kendall tau-b", "spearman": "Spearman rho"}.get(stem, statistic))
        title = f"{dataset}, test env {env}" + ("" if algorithm == "all" else f", {algorithm}")
        set_title(ax, title, _counts_of(cell.dropna(subset=[statistic])))
    return figure


@styled
def regret_plot(selection: pd.DataFrame, *, order: Sequence[str] | None = None, columns: int = 3) -> Figure:
    """Regret of each criterion in points: a dot per choice, the mean and its standard error.

    Parameters
    ----------
    selection : DataFrame
        Rows of `nacme.select` for several criteria: columns `dataset`, `test_env`, `criterion`, `regret` in
        percentage points. Undefined regret is left out and counted.
    order : sequence of str, optional
        Criteria from top to bottom; without it by mean regret over everything, lowest first.
    columns : int
        Panels per row at most.

    Returns
    -------
    Figure
        One panel per dataset; markers tell test envs apart. The bar is the mean plus and minus the standard
        error over the dots.

    Raises
    ------
    ConfigError
        If the table is empty or lacks a column.
    """
    require(selection, "dataset", "test_env", "criterion", "regret")
    if order is None:
        means = selection.groupby("criterion", sort=False)["regret"].mean()
        order = [str(name) for name in means.sort_values(kind="stable").index]
    cells = list(selection.groupby("dataset", sort=True))
    envs = sorted(selection["test_env"].unique())
    figure, axes = panel_grid(len(cells), 1.7 + 0.42 * len(order), columns)
    for ax, (dataset, cell) in zip(axes, cells):
        for y, criterion in enumerate(order):
            chosen = cell[cell["criterion"] == criterion].dropna(subset=["regret"])
            for position, env in enumerate(envs):
                values = chosen.loc[chosen["test_env"] == env, "regret"]
                shift = 0.0 if len(envs) == 1 else 0.44 * (position / (len(envs) - 1) - 0.5)
                ax.plot(
                    values,
                    np.full(len(values), y + shift),
                    MARKERS[position % 7],
                    color=OKABE_ITO[position % 7],
                    ms=4.5,
                    alpha=float(np.clip(30 / max(len(values), 1), 0.15, 0.75)),
                    mew=0,
                    rasterized=len(values) > RASTERIZE_ABOVE,
                    clip_on=False,
                )
            if len(chosen):
                mean = float(chosen["regret"].mean())
                error = float(chosen["regret"].sem()) if len(chosen) > 1 else 0.0
                ax.errorbar([mean], [y], xerr=[error], fmt="|", color=INK, ms=19, mew=2, lw=2, capsize=3, zorder=5)
            else:
                ax.text(0.1, y, "undefined", va="center", color=MUTED, style="italic", fontsize=9)
        ax.set_yticks(range(len(order)), list(order))
        ax.set_ylim(len(order) - 0.5, -0.5)
        ax.set_xlim(left=0)
        ax.tick_params(axis="y", length=0)
        ax.grid(True, axis="x")
        ax.set_xlabel("regret (points; lower is better)")
        missing = int(cell["regret"].isna().sum())
        per_criterion = cell.groupby("criterion").size()
        most = int(per_criterion.max())
        note = f"n = {most} choices per criterion" + (f", {missing} undefined" if missing else "")
        set_title(ax, str(dataset), note)
    marks = [
        Line2D([], [], ls="", marker=MARKERS[i % 7], color=OKABE_ITO[i % 7], ms=5, mew=0, label=f"env {env}")
        for i, env in enumerate(envs)
    ]
    figure.legend(
        handles=marks, loc="outside lower center", ncols=min(4, len(envs)), handletextpad=0.1, columnspacing=1.2
    )
    return figure


@styled
def sensitivity_heatmap(
    table: pd.DataFrame, *, x: str, y: str, value: str, label: str | None = None, digits: int = 2
) -> Figure:
    """Mean of a result over two settings, written into the cells.

    Parameters
    ----------
    table : DataFrame, tidy
        One row per measurement: the settings `x` and `y`, and `value`. Rows of one cell are averaged; the
        number of rows per cell stands in the title.
    x, y, value : str
        Column names.
    label : str, optional
        What the colour means; the name of `value` without it.
    digits : int
        Decimals in the cells.

    Returns
    -------
    Figure
        Cells without a defined value are blank and marked with a dash.

    Raises
    ------
    ConfigError
        If the table is empty or lacks a column.
    """
    require(table, x, y, value)
    grid = table.pivot_table(index=y, columns=x, values=value, aggfunc="mean", dropna=False)
    counts = table.dropna(subset=[value]).groupby([y, x]).size()
    shape = grid.shape
    figure = Figure(
        figsize=(max(PANEL, 1.7 + 0.62 * shape[1]), max(2.6, 1.4 + 0.42 * shape[0])), layout="constrained"
    )
    ax = dress(figure.subplots())
    cells = grid.to_numpy(dtype=float)
    image = ax.imshow(np.ma.masked_invalid(cells), cmap="cividis", aspect="auto")
    for (row, column), cell in np.ndenumerate(cells):
        if np.isnan(cell):
            ax.text(column, row, "–", ha="center", va="center", color=MUTED)
            continue
        dark = float(np.asarray(image.norm(cell))) < 0.55
        ax.text(
            column,
            row,
            f"{cell:.{digits}f}".replace("-", "−"),
            ha="center",
            va="center",
            color="white" if dark else "black",
        )
    ax.set_xticks(range(shape[1]), [short(name) for name in grid.columns])
    ax.set_yticks(range(shape[0]), [short(name) for name in grid.index])
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=ax)
    bar.outline.set_visible(False)
    spread = sorted(set(counts))
    n = "0" if not spread else str(spread[0]) if len(spread) == 1 else f"{spread[0]} to {spread[-1]}"
    set_title(ax, label or value, f"n = {n} per cell")
    return figure


@styled
def coverage_picture(
    counts: ArrayLike, *, fill: float | None = None, max_neurons: int = 512, title: str = "Coverage"
) -> Figure:
    """Where the states of each neuron fall: neurons by bins, darker where more of the bin is filled.

    Parameters
    ----------
    counts : array-like of int, shape [N, bins - 1]
        States counted per neuron and bin, as `NeuronActivationCoverage.counts` holds them.
    fill : float, optional
        Count at which a bin is full (`O`): the picture then shows ``min(count / fill, 1)``. Without it, each
        neuron's share of counts per bin.
    max_neurons : int
        Neurons drawn at most, evenly spaced after sorting; the title says how many of how many.
    title : str
        First line of the title.

    Returns
    -------
    Figure
        Neurons sorted by the mean bin of their states, and the mean number of occupied bins in the title.

    Raises
    ------
    ConfigError
        If `counts` is not a matrix with at least one neuron and one bin, or `fill` is not positive.
    """
    matrix = np.asarray(counts, dtype=float)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ConfigError(f"counts has shape {list(matrix.shape)}; expected [neurons, bins]")
    if fill is not None and fill <= 0:
        raise ConfigError(f"fill is {fill}; expected a positive count")
    total = matrix.sum(axis=1, keepdims=True)
    share = matrix / np.maximum(total, 1)
    filled = share if fill is None else np.minimum(matrix / fill, 1.0)
    ranking = np.argsort(share @ np.arange(matrix.shape[1]), kind="stable")
    kept = ranking[np.linspace(0, len(ranking) - 1, min(max_neurons, len(ranking))).round().astype(int)]
    figure = Figure(figsize=(PANEL, 3.5), layout="constrained")
    ax = dress(figure.subplots())
    image = ax.imshow(
        filled[kept],
        cmap="Blues",
        aspect="auto",
        vmin=0,
        vmax=1 if fill is not None else None,
        extent=(0, 1, len(kept), 0),
        interpolation="nearest",
    )
    ax.set_xlabel("state")
    ax.set_ylabel("neuron, sorted by mean state")
    what = "share of the neuron's states" if fill is None else "share of the bin filled"
    bar = figure.colorbar(image, ax=ax, label=what)
    bar.outline.set_visible(False)
    occupied = float((matrix > 0).sum(axis=1).mean())
    number = f"{len(kept)} of {len(matrix)}" if len(kept) < len(matrix) else str(len(matrix))
    set_title(ax, title, f"n = {number} neurons; {occupied:.1f} of {matrix.shape[1]} bins occupied")
    return figure


def _counts_of(cell: pd.DataFrame) -> str:
    """Say how many checkpoints and runs stand behind the rows of a panel."""
    if cell.empty:
        return "n = 0"
    parts = []
    for column, noun in (("n_checkpoints", "checkpoint"), ("n_runs", "run")):
        if column in cell.columns:
            low, high = int(cell[column].min()), int(cell[column].max())
            parts.append(counted(high, noun) if low == high else f"{low:,} to {counted(high, noun)}")
    return "n = " + " of ".join(parts) if parts else ""


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
