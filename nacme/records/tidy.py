"""Reading a sweep from a tidy table: one row per (checkpoint, test env), whoever wrote it."""

from __future__ import annotations

import csv
import io
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nacme.candidates import RAW
from nacme.criteria.registry import VARIANT_PREFIX, all_criteria
from nacme.errors import SweepError
from nacme.records.lines import MOST_STEPS, parse
from nacme.system.files import read_bytes
from nacme.system.text import short

if TYPE_CHECKING:
    import pandas as pd

#: The columns that every sweep has, in order; the recorded criteria follow.
BASE_COLUMNS = (
    "run",
    "dataset",
    "algorithm",
    "test_env",
    "test_envs",
    "n_test_envs",
    "n_envs",
    "trial_seed",
    "hparams_seed",
    "seed",
    "step",
    "candidate",
    "test_acc",
    "test_out_acc",
    "val_acc",
    "val_acc_worst",
    "checkpoint",
    "done",
)
#: The columns that stand behind the criteria, where there are any.
EXTRA_COLUMNS = ("occupied_bins", "degenerate", "full_bins", "networks")
REQUIRED = ("run", "step", "test_acc")
SUFFIXES = (".csv", ".parquet", ".jsonl")

_TEXTS = ("run", "dataset", "algorithm", "test_envs", "candidate", "checkpoint")
_ACCURACIES = ("test_acc", "test_out_acc", "val_acc", "val_acc_worst")
#: Whole numbers, and the least that each may be; candidates across runs have hparams_seed -1.
_WHOLE = {
    "test_env": 0, "n_test_envs": 1, "n_envs": 1, "trial_seed": 0, "hparams_seed": -1, "seed": 0, "step": 0,
    "networks": 1,
}  # fmt: skip
_OF_A_RUN = ("dataset", "algorithm", "test_envs", "trial_seed", "hparams_seed", "seed")
_NOTHING = ["", "nan", "NaN", "NA", "null", "None"]
_BOOLEANS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}


def is_table(path: str | os.PathLike[str]) -> bool:
    """Whether a path names a table rather than a directory of runs."""
    return Path(path).suffix.lower() in SUFFIXES and not os.path.isdir(path)


def read_tidy(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read a table as `nacme.load_sweep` gives one.

    Parameters
    ----------
    path : path-like
        A ``.csv`` (with commas), ``.parquet`` or ``.jsonl`` (an object a line).

    Returns
    -------
    pandas.DataFrame
        As `nacme.load_sweep` describes it. Required are ``run``, ``step``, ``test_acc`` and one criterion. Of what
        is missing, ``dataset`` is the file's name, ``algorithm`` ``"unknown"``, ``candidate`` ``"raw"``, ``done``
        true, ``test_env`` and the seeds 0, ``test_envs`` and ``n_test_envs`` what the run's rows name, ``n_envs``
        one more than the highest of these in the data set; further accuracies are NaN. Any other column of numbers
        is kept, and is a criterion if its name is a registered one or begins with ``nac_me_``.

    Raises
    ------
    SweepError
        If the file cannot be read, a column is missing or of another type, or a row is there twice.
    """
    import numpy as np
    import pandas as pd

    path = Path(path)
    given: pd.DataFrame = _read(path)
    if given.empty:
        raise SweepError(f"{path} holds no rows")
    if missing := [name for name in REQUIRED if name not in given]:
        raise SweepError(
            f"{path} has no column {missing[0]!r}; required are {', '.join(REQUIRED)} and one criterion "
            f"(such as nac_me or val_acc); it has {short(', '.join(map(str, given.columns)))}"
        )
    further, left_out = _further(given, path)
    columns: dict[str, Any] = {}
    for name in (*BASE_COLUMNS, *EXTRA_COLUMNS):
        if name in given:
            columns[name] = _typed(given[name], name, path)
    df = pd.DataFrame({**columns, **further})
    for name, default in (
        ("dataset", path.stem),
        ("algorithm", "unknown"),
        ("test_env", 0),
        ("trial_seed", 0),
        ("hparams_seed", 0),
        ("seed", 0),
        ("candidate", RAW),
        ("done", True),
        *((name, math.nan) for name in _ACCURACIES),
    ):
        if name not in df:
            df[name] = default
    if "checkpoint" not in df:
        df["checkpoint"] = pd.Series([None] * len(df), dtype=object)
    _name_envs(df)
    _check_rows(df, path)
    criteria = sorted(set(further))
    ranked = [name for name in criteria if name in all_criteria() or name.startswith(VARIANT_PREFIX)]
    if not ranked and df[["val_acc", "val_acc_worst"]].isna().all(axis=None):
        if not criteria:
            raise SweepError(
                f"{path} has no criterion: beside {', '.join(REQUIRED)} give a column such as nac_me, val_acc or "
                "val_loss ('nacme criteria' lists them)"
            )
        left_out.append(f"from ranking, columns whose direction is unknown: {', '.join(criteria)}")
    place = df.groupby(["run", "candidate", "test_env"], sort=False).ngroup()
    extra = [name for name in EXTRA_COLUMNS if name in df]
    order = np.lexsort((df["step"], place))
    table: pd.DataFrame = df[[*BASE_COLUMNS, *criteria, *extra]].iloc[order].reset_index(drop=True)
    table.attrs["path"] = str(path)
    table.attrs["exclusions"] = left_out
    return table


def _read(path: Path) -> pd.DataFrame:
    """Read the file, texts as texts; SweepError for what cannot be read."""
    try:
        content = read_bytes(path)
    except OSError as error:
        raise SweepError(f"{path} cannot be read: {error.strerror}") from error
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    df: pd.DataFrame = readers[path.suffix.lower()](content, path)
    return df


def _read_csv(content: bytes, path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        text = content.decode("utf-8-sig")
        header = next(csv.reader(io.StringIO(text, newline="")), [])
        if not header:
            raise SweepError(f"{path} holds no rows")
        if twice := [name for name in header if header.count(name) > 1]:
            raise SweepError(f"{path} has two columns {twice[0]!r}; rename one")
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # a line with more cells than the header
            df: pd.DataFrame = pd.read_csv(
                io.StringIO(text, newline=""),
                dtype=str,  # numbers are read to the last digit below
                keep_default_na=False,
                na_values={name: [""] if name in _TEXTS else _NOTHING for name in header},
                index_col=False,
            )
    except (ValueError, csv.Error, pd.errors.ParserWarning) as error:  # encoding, quotes, cells
        reason = str(error).strip().partition("\n")[0]
        raise SweepError(f"{path} is no table with commas that can be read: {reason}") from error
    # without the row numbers that pandas writes unasked
    table: pd.DataFrame = df if header[0] else df.iloc[:, 1:]
    return table


def _read_jsonl(content: bytes, path: Path) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            if (row := parse(line.strip())) is None:
                raise SweepError(f"{path}, line {number}: not a JSON object; mend or delete the line")
            rows.append(row)
    if rows and "args" in rows[0] and "run" not in rows[0]:
        raise SweepError(f"{path} is a run's own record, not a table; give the run's directory, or the sweep's")
    df: pd.DataFrame = pd.DataFrame(rows)
    return df


def _read_parquet(content: bytes, path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        df: pd.DataFrame = pd.read_parquet(io.BytesIO(content))
    except ImportError as error:
        raise SweepError(f"{path}: reading parquet takes pyarrow; pip install pyarrow, or give a .csv") from error
    except Exception as error:  # pyarrow's own, which are of many types
        reason = str(error).strip().partition("\n")[0]
        raise SweepError(f"{path} is no parquet file that can be read: {reason}") from error
    return df


def _further(given: pd.DataFrame, path: Path) -> tuple[dict[str, Any], list[str]]:
    """Take the columns of numbers that no sweep must have; tell which others there are."""
    known, further, texts = all_criteria(), {}, []
    for name in given.columns:
        if name in BASE_COLUMNS or name in EXTRA_COLUMNS:
            continue
        registered = name in known or str(name).startswith(VARIANT_PREFIX)
        if registered or _floats(given[name]) is not None:
            further[str(name)] = _typed(given[name], str(name), path)
        else:
            texts.append(str(name))
    return further, [f"columns that hold no numbers: {', '.join(texts)}"] if texts else []


def _typed(column: pd.Series[Any], name: str, path: Path) -> pd.Series[Any]:
    """Give a column the type that `load_sweep` gives it; SweepError names the first cell that has another."""
    import pandas as pd

    cells: list[Any]
    typed: pd.Series[Any]
    if name in _TEXTS:
        cells = _cells(column, name, path, str, "a text", optional=name == "checkpoint")
        typed = pd.Series(cells, dtype=object) if name == "checkpoint" else pd.Series(cells)
    elif name in ("done", "degenerate"):
        cells = _cells(column, name, path, _as_boolean, "true or false", optional=True)
        typed = pd.Series(cells, dtype="boolean")
        typed = typed.fillna(True).astype(bool) if name == "done" else typed
    elif name in _WHOLE:
        least = _WHOLE[name]
        what = f"a whole number from {least}"
        typed = pd.Series(
            _cells(column, name, path, lambda v: _as_whole(v, least), what, optional=False), dtype="int64"
        )
    elif name in _ACCURACIES:
        what = "an accuracy between 0 and 1 (percent divided by 100)"
        typed = pd.Series(_cells(column, name, path, _as_accuracy, what, optional=True), dtype=float)
    elif (numbers := _floats(column)) is not None:
        typed = numbers
    else:
        typed = pd.Series(_cells(column, name, path, _as_number, "a number", optional=True), dtype=float)
    return typed


def _floats(column: pd.Series[Any]) -> pd.Series[float] | None:
    """Read a column of numbers, or of nothing; None for any other."""
    import pandas as pd

    if pd.api.types.is_bool_dtype(column):
        return None
    try:
        numbers: pd.Series[float] = column.astype(float).reset_index(drop=True)
    except (ValueError, TypeError):
        return None
    return numbers


def _cells(
    column: pd.Series[Any], name: str, path: Path, read: Callable[[Any], Any], what: str, optional: bool
) -> list[Any]:
    import pandas as pd

    cells = []
    for number, (value, empty) in enumerate(zip(column, column.isna()), start=1):
        try:
            if empty and not optional:
                raise ValueError
            cells.append((pd.NA if read is _as_boolean else None) if empty else read(value))
        except (ValueError, TypeError, OverflowError):
            held = "nothing" if empty else short(value)
            raise SweepError(f"{path}: column {name!r} holds {held} in row {number}; it must be {what}") from None
    return cells


def _as_number(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError
    return float(value)


def _as_whole(value: Any, least: int) -> int:
    number = _as_number(value)
    if number != int(number) or not least <= number < MOST_STEPS:
        raise ValueError
    return int(number)


def _as_accuracy(value: Any) -> float:
    number = _as_number(value)
    if not (0 <= number <= 1 or math.isnan(number)):
        raise ValueError
    return number


def _as_boolean(value: Any) -> bool:
    if (said := str(value).strip().lower()) not in _BOOLEANS:
        raise ValueError
    return _BOOLEANS[said]


def _name_envs(df: pd.DataFrame) -> None:
    """Add what the rows of a run tell of its test envs, where the table does not say it."""
    if "test_envs" not in df:
        named = df.groupby("run")["test_env"].agg(lambda envs: ",".join(map(str, sorted(set(envs)))))
        df["test_envs"] = df["run"].map(named)
    if "n_test_envs" not in df:
        df["n_test_envs"] = df["test_envs"].str.count(",") + 1
    if "n_envs" not in df:
        highest = df.groupby("dataset")["test_env"].transform("max") + 1
        df["n_envs"] = highest.where(highest > df["n_test_envs"], df["n_test_envs"] + 1)


def _check_rows(df: pd.DataFrame, path: Path) -> None:
    """Refuse rows that would count twice, and runs that are several."""
    for name in _OF_A_RUN:
        values = df.groupby("run")[name].nunique()
        if len(several := values[values > 1]):
            run = several.index[0]
            held = ", ".join(map(str, df.loc[df["run"] == run, name].unique()[:3]))
            raise SweepError(
                f"{path}: run {run!r} has several values of {name} ({held}); give each run a name of its own"
            )
    key = ["run", "step", "candidate", "test_env"]
    if (twice := df.duplicated(key)).any():
        row = df[twice].iloc[0]
        raise SweepError(
            f"{path}: run {row['run']!r}, step {row['step']}, test env {row['test_env']} has two rows; keep one, "
            "tell test envs apart by a column test_env, and runs by their names"
        )
