"""Reading the records of a sweep into one table: DomainBed's ``results.jsonl``, and ``nac.jsonl`` beside it."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nacme.errors import NacmeWarning, SweepError

if TYPE_CHECKING:
    import pandas as pd

RESULTS = "results.jsonl"
ADDED = "nac.jsonl"

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
    "test_acc",
    "test_out_acc",
    "val_acc",
    "checkpoint",
    "done",
)
#: What the ``nac`` object says of how coverage was measured; values measured differently do not compare.
_SETTINGS = ("alpha", "bins", "fill", "split", "spacing", "correct_only")


@dataclass
class _Run:
    """What one run directory gave."""

    name: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # lines that are not whole records, and why
    restarted: bool = False
    unmatched: int = 0  # lines of nac.jsonl whose step results.jsonl does not have
    settings: set[str] = field(default_factory=set)


def load_sweep(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read every record of a sweep.

    Parameters
    ----------
    path : path-like
        A sweep directory (run directories directly inside it), or a single run directory.

    Returns
    -------
    pandas.DataFrame
        One row per (checkpoint, test env), sorted by run, step and test env. Columns:

        ``run``
            name of the run directory
        ``dataset``, ``algorithm``, ``trial_seed``, ``hparams_seed``, ``seed``
            from the record's ``args``
        ``test_env``, ``test_envs``, ``n_test_envs``, ``n_envs``
            this row's test env, all of the run's (``"0,2"``), how many those are, how many envs there are
        ``step``
            of the checkpoint
        ``test_acc``, ``test_out_acc``, ``val_acc``
            ``env{t}_in_acc`` and ``env{t}_out_acc`` of the row's test env ``t``; the mean of
            ``env{i}_out_acc`` over the envs that are no test env of the run
        ``checkpoint``
            path of the saved model, or None
        ``done``
            whether the run finished
        ``nac_me``, ``val_loss``, ...
            every recorded criterion as float, NaN where null or missing; no column if no record holds it.
            Criteria are the registered ones and the keys that the records' own ``nac.grid`` names
        ``occupied_bins``, ``degenerate``
            from the record's ``nac`` object; no column if no record holds them

        ``attrs["path"]`` is the path, ``attrs["exclusions"]`` a list of what was left out and why.

    Raises
    ------
    SweepError
        If the directory does not exist or holds no records.

    Warns
    -----
    NacmeWarning
        For each line that is not a whole record (the rest of its file is kept), for runs that recorded a
        step twice (the last record counts), for coverage measured with several settings in one sweep.
    """
    from nacme.criteria import recorded_names

    sweep = Path(path)
    directories, bare = _find_runs(sweep)
    known = frozenset(recorded_names())
    runs = [_read_run(directory, known) for directory in directories]
    exclusions, alarms = _summarise(runs, bare)
    for alarm in alarms:
        warnings.warn(alarm, NacmeWarning, stacklevel=2)
    if not any(run.rows for run in runs):
        raise SweepError(f"{directories[0] / RESULTS} holds no record, nor do the other runs; train them again")
    df = _frame(row for run in runs for row in run.rows)
    df.attrs["path"] = str(sweep)
    df.attrs["exclusions"] = exclusions
    return df


def _find_runs(sweep: Path) -> tuple[list[Path], list[str]]:
    """Return the run directories, and the names of the directories that hold no records."""
    if not sweep.is_dir():
        raise SweepError(f"{sweep} is not a directory; give a sweep directory or a single run directory")
    if (sweep / RESULTS).is_file():
        return [sweep], []
    inside = sorted(d for d in sweep.iterdir() if d.is_dir() and not d.name.startswith("."))
    runs = [d for d in inside if (d / RESULTS).is_file()]
    if not runs:
        raise SweepError(
            f"{sweep} holds no runs: neither it nor a directory in it has a {RESULTS}; give the directory that "
            "was the sweep's or the run's --output_dir"
        )
    return runs, [d.name for d in inside if not (d / RESULTS).is_file()]


def _summarise(runs: Sequence[_Run], bare: Sequence[str]) -> tuple[list[str], list[str]]:
    """Say what was left out, and what of it (and of what was kept) deserves a warning."""
    exclusions: list[str] = []
    if bare:
        exclusions.append(f"{_count(bare, 'directory', 'directories')} without {RESULTS}: {_some(bare)}")
    if empty := [run.name for run in runs if not run.rows]:
        exclusions.append(f"{_count(empty, 'run')} without a readable record: {_some(empty)}")
    if unmatched := [run.name for run in runs if run.unmatched]:
        exclusions.append(
            f"lines of {ADDED} for steps that {RESULTS} does not have, in {_count(unmatched, 'run')}: "
            f"{_some(unmatched)}"
        )
    alarms = [line for run in runs for line in run.skipped]
    if restarted := [run.name for run in runs if run.restarted]:
        alarms.append(
            f"{_count(restarted, 'run')} recorded a step more than once (restarted by appending); the last "
            f"record of each step counts: {_some(restarted)}"
        )
    exclusions += alarms
    settings = sorted(set().union(*(run.settings for run in runs)))
    if len(settings) > 1:
        alarms.append(
            f"coverage was measured with {len(settings)} settings, whose nac_me do not compare across runs: "
            f"{_some(settings)}; keep each setting in a sweep of its own"
        )
    return exclusions, alarms


def _count(things: Sequence[str], one: str, many: str | None = None) -> str:
    return f"{len(things)} {one if len(things) == 1 else many or one + 's'}"


def _some(names: Sequence[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _read_run(directory: Path, known: frozenset[str]) -> _Run:
    """Read one run; ``known`` are the names of recorded criteria."""
    run = _Run(name=directory.name or directory.resolve().name)
    records: dict[int, tuple[int, dict[str, Any]]] = {}
    for number, record in _read_lines(directory, RESULTS, run):
        step = record["step"]
        run.restarted |= step in records
        records[step] = number, record
    added: dict[int, dict[str, Any]] = {}
    if (directory / ADDED).is_file():
        added = {record["step"]: record for _, record in _read_lines(directory, ADDED, run)}
        run.unmatched = len(added.keys() - records.keys())
    files = set(os.listdir(directory))
    last = max(records, default=None)
    for step in sorted(records):
        number, record = records[step]
        model = f"model_step{step}.pkl"
        if model not in files:
            model = "model.pkl" if step == last and "model.pkl" in files else ""
        try:
            run.rows += _rows(
                {**added.get(step, {}), **record},
                known,
                run=run,
                checkpoint=str(directory / model) if model else None,
                done="done" in files,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            fault = f"key {error} is missing" if isinstance(error, KeyError) else str(error)
            run.skipped.append(f"{directory / RESULTS}, line {number}: not a DomainBed record ({fault}); skipped")
    return run


def _read_lines(directory: Path, name: str, run: _Run) -> Iterable[tuple[int, dict[str, Any]]]:
    """Yield (line number, record) of one file; lines that are not a record with a step are noted in ``run``."""
    lines = (directory / name).read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            record["step"] = int(record["step"])
        except (ValueError, TypeError, KeyError):
            # A line that is whole ends in a newline, so something would follow it in the split.
            fault = "truncated" if number == len(lines) else "corrupt"
            run.skipped.append(f"{directory / name}, line {number}: {fault} record; skipped, the rest is kept")
            continue
        yield number, record


def _rows(
    record: dict[str, Any], known: frozenset[str], *, run: _Run, checkpoint: str | None, done: bool
) -> list[dict[str, Any]]:
    """Turn one record into one row per test env."""
    args = record["args"]
    test_envs = sorted(args["test_envs"])
    n_envs = 0
    while f"env{n_envs}_out_acc" in record:
        n_envs += 1
    val_accs = [_number(record[f"env{i}_out_acc"]) for i in range(n_envs) if i not in test_envs]
    shared: dict[str, Any] = {
        "run": run.name,
        "dataset": args["dataset"],
        "algorithm": args["algorithm"],
        "test_envs": ",".join(map(str, test_envs)),
        "n_test_envs": len(test_envs),
        "n_envs": n_envs,
        "trial_seed": int(args["trial_seed"]),
        "hparams_seed": int(args["hparams_seed"]),
        "seed": int(args["seed"]),
        "step": record["step"],
        "val_acc": sum(val_accs) / len(val_accs) if val_accs else float("nan"),
        "checkpoint": checkpoint,
        "done": done,
    }
    nac = record.get("nac") or {}
    for key in known.union(nac.get("grid") or ()).intersection(record).difference(BASE_COLUMNS):
        shared[key] = _number(record[key])
    if nac:
        run.settings.add(json.dumps({key: nac[key] for key in _SETTINGS if key in nac}))
        for key in ("occupied_bins", "degenerate"):
            if key in nac:
                shared[key] = nac[key]
    return [
        {
            **shared,
            "test_env": int(t),
            "test_acc": _number(record[f"env{t}_in_acc"]),
            "test_out_acc": _number(record[f"env{t}_out_acc"]),
        }
        for t in test_envs
    ]


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _frame(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Build the table from rows, with the dtypes that `load_sweep` promises."""
    import pandas as pd

    df: pd.DataFrame = pd.DataFrame.from_records(list(rows))
    # Without this, pandas turns the Nones of a column of strings into NaN.
    df["checkpoint"] = df["checkpoint"].astype(object).where(df["checkpoint"].notna(), None)
    criteria = sorted(set(df.columns) - {*BASE_COLUMNS, "occupied_bins", "degenerate"})
    for name in [*criteria, "occupied_bins"]:
        if name in df:
            df[name] = df[name].astype(float)
    if "degenerate" in df:
        df["degenerate"] = df["degenerate"].astype("boolean")
    extra = [name for name in ("occupied_bins", "degenerate") if name in df]
    df = df[[*BASE_COLUMNS, *criteria, *extra]]
    return df
