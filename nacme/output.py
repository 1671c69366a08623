"""What the command line prints: a table alone on standard output, a mistake as one line on standard error."""

from __future__ import annotations

import io
import json
import math
import sys
import warnings
from typing import TYPE_CHECKING, Any, Literal, TextIO

from nacme.errors import NacmeError

if TYPE_CHECKING:
    import pandas as pd

Format = Literal["table", "csv", "json"]


def write_frame(df: pd.DataFrame, form: Format, stream: TextIO | None = None) -> None:
    """Print a frame.

    Parameters
    ----------
    df : pandas.DataFrame
        The result.
    form : {"table", "csv", "json"}
        ``json`` is a list of row objects in which what is undefined is null, as it is empty in ``csv``;
        ``table`` rounds floats to four digits, and uses colour only on a terminal.
    stream : text file, optional
        Standard output by default.
    """
    out = stream or sys.stdout
    rows = [[_plain(value) for value in row] for row in df.itertuples(index=False, name=None)]
    if form == "json":
        json.dump([dict(zip(df.columns, row)) for row in rows], out, indent=2, allow_nan=False)
        out.write("\n")
    elif form == "csv":
        df.to_csv(out, index=False)
    else:
        _write_table(list(df.columns), rows, out)


def _plain(value: Any) -> Any:
    """Turn a cell into what JSON knows; undefined and infinite values into None."""
    import pandas as pd

    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if value is None or value is pd.NA:
        return None
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_table(columns: list[str], rows: list[list[Any]], out: TextIO) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        numeric = any(isinstance(row[i], int | float) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(_shown, row))
    if out.isatty():
        Console(file=out, highlight=False, markup=False).print(table)
        return
    # A pipe has no width: nothing may be folded there, so that its lines can be searched.
    page = io.StringIO()
    Console(file=page, width=100_000, highlight=False, markup=False).print(table)
    lines = [line.rstrip() for line in page.getvalue().splitlines()]
    out.write("\n".join(line for line in lines if line) + "\n")


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 1000 else f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return str(value)


def report_errors(run: object) -> None:
    """Run a command; print a user's mistake as one line on standard error and exit with 1.

    Parameters
    ----------
    run : callable
        The command without arguments.
    """
    assert callable(run)

    def show(message: Warning | str, *_: object, **__: object) -> None:
        print(f"nacme: warning: {message}", file=sys.stderr)

    warnings.showwarning = show
    try:
        run()
    except NacmeError as error:
        print(f"nacme: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
