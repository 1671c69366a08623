"""What the command line prints: a table alone on standard output, a mistake as one line on standard error."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, TextIO

from nacme.children import leave_working_directory
from nacme.errors import NacmeError, NacmeWarning
from nacme.system.text import printable, spreadsheet_safe

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
    _refuse_closed(out)
    rows = [[_plain(value) for value in row] for row in df.itertuples(index=False, name=None)]
    if form == "json":
        json.dump([dict(zip(df.columns, row)) for row in rows], out, indent=2, allow_nan=False)
        out.write("\n")
    elif form == "csv":
        spreadsheet_safe(df).to_csv(out, index=False)
    else:
        _write_table(list(df.columns), rows, out)


def write_lines(lines: Sequence[str]) -> None:
    """Print lines of text, in letters that standard output takes."""
    out = sys.stdout
    _refuse_closed(out)
    text = "".join(f"{line}\n" for line in lines)
    out.write(text if _takes(out, "─…") else text.replace("─", "-").replace("…", "~"))


def _refuse_closed(out: TextIO) -> None:
    if getattr(out, "name", None) == os.devnull and out is not sys.__stdout__ and sys.__stdout__ is None:
        raise NacmeError("standard output is closed, so that the result has nowhere to go")


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
        table.add_column(printable(column), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(_shown, row))
    if out.isatty():
        Console(file=out, highlight=False, markup=False).print(table)
        return
    # A pipe has no width: nothing may be folded there, so that its lines can be searched.
    page = io.StringIO()
    Console(file=page, width=100_000, highlight=False, markup=False).print(table)
    lines = [line.rstrip() for line in page.getvalue().split("\n")]
    text = "\n".join(line for line in lines if line) + "\n"
    out.write(text if _takes(out, "─") else text.replace("─", "-"))


def _takes(stream: TextIO, character: str) -> bool:
    """Whether a stream's encoding has a character."""
    try:
        character.encode(getattr(stream, "encoding", None) or "utf-8")
    except (UnicodeError, LookupError):
        return False
    return True


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 1000 else f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return printable(value)


def say(text: object) -> None:
    """Write one line to standard error, whatever its text holds."""
    print(f"nacme: {printable(text)}", file=sys.stderr)


@contextlib.contextmanager
def said_after(*, every: bool = False) -> Iterator[Callable[[str], None]]:
    """Keep notes and warnings until the result stands; an error says warnings alone.

    Parameters
    ----------
    every : bool
        Whether to say each of those that differ in names and numbers alone.

    Yields
    ------
    callable
        Takes a note.
    """
    notes: list[str] = []
    caught: list[warnings.WarningMessage] = []

    def reduced(texts: Sequence[str]) -> list[str]:
        return list(dict.fromkeys(texts)) if every else merged(texts)

    def warn() -> None:
        for text in reduced([str(w.message) for w in caught if issubclass(w.category, NacmeWarning)]):
            say(f"warning: {text}")
        for other in caught:
            if not issubclass(other.category, NacmeWarning):
                warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)

    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", NacmeWarning)
            yield notes.append
    except BaseException:
        warn()  # they may say why
        raise
    sys.stdout.flush()
    warn()
    for text in reduced(notes):
        say(f"note: {text}")


def merged(texts: Sequence[str]) -> list[str]:
    """Make one of texts such as ``NAME: reason [places]`` that differ in names, numbers and places alone."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for text in dict.fromkeys(texts):
        name, _, reason = text.partition(": ")
        if not reason or "/" in name:  # files are named one by one
            name, reason = "", text
        key = re.sub(r"\[[^]]*\]|\([^)]*\)|\d+(\.\d+)?", "", reason) if name else text
        groups.setdefault(key, []).append((name, reason))
    said = []
    for alike in groups.values():
        names = list(dict.fromkeys(name for name, _ in alike))
        reasons = list(dict.fromkeys(reason for _, reason in alike))
        more = f" (and {len(reasons) - 1} more like it; --wide says each)" if len(reasons) > 1 else ""
        said.append(f"{', '.join(names)}: {reasons[0]}{more}" if names[0] else reasons[0])
    return said


def report_errors(run: object) -> None:
    """Run a command; print a user's mistake as one line on standard error and exit with 1.

    Parameters
    ----------
    run : callable
        The command without arguments.
    """
    assert callable(run)

    def show(message: Warning | str, *_: object, **__: object) -> None:
        say(f"warning: {message}")

    safe_path = os.environ.get("PYTHONSAFEPATH")
    leave_working_directory()
    warnings.showwarning = show
    _open_streams()
    code: int | str | None = 0
    try:
        try:
            run()
        except SystemExit as stop:  # as typer ends
            code = stop.code
        sys.stdout.flush()
    except NacmeError as error:
        say(error)
        code = error.exit_code
    except BrokenPipeError:  # whoever read has enough
        code = 1
    except OSError as error:
        say(f"{error.filename or 'standard output'}: {error.strerror or error}")
        code = 1
    except (MemoryError, RecursionError) as error:
        say(f"what was read is too large or nested too deeply to work with: {error or type(error).__name__}")
        code = 1
    if code:
        _end_output()
    if safe_path is None:  # set for what this command started
        os.environ.pop("PYTHONSAFEPATH", None)
    sys.exit(code)


def _open_streams() -> None:
    """Let every name be written, in any encoding; a closed stream takes what is written and keeps none of it."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for the process's life
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _end_output() -> None:
    """Let Python's last flush of standard output succeed where what is left cannot be written."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
