"""Tables of the report: a DataFrame with its numbers formatted for a reader, for a page and for LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from nacme.system.text import spreadsheet_safe

UNDEFINED = "undefined"
Row = Mapping[Hashable, Any]


@dataclass(frozen=True)
class Column:
    """One column: its title, how a row is written there, and by what it sorts.

    Parameters
    ----------
    title : str
        Head of the column.
    key : str
        Column of the frame that it sorts by, and that decides whether the value is defined.
    write : callable, optional
        From a row to text; without it, the value as it is.
    number : bool
        Whether it is right-aligned and sorts as a number.
    blank : str
        What stands where the value is None or NaN.
    """

    title: str
    key: str
    write: Callable[[Row], str] | None = None
    number: bool = False
    blank: str = UNDEFINED

    @property
    def kind(self) -> str:
        """The class of the column's cells in the page."""
        return "number" if self.number else "text"


@dataclass(frozen=True)
class Cell:
    """One cell: what stands there, what it sorts by, and its class."""

    text: str
    key: float | str | None
    kind: str


@dataclass(frozen=True)
class Table:
    """A table with a name (its file name when exported), a caption, and its frame with full precision.

    Parameters
    ----------
    name, caption : str
        What it is called in files, and what stands above it.
    frame : DataFrame
        One row per row.
    columns : sequence of Column
        What is shown of the frame.
    folded : str, optional
        What stands in the page in its place until it is unfolded.
    """

    name: str
    caption: str
    frame: pd.DataFrame
    columns: Sequence[Column]
    folded: str | None = None

    def rows(self, limit: int | None = None) -> list[list[Cell]]:
        """Return the formatted rows, the first ones if there is a limit."""
        shown = self.frame if limit is None else self.frame.head(limit)
        return [[_cell(row, column) for column in self.columns] for row in shown.to_dict("records")]

    def to_csv(self) -> bytes:
        """Return the frame with full precision; what is undefined is empty."""
        return str(spreadsheet_safe(self.frame).to_csv(index=False)).encode(errors="backslashreplace")

    def to_latex(self) -> bytes:
        """Return the formatted table as a LaTeX table (package booktabs)."""
        texts = pd.DataFrame([[cell.text for cell in row] for row in self.rows()])
        texts.columns = pd.Index([c.title for c in self.columns])
        latex = texts.to_latex(
            index=False,
            escape=True,
            caption=self.caption.replace("%", r"\%").replace("_", r"\_"),
            label=f"tab:{self.name}",
            column_format="".join("r" if c.number else "l" for c in self.columns),
        )
        return (
            str(latex)
            .replace("–", "--")
            .replace("−", "$-$")
            .replace("±", r"$\pm$")
            .encode(errors="backslashreplace")
        )


def text(title: str, key: str) -> Column:
    """Return a column of names."""
    return Column(title, key)


def integer(title: str, key: str) -> Column:
    """Return a column of counts."""
    return Column(title, key, lambda row: f"{int(row[key]):,}", number=True)


def percent(title: str, key: str) -> Column:
    """Return a column of accuracies between 0 and 1, written as percent with one decimal."""
    return Column(title, key, lambda row: f"{100 * row[key]:.1f}%", number=True)


def points(title: str, key: str, error: str | None = None) -> Column:
    """Return a column of percentage points with one decimal, and their standard error where there is one."""

    def write(row: Row) -> str:
        value = signed(row[key], 1)
        return value if error is None or is_undefined(row[error]) else f"{value} ± {row[error]:.1f}"

    return Column(title, key, write, number=True)


def decimal(title: str, key: str, low: str | None = None, high: str | None = None) -> Column:
    """Return a column of numbers with two decimals, and their interval in brackets where there is one."""

    def write(row: Row) -> str:
        if low is None or high is None:
            return signed(row[key], 2)
        return with_interval(row[key], row[low], row[high])

    return Column(title, key, write, number=True)


def p_value(title: str, key: str) -> Column:
    """Return a column of p-values with three decimals."""
    return Column(title, key, lambda row: "< 0.001" if row[key] < 0.001 else f"{row[key]:.3f}", number=True)


def signed(value: float, digits: int) -> str:
    """Write a number with a true minus sign, and no minus before zero."""
    written = f"{value:.{digits}f}"
    return written.lstrip("-") if float(written) == 0 else written.replace("-", "−")


def with_interval(value: float, low: float, high: float, digits: int = 2) -> str:
    """Write a number and its interval in brackets; the number alone where the interval is undefined."""
    if is_undefined(low) or is_undefined(high):
        return signed(value, digits)
    return f"{signed(value, digits)} [{signed(low, digits)}, {signed(high, digits)}]"


def is_undefined(value: object) -> bool:
    """Say whether a scalar of a frame is None, NaN or NA."""
    return bool(pd.isna(value))  # type: ignore[call-overload]


def _cell(row: Row, column: Column) -> Cell:
    value = row[column.key]
    if is_undefined(value):
        return Cell(column.blank, None, f"{column.kind} undefined")
    if column.write is None:
        return Cell(str(value), None, column.kind)
    return Cell(column.write(row), float(value), column.kind)
