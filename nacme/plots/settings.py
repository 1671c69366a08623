"""Figures of what NAC-ME's settings do."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from nacme.errors import ConfigError
from nacme.plots.style import MUTED, PANEL, dress, require, set_title, short, styled


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
