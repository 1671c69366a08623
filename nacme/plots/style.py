"""The house style of the figures: colours, markers, sizes, titles, and the grid of panels."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, MaxNLocator

from nacme.errors import ConfigError, nearest

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
RASTERIZE_ABOVE = 1500
INK = "#1f2328"
MUTED = "#59636e"
PANEL = 4.0
_GRID = "#e4e7eb"
_TITLE, _NOTE = "panel title", "panel note"
#: Settings that choose a back end, which drawing must not change.
_NO_STYLE = ("backend", "backend_fallback", "interactive", "toolbar")
#: On top of matplotlib's own defaults, whatever a ``matplotlibrc`` says. Names are text, not formulas.
_STYLE: Any = {
    **{key: value for key, value in matplotlib.rcParamsDefault.items() if key not in _NO_STYLE},
    "text.parse_math": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#8c959f",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "nacme",
    "pdf.fonttype": 42,
}
_P = ParamSpec("_P")
_R = TypeVar("_R")


def styled(draw: Callable[_P, _R]) -> Callable[_P, _R]:
    """Draw under the house style and leave matplotlib's settings as they were."""

    @functools.wraps(draw)
    def drawn(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with matplotlib.rc_context(_STYLE):
            drawing = draw(*args, **kwargs)
            if isinstance(drawing, Figure):
                _fit_titles(drawing)
            return drawing

    return drawn


def _fit_titles(figure: Figure) -> None:
    """Move titles that would run over the panel's right edge to the left, above its labels; then shrink them."""
    figure.draw_without_rendering()
    for ax in figure.axes:
        texts = [t for t in ax.get_children() if isinstance(t, Text) and t.get_gid() in (_TITLE, _NOTE)]
        titles = [text for text in texts if text.get_gid() == _TITLE]
        if not titles:
            continue
        title, panel, whole = titles[0].get_window_extent(), ax.get_window_extent(), ax.get_tightbbox()
        over = title.x1 - panel.x1
        if over <= 0 or whole is None:
            continue
        left = min(over, panel.x0 - whole.x0)
        for text in texts:
            place = -left / panel.width
            text.set_x(place) if text.get_gid() == _TITLE else setattr(text, "xy", (place, 1))
        if over > left:
            titles[0].set_fontsize(titles[0].get_fontsize() * max(0.75, 1 - (over - left) / title.width))


@styled
def render(figure: Figure, kind: str, dpi: int = 192) -> bytes:
    """Return the figure as a file of a kind.

    Parameters
    ----------
    figure : Figure
        What to draw.
    kind : str
        ``"svg"`` (text stays text), ``"png"`` or ``"pdf"``.
    dpi : int
        Dots per inch of a PNG and of what is rasterized in the others; 192 is twice a screen's 96.

    Returns
    -------
    bytes
        The same bytes for the same figure: no date is written.
    """
    stream = io.BytesIO()
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    figure.savefig(stream, format=kind, dpi=dpi, metadata=metadata)
    return stream.getvalue()


def dress(ax: Axes) -> Axes:
    """Fix the look of the ticks, which matplotlib makes late, when the house style is no longer set."""
    ax.tick_params(
        color=MUTED, labelcolor=INK, labelsize=9, grid_color=_GRID, grid_linewidth=0.7, width=0.8, length=3
    )
    return ax


def require(table: pd.DataFrame, *columns: str) -> None:
    """Raise unless the table has rows and the columns."""
    for column in columns:
        if column not in table.columns:
            raise ConfigError(f"the table has no column {column!r}: {nearest(column, map(str, table.columns))}")
    if table.empty:
        raise ConfigError("the table has no rows: nothing to draw")


def panel_grid(panels: int, height: float, columns: int) -> tuple[Figure, list[Axes]]:
    """Return a figure with at least as many axes as panels, in rows; those to spare are switched off."""
    columns = min(columns, panels)
    rows = math.ceil(panels / columns)
    figure = Figure(figsize=(PANEL * columns, height * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for spare in axes[panels:]:
        spare.set_axis_off()
    return figure, [dress(ax) for ax in axes[:panels]]


def set_title(ax: Axes, title: str, note: str) -> None:
    """Set a title with a quieter second line."""
    ax.set_title(f"{title}\n", fontweight="bold", linespacing=1.5).set_gid(_TITLE)
    text = ax.annotate(
        note, (0, 1), (0, 6), xycoords="axes fraction", textcoords="offset points", color=MUTED, fontsize=9
    )
    text.set_gid(_NOTE)
    text.set_in_layout(False)  # a long note may pass over the colour bar without squeezing the panel


def say(ax: Axes, text: str) -> None:
    """Write a sentence into an empty panel."""
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color=MUTED, style="italic")


def percent_axis(axis: Axis) -> None:
    """Show accuracies between 0 and 1 as percent, with a decimal only where the axis spans under 5 points."""
    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))

    def show(value: float, _: int | None = None) -> str:
        low, high = axis.get_view_interval()
        return f"{100 * value:.{1 if abs(high - low) < 0.05 else 0}f}%"

    axis.set_major_formatter(FuncFormatter(show))


def counted(number: int, noun: str) -> str:
    """Say how many."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def short(value: object) -> str:
    """Write a setting as short as it is."""
    return f"{value:g}" if isinstance(value, (int, float, np.number)) else str(value)
