"""Names that anybody chose, made fit for a terminal, a line and a spreadsheet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def printable(text: object) -> str:
    """Write control characters and halves of characters as escapes, so that a terminal obeys none of them.

    Parameters
    ----------
    text : object
        Its ``str``.

    Returns
    -------
    str
        One line that every encoding of Unicode takes.
    """
    said = str(text)
    return said if said.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in said)


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode()


def short(value: object, length: int = 80) -> str:
    """Write a value as Python does, cut where it is long."""
    if isinstance(value, int) and abs(value) >= 2**64:  # Python refuses to write very long ones
        return f"a number of {value.bit_length()} bits"
    try:
        text = repr(value)
    except (RecursionError, ValueError):
        return f"a {type(value).__name__} nested too deeply"
    return printable(text if len(text) <= length else f"{text[: length - 3]}...")


def spreadsheet_safe(df: pd.DataFrame) -> pd.DataFrame:
    """Put a frame's names so that a spreadsheet takes none for a formula; see `csv_cell`."""
    import pandas as pd

    named = [column for column in df.columns if not pd.api.types.is_numeric_dtype(df[column])]
    safe: pd.DataFrame = df.assign(**{column: df[column].map(csv_cell) for column in named})
    return safe


def csv_cell(value: Any) -> Any:
    """Put an apostrophe before ``=``, ``+``, ``-`` and ``@``, so that a spreadsheet sees no formula."""
    if not isinstance(value, str):
        return value
    said = printable(value)
    return f"'{said}" if said.startswith(("=", "+", "-", "@")) else said
