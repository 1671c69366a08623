"""The parts of a page: panels, figures, sections, and writing them to files."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from nacme.errors import ConfigError
from nacme.plots.style import render
from nacme.report.tables import Table
from nacme.system import files

MAX_BYTES = 900_000  # of the panels under one caption, after which no more are drawn
_SVG_LIMIT = 60_000  # bytes of one panel
_SVG_BUDGET = 400_000  # bytes of the panels under one caption, if they are to be SVG


@dataclass(frozen=True)
class Panel:
    """One image of the page, and what it shows in words."""

    src: str
    alt: str
    width: int
    height: int


@dataclass(frozen=True)
class FigureGroup:
    """Panels under one caption, and the figure that holds them all, for export."""

    name: str
    caption: str
    panels: Sequence[Panel]
    whole: Callable[[], Figure]


@dataclass(frozen=True)
class Section:
    """A part of the page under one heading."""

    name: str
    title: str
    figures: Sequence[FigureGroup] = ()
    tables: Sequence[Table] = ()


def draw_panels(
    name: str,
    caption: str,
    cells: Sequence[tuple[pd.DataFrame, str]],
    draw: Callable[[pd.DataFrame], Figure],
    whole: Callable[[], Figure],
) -> FigureGroup:
    """Draw a panel per cell, so that the page can set them side by side or one below the other."""
    svg_limit = min(_SVG_LIMIT, _SVG_BUDGET / len(cells))
    panels: list[Panel] = []
    for cell, alt in cells:
        if sum(len(panel.src) for panel in panels) > MAX_BYTES:
            caption += f" The first {len(panels)} of {len(cells)} panels; --export writes all."
            break
        panels.append(draw_panel(draw(cell), alt, svg_limit))
    return FigureGroup(name, caption, panels, whole)


def draw_panel(figure: Figure, alt: str, svg_limit: float = _SVG_LIMIT) -> Panel:
    """Encode a figure as SVG, or, where that takes more bytes than allowed, as PNG at twice the screen's dots."""
    content, kind = render(figure, "svg"), "image/svg+xml"
    if len(content) > svg_limit:
        # 128 colours are enough for a panel and take a third of the bytes.
        drawn = (
            Image.open(io.BytesIO(render(figure, "png"))).convert("RGB").quantize(128, dither=Image.Dither.NONE)
        )
        stream = io.BytesIO()
        drawn.save(stream, "png", optimize=True)
        content, kind = stream.getvalue(), "image/png"
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    return Panel(f"data:{kind};base64,{base64.b64encode(content).decode()}", alt, width, height)


def export_section(section: Section, directory: Path) -> None:
    """Write a section's figures as PNG and PDF and its tables as CSV and LaTeX."""
    for group in section.figures:
        figure = group.whole()
        for kind in ("png", "pdf"):
            write_file(directory / f"{files.file_name(group.name)}.{kind}", render(figure, kind))
    for table in section.tables:
        write_file(directory / f"{files.file_name(table.name)}.csv", table.to_csv())
        write_file(directory / f"{files.file_name(table.name)}.tex", table.to_latex())


def write_file(path: Path, content: bytes) -> Path:
    """Write a file at once or not at all.

    Parameters
    ----------
    path : Path
        Where to; its directory is made if need be.
    content : bytes
        What.

    Returns
    -------
    Path
        The path.

    Raises
    ------
    ConfigError
        If it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.replace(path, lambda file: file.write(content))
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; choose another place") from error
    return path
