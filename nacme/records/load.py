"""Reading the records of a sweep into one table: ``results.jsonl``, with ``nac.jsonl`` and ``ood.jsonl``."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nacme.candidates import FOLDER, RAW, of_kinds
from nacme.errors import NacmeWarning, SweepError
from nacme.records.run import ADDED, ITSELF, LAST_MODEL, RESULTS, STEP_MODEL
from nacme.records.tidy import BASE_COLUMNS, EXTRA_COLUMNS, is_table, read_tidy
from nacme.settings import FEW_BINS, FEW_FULL_BINS

if TYPE_CHECKING:
    import pandas as pd

    from nacme.records.table import Facts, Table

#: A smaller sweep is read in less than a second, and is spared the cache's file.
CACHE_FROM = 500
#: A smaller sweep is read sooner than another process has started.
PARALLEL_FROM = 3000
MOST_WORKERS = 8


def load_sweep(path: str | os.PathLike[str], *, cache: bool = True, strict: bool = False) -> pd.DataFrame:
    """Read every record of a sweep.

    Parameters
    ----------
    path : path-like
        A sweep directory (run directories directly inside it), a single run directory, or a tidy table
        (``.csv``, ``.parquet``, ``.jsonl``) with these columns: see `nacme.records.tidy.read_tidy`.
    cache : bool
        Whether a sweep of many runs may keep what was read in a file ``.nacme_cache.npz`` beside them, which
        serves until one of its records or saved models changes. A directory that cannot be written to
        is read anew each time.
    strict : bool
        Whether to refuse a sweep with any record that cannot be read.

    Returns
    -------
    pandas.DataFrame
        One row per (checkpoint, test env), by run, test env and step. Columns:

        ``run``
            name of the run directory
        ``dataset``, ``algorithm``, ``trial_seed``, ``hparams_seed``, ``seed``
            from the record's ``args``
        ``test_env``, ``test_envs``, ``n_test_envs``, ``n_envs``
            this row's test env, all of the run's (``"0,2"``), how many those are, how many envs there are
        ``step``
            of the checkpoint; of a candidate across runs, the last of its members'
        ``candidate``
            ``"raw"`` for the run's own checkpoints; ``"sma"`` or ``"ema"`` for averages along it;
            ``"soup:uniform"``, ``"ensemble:all"`` and the like for what ``nacme average`` made, whose ``run`` is
            ``"candidates/..."`` and whose ``hparams_seed`` is -1 where it was made from several runs
        ``test_acc``, ``test_out_acc``, ``val_acc``, ``val_acc_worst``
            ``env{t}_in_acc`` and ``env{t}_out_acc`` of the row's test env ``t``; the mean, and the least, of
            ``env{i}_out_acc`` over the envs that are no test env of the run
        ``checkpoint``
            path of the saved model, or None
        ``done``
            whether the run finished
        ``nac_me``, ``val_loss``, ...
            every recorded criterion as float, NaN where null or missing; no column if no record holds it.
            Criteria are the registered ones and the keys that the records' own ``nac.grid`` names
        ``auroc_covariate_nacue``, ...
            what ``nacme detect`` found: ``auroc``, ``aupr`` and ``fpr95``, by shift and detector
        ``occupied_bins``, ``degenerate``, ``full_bins``
            from the record's ``nac`` object; no column if no record holds them
        ``networks``
            how many networks the candidate takes to predict; no column if there are no candidates across runs

        ``attrs["path"]`` is the path, ``attrs["exclusions"]`` a list of what was left out and why.

    Raises
    ------
    SweepError
        If the directory does not exist, cannot be read or holds no records; with `strict`, for the first
        record that cannot be read.

    Warns
    -----
    NacmeWarning
        For lines that are not a whole record (the rest of their file is kept; one warning for each file and
        reason), for runs that recorded a step twice (the last record counts), for runs that are copies of others
        (left out), for coverage measured with several settings in one sweep, for a cache that is broken.

    Notes
    -----
    Every record is either read, or named with its file, line and reason. What is wrong with one run never changes
    the rows of another.
    """
    from nacme.criteria.registry import recorded_names
    from nacme.records import cache as sweep_cache
    from nacme.records.table import read_candidates

    sweep = Path(path)
    if is_table(sweep):
        return read_tidy(sweep)
    if not os.path.isdir(sweep):
        raise SweepError(
            f"{sweep} is not a directory; give a sweep directory, a single run directory, or a table (.csv, "
            ".parquet or .jsonl)"
        )
    known = frozenset(recorded_names()).difference(BASE_COLUMNS)
    table = None
    if os.path.isfile(sweep / RESULTS):
        names, cached = ["."], False
    else:
        names = run_names(sweep)
        cached = cache and len(names) >= CACHE_FROM
    if cached:
        state = sweep_cache.signature(sweep, names, known)
        table = sweep_cache.load(sweep, state)
    if table is None:
        table = _read(sweep, names, known)
        if cached:
            sweep_cache.save(sweep, state, table)
    if made := candidate_names(sweep):
        table = table.join([table, read_candidates(str(sweep), made, known)])
    if not len(table.lengths) and not table.facts["empty"]:
        raise SweepError(
            f"{sweep} holds no runs: neither it nor a directory in it has a {RESULTS}; give the directory that "
            "was the sweep's or the run's --output_dir"
        )
    if strict and (faults := table.facts["skipped"]):
        more = f", and {len(faults) - 1} further faults" if len(faults) > 1 else ""
        raise SweepError(f"{faults[0]}{more}; mend or move it, or leave --strict out")
    left_out, kept = _alarms(table.facts, sweep)
    df = _frame(table, sweep) if len(table.lengths) else None
    if df is not None:
        df, copied, same = _without_copies(df, table)
        left_out, kept = [*left_out, *copied], [*kept, *same]
    for alarm in (*left_out, *kept):
        warnings.warn(alarm, NacmeWarning, stacklevel=2)
    if df is None:
        raise SweepError(
            f"{sweep} holds no record, though it has runs; train them again, or look at the warnings above"
        )
    df.attrs["path"] = str(sweep)
    df.attrs["exclusions"] = [*_exclusions(table.facts), *left_out]
    return df


def run_names(sweep: Path) -> list[str]:
    """Name the directories in a sweep that may be runs, in order; hidden ones are not.

    Raises
    ------
    SweepError
        If the sweep cannot be read.
    """

    def is_run(entry: os.DirEntry[str]) -> bool:
        try:
            return entry.is_dir()
        except OSError:  # a loop of links, say: reading it will tell
            return True

    try:
        with os.scandir(sweep) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and is_run(entry))
    except OSError as error:
        raise SweepError(f"{sweep} cannot be read: {error.strerror}") from error
    return [name for name in names if name != FOLDER or os.path.isfile(sweep / FOLDER / RESULTS)]


def candidate_names(sweep: Path) -> list[str]:
    """Name the candidates across the runs of a sweep, in order; there may be none."""
    try:
        with os.scandir(sweep / FOLDER) as entries:
            return sorted(entry.name for entry in entries if entry.name.endswith(".json"))
    except OSError:
        return []


def degenerate_shares(df: pd.DataFrame) -> dict[str, float]:
    """Say where coverage only counts samples, and why.

    Parameters
    ----------
    df : pandas.DataFrame
        As `load_sweep` returns it.

    Returns
    -------
    dict of str to float
        By fault, in words: the share of the checkpoints, among those that were measured, that have it. Bins that
        are hardly ever full are named where most checkpoints have none.
    """
    if "degenerate" not in df:
        return {}
    measured = df.dropna(subset=["degenerate"])
    few = measured["degenerate"].astype(bool)
    if {"occupied_bins", "full_bins"} <= {*measured}:
        few &= ~((measured["full_bins"] < FEW_FULL_BINS) & (measured["occupied_bins"] >= FEW_BINS))
    shares = {
        "nearly every state falls in one or two bins": float(few.mean()) if len(few) else 0.0,
        "hardly a bin is full": share if (share := unfilled_share(df)) > 0.5 else 0.0,
    }
    return {fault: share for fault, share in shares.items() if share > 0}


def unfilled_share(df: pd.DataFrame) -> float:
    """Share of the checkpoints at which no more than one neuron in ten has a full bin.

    Parameters
    ----------
    df : pandas.DataFrame
        As `load_sweep` returns it.

    Returns
    -------
    float
        In [0, 1]; 0 where the records do not say.
    """
    if "full_bins" not in df or df["full_bins"].isna().all():
        return 0.0
    return float((df["full_bins"].dropna() < FEW_FULL_BINS).mean())


def _read(sweep: Path, names: Sequence[str], known: frozenset[str]) -> Table:
    """Read the directories of those names, in several processes where they are many."""
    from nacme.records.table import read_runs
    from nacme.records.worker import read_in_parallel

    workers = min(MOST_WORKERS, os.cpu_count() or 1)
    if len(names) >= PARALLEL_FROM and workers > 1:
        return read_in_parallel(str(sweep), names, known, workers)
    return read_runs(str(sweep), names, known)


def _exclusions(facts: Facts) -> list[str]:
    """Say what was left out, and why."""
    said = []
    for kind, many, what in (
        ("bare", ("directory", "directories"), f"without {RESULTS}"),
        ("empty", ("run", "runs"), "without a readable record"),
        ("unmatched", ("run", "runs"), f"with lines of {ADDED} for steps that {RESULTS} does not have"),
    ):
        if names := facts[kind]:
            said.append(f"{len(names)} {many[len(names) > 1]} {what}: {_some(names)}")
    return said


def _alarms(facts: Facts, sweep: Path) -> tuple[list[str], list[str]]:
    """Say what deserves a warning: of what was left out, and of what was kept."""
    left_out = list(facts["skipped"])
    if names := facts["restarted"]:
        runs = "run" if len(names) == 1 else "runs"
        left_out.append(
            f"{len(names)} {runs} recorded a step more than once (restarted by appending); the last record of "
            f"each step counts: {_some(names)}"
        )
    kept = []
    if len(settings := facts["settings"]) > 1:
        kept.append(
            f"coverage in {sweep} was measured with {len(settings)} settings, whose nac_me do not compare "
            f"across runs: {'; '.join(settings[:5])}; keep each setting in a sweep of its own"
        )
    where: dict[str, list[str]] = {}
    for text in facts["layers"]:
        runs, _, layers = text.partition(": ")
        where.setdefault(runs, []).append(layers)
    if mixed := {runs: layers for runs, layers in where.items() if len(layers) > 1}:
        named = "; ".join(f"{runs} at {' and at '.join(layers)}" for runs, layers in mixed.items())
        kept.append(
            f"coverage in {sweep} was measured at different layers, whose nac_me do not compare: {named}; keep "
            "the runs of each layer in a sweep of its own"
        )
    return left_out, kept


def _without_copies(df: pd.DataFrame, table: Table) -> tuple[pd.DataFrame, list[str], list[str]]:
    """Leave out runs that are copies of others; say which, and what else is one training."""
    from nacme.records.duplicates import find_copies

    own = table.heads["candidate"] == RAW
    copies, same = find_copies(of_kinds(df, [RAW]), table.heads["run"][own], table.heads["args"][own])
    left_out = []
    if count := len(copies):
        df = df[~df["run"].isin(copies)].reset_index(drop=True)
        said = "1 run is a copy of another" if count == 1 else f"{count} runs are copies of others"
        named = _some([f"{copy} of {run}" for copy, run in sorted(copies.items())])
        left_out.append(f"{said} (same args, same accuracies), left out so that each counts once: {named}")
    kept = [
        "runs of the same training (same args, same accuracies) with other criteria, which are not independent: "
        f"{_some(runs)}; keep one of them"
        for runs in same
    ]
    return df, left_out, kept


def _some(names: Sequence[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _frame(table: Table, sweep: Path) -> pd.DataFrame:
    """Build the table that `load_sweep` promises."""
    import numpy as np
    import pandas as pd

    block = np.repeat(np.arange(len(table.lengths)), table.lengths)
    heads = pd.DataFrame({**table.heads}).take(block).reset_index(drop=True)
    df: pd.DataFrame = pd.concat([heads, pd.DataFrame({**table.columns})], axis=1)  # a grid has many columns
    df["step"] = df["step"].astype(np.int64)
    checkpoint = np.full(len(df), None, object)
    single = os.path.isfile(sweep / RESULTS)
    for kind, pattern in ((STEP_MODEL, "model_step{}{}.pkl"), (LAST_MODEL, "model{1}.pkl"), (ITSELF, "")):
        rows = np.flatnonzero(table.columns["model"] == kind)
        checkpoint[rows] = [
            os.path.join(sweep, f"{run}.json")
            if kind == ITSELF
            else os.path.join(
                sweep, "" if single else run, pattern.format(step, "" if candidate == RAW else f"_{candidate}")
            )
            for run, step, candidate in zip(*(df[name].iloc[rows] for name in ("run", "step", "candidate")))
        ]
    # As a series of objects: pandas would turn the Nones among strings into NaN.
    df["checkpoint"] = pd.Series(checkpoint, dtype=object)
    if "degenerate" in df:
        df["degenerate"] = df["degenerate"].astype("boolean")
    if "networks" in df:
        df["networks"] = df["networks"].fillna(1).astype(np.int64)
    extra = [name for name in EXTRA_COLUMNS if name in df]
    criteria = sorted(set(table.columns) - {*BASE_COLUMNS, "model", *extra})
    df = df[[*BASE_COLUMNS, *criteria, *extra]]
    return df
