"""Figures of what criteria are worth: their correlations and their regret."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nacme.errors import ConfigError
from nacme.plots.style import (
    INK,
    MARKERS,
    MUTED,
    OKABE_ITO,
    RASTERIZE_ABOVE,
    counted,
    panel_grid,
    require,
    set_title,
    styled,
)


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
