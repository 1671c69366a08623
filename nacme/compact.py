"""Results as a terminal shows them: what is the same in all rows said once, and no word broken at its width."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nacme.system.text import printable

if TYPE_CHECKING:
    import pandas as pd

#: Columns that are said once, above the table, where all rows have the same.
_ONCE = ("dataset", "algorithm", "trial", "candidate", "population", "runs", "checkpoints", "hparams", "tied")
_GAP = 2


@dataclass
class Compact:
    """A table of texts.

    Attributes
    ----------
    caption : str
        What all rows have in common; may be empty.
    columns : list of str
    rows : list of list of str
    hidden : list of str
        Columns that the width left no room for.
    """

    caption: str
    columns: list[str]
    rows: list[list[str]]
    hidden: list[str]


def compact_choices(table: pd.DataFrame, width: int) -> Compact:
    """Show what `nacme.select` returns, a line for each choice.

    Parameters
    ----------
    table : pandas.DataFrame
        As `nacme.select` returns it.
    width : int
        Of the terminal, in characters.

    Returns
    -------
    Compact
        Accuracy in percent beside regret in points; of the checkpoint the run's name, short where it is long.
    """
    short = _short_names([str(run) for run in table["run"].dropna()])
    columns = {
        **_cells(table, {"dataset": "dataset", "algorithm": "algorithm", "test_env": "env"}),
        **_cells(table, {"train_envs": "train envs"} if "train_envs" in table else {}),
        **_cells(table, {"trial_seed": "trial", "criterion": "criterion", "candidate": "candidate"}),
        **_cells(table, {"hparams_seed": "hparams", "step": "step"}),
        "value": [_number(value, ".4g") for value in table["value"]],
        "test %": [_number(100 * value, ".1f") for value in table["test_acc"]],
        "regret": [_number(value, ".1f") for value in table["regret"]],
        **_cells(table, {"n_tied": "tied"}),
        "run": ["-" if _is_nothing(run) else short[str(run)] for run in table["run"]],
    }
    return _fit(columns, width, ["hparams", "value", "tied", "run"])


def compact_correlations(table: pd.DataFrame, width: int) -> Compact:
    """Show what `nacme.rank_correlation` returns, estimate and interval in one cell.

    Parameters
    ----------
    table : pandas.DataFrame
        As `nacme.rank_correlation` returns it.
    width : int
        Of the terminal, in characters.

    Returns
    -------
    Compact
        Rho given step is the partial rank correlation with the step held fixed.
    """
    columns = {
        **_cells(table, {"dataset": "dataset", "algorithm": "algorithm", "test_env": "env"}),
        **_cells(table, {"train_envs": "train envs"} if "train_envs" in table else {}),
        **_cells(table, {"population": "population", "criterion": "criterion"}),
        "kendall tau": _intervals(table, "kendall_tau", "kendall"),
        "spearman rho": _intervals(table, "spearman_rho", "spearman"),
        "given step": [_number(value, ".2f") for value in table["partial_spearman_step"]],
        **_cells(table, {"n_runs": "runs", "n_checkpoints": "checkpoints"}),
    }
    return _fit(columns, width, ["checkpoints", "spearman rho", "runs", "given step"])


def terminal_width() -> int:
    """Width to write for, in characters: the terminal's, or ``COLUMNS``; 80 where neither is known."""
    import shutil

    return shutil.get_terminal_size((80, 24)).columns


def _cells(table: pd.DataFrame, named: dict[str, str]) -> dict[str, list[str]]:
    return {title: ["-" if _is_nothing(v) else printable(v) for v in table[name]] for name, title in named.items()}


def _is_nothing(value: Any) -> bool:
    import pandas as pd

    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def _number(value: Any, form: str) -> str:
    return "-" if _is_nothing(value) or not math.isfinite(value) else format(float(value), form)


def _intervals(table: pd.DataFrame, estimate: str, ends: str) -> list[str]:
    cells = []
    for value, low, high in zip(table[estimate], table[f"{ends}_low"], table[f"{ends}_high"]):
        known = math.isfinite(low) and math.isfinite(high)
        cells.append(_number(value, ".2f") + (f" [{low:.2f}, {high:.2f}]" if known else ""))
    return cells


def _short_names(names: Sequence[str], length: int = 8) -> dict[str, str]:
    """Cut long names where their first characters tell them apart, as those of hashes do."""
    different = list(dict.fromkeys(names))
    starts = {name[:length] for name in different}
    if len(starts) < len(different):
        return {name: printable(name) for name in different}
    return {
        name: printable(name if len(name) <= 2 * length or os.sep in name else f"{name[:length]}…")
        for name in different
    }


def _fit(columns: dict[str, list[str]], width: int, spare: Sequence[str]) -> Compact:
    """Say constant columns in the caption, and leave spare ones out, in their order, until the rest fits."""
    once = {name: columns.pop(name)[0] for name in _ONCE if len(set(columns.get(name, ()))) == 1}

    def needed() -> int:
        return sum(max(map(len, [name, *cells])) + _GAP for name, cells in columns.items()) - _GAP

    hidden = []
    for name in spare:
        if needed() > width and name in columns:
            del columns[name]
            hidden.append(name)
    caption = ", ".join(f"{name} {value}" for name, value in once.items())
    rows = [list(row) for row in zip(*columns.values())]
    return Compact(caption, list(columns), rows, hidden)


def lines_of(table: Compact, width: int) -> list[str]:
    """Lay a table out in lines; those of the caption end before `width`, between words."""
    more = f"--wide adds {', '.join(table.hidden)}" if table.hidden else ""
    caption = "; ".join(filter(None, [table.caption, more]))
    lines = textwrap.wrap(caption, width, break_long_words=False, break_on_hyphens=False)
    columns = list(zip(table.columns, *table.rows))
    widths = [max(map(len, cells)) for cells in columns]
    right = [all(map(_is_right, cells[1:])) for cells in columns]
    for row in (table.columns, ["─" * n for n in widths], *table.rows):
        cells = [c.rjust(n) if of_numbers else c.ljust(n) for c, n, of_numbers in zip(row, widths, right)]
        lines.append((" " * _GAP).join(cells).rstrip())
    return lines


def _is_right(cell: str) -> bool:
    """Whether a cell is a number, which stands at the right."""
    return cell == "-" or cell.replace(".", "", 1).replace("-", "").replace("e", "").replace("+", "").isdigit()
