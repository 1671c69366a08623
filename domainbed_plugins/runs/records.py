"""A run's records, as all commands read them, and the files in which values measured afterwards are kept."""

from __future__ import annotations

import json
import os
import secrets
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from domainbed_plugins.runs import paths
from domainbed_plugins.runs.lock import changing
from nacme.criteria.registry import recorded_names
from nacme.errors import ConfigError, NacmeError, NacmeWarning
from nacme.records.lines import Faults, read_lines
from nacme.records.load import run_names
from nacme.records.run import read_run
from nacme.system import files


@dataclass(frozen=True)
class Records:
    """What a run's files say.

    Attributes
    ----------
    by_step : dict of int to dict
        The records that `nacme.load_sweep` makes rows of, in order of their steps, each with what was added to it.
    faults : list of str
        What could not be read, with file, line and reason.
    """

    by_step: dict[int, dict[str, Any]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    @property
    def last(self) -> dict[str, Any] | None:
        """The last step's record."""
        return self.by_step[max(self.by_step)] if self.by_step else None


def read_records(run: Path) -> Records:
    """Read a run's records, each with what ``nacme score`` and ``nacme detect`` added.

    Parameters
    ----------
    run : path

    Returns
    -------
    Records
    """
    try:
        names = frozenset(os.listdir(run))
    except OSError as error:
        return Records(faults=[f"{run} cannot be read ({error.strerror}); skipped"])
    found = read_run(str(run), run.name, names, frozenset(recorded_names()), keep=True)
    return Records(found.records, found.skipped)


def last_step(run: Path) -> int | None:
    """Tell the last step on record, whatever else the records are good for; None: there is none."""
    return max((record["step"] for _, record in read_lines(str(run / paths.RESULTS), Faults())), default=None)


def find_runs(sweep: Path, skipped: list[str]) -> list[Path]:
    """List the runs of a sweep whose files may be changed: those in it, and no link out of it.

    Parameters
    ----------
    sweep : path
        A sweep's directory, or a run's.
    skipped : list of str
        Receives a line for each run that is left alone.

    Returns
    -------
    list of path
        In the order of their names.
    """
    if not os.path.isdir(sweep):
        return []
    if os.path.lexists(sweep / paths.RESULTS):
        return [sweep]
    runs = [sweep / name for name in run_names(sweep)]
    found = []
    for run in runs:
        if not files.inside(sweep, run):
            skipped.append(f"{run} is a link out of {sweep}; left alone: give its own directory")
        elif not os.access(run, os.R_OK | os.X_OK):
            skipped.append(f"{run} cannot be read; left alone")
        elif os.path.lexists(run / paths.RESULTS):
            found.append(run)
    return found


def update(path: Path, step: int, change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """Change one step's record in a file that other processes change as well.

    Parameters
    ----------
    path : path
        Of ``nac.jsonl`` or ``ood.jsonl``. It is replaced, so that it is whole whenever it is read.
    step : int
    change : callable
        Is given the record on file, ``{}`` if there is none, and gives the new one.

    Returns
    -------
    dict
        The new record.

    Raises
    ------
    ConfigError
        If the file cannot be written.

    Warns
    -----
    NacmeWarning
        If the file holds lines that cannot be read; it is kept under another name.
    """
    try:
        with changing(path):
            faults = Faults()
            found = read_lines(str(path), faults) if os.path.lexists(path) else ()
            records = {record["step"]: record for _, record in found}
            if said := faults.texts():
                files.refuse_unusual(path)
                kept = path.with_name(f"{path.name}.damaged-{secrets.token_hex(4)}")
                os.replace(path, kept)
                warnings.warn(f"{said[0]}; the file is kept as {kept.name}", NacmeWarning, stacklevel=2)
            records[step] = {**change(records.get(step, {})), "step": step}
            lines = [files.to_json(records[key], sort_keys=True) + "\n" for key in sorted(records)]
            files.replace(path, lambda file: file.write("".join(lines).encode()))
            return records[step]
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}; work on a copy of the sweep") from error
    except ConfigError:
        raise
    except NacmeError as error:
        raise ConfigError(f"{error}; else work on a copy of the sweep") from error


class Ledger:
    """The ``nac.jsonl`` of one run: what was measured afterwards, and what was asked for then.

    Parameters
    ----------
    run : path
        The run's directory.
    asked : dict
        The settings, as JSON, that a step must have on record to be done.
    """

    def __init__(self, run: Path, asked: Mapping[str, Any]) -> None:
        self._path = run / paths.ADDED
        self._asked = json.loads(json.dumps(asked))
        found = read_lines(str(self._path), Faults()) if os.path.lexists(self._path) else ()
        self._records = {record["step"]: record for _, record in found}

    def steps(self) -> list[int]:
        """The steps that are written down."""
        return sorted(self._records)

    def record(self, step: int) -> dict[str, Any]:
        """What is written down of a step; empty for nothing."""
        return self._records.get(step, {})

    def measured(self) -> dict[str, Any]:
        """What the ``nac`` object of any step says; empty where nothing is measured."""
        objects = (record.get("nac") for record in self._records.values())
        return next((nac for nac in objects if isinstance(nac, dict) and nac.get("asked")), {})

    def add(self, step: int, record: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Write down what was measured at a step, beside what is on record for it.

        Parameters
        ----------
        step : int
        record : mapping
        overwrite : bool
            Whether to forget what is on record.

        Raises
        ------
        ConfigError
            If the file cannot be written.
        """

        def put(before: dict[str, Any]) -> dict[str, Any]:
            return self._beside({} if overwrite else before, record)

        self._records[step] = update(self._path, step, put)

    def update(self, values: Mapping[int, Mapping[str, Any]]) -> None:
        """Add values to steps that are written down already.

        Parameters
        ----------
        values : mapping of int to mapping
            By step, values by key.

        Raises
        ------
        ConfigError
            If the file cannot be written.
        """
        for step, added in values.items():

            def put(before: dict[str, Any], added: Mapping[str, Any] = added) -> dict[str, Any]:
                return {**before, **added}

            self._records[step] = update(self._path, step, put)

    def _beside(self, before: dict[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
        nac, earlier, asked = record["nac"], before.get("nac"), self._asked
        if not isinstance(earlier, dict):
            return {**before, **record, "nac": {**nac, "asked": asked}}
        stored = earlier.get("asked")
        if isinstance(stored, dict) and _same_measurement(stored, asked):
            asked = {
                **asked,
                "grid": [*asked["grid"], *(one for one in _items(stored["grid"]) if one not in asked["grid"])],
                "criteria": _both(stored["criteria"], asked["criteria"]),
                "target_unlabeled": bool(asked["target_unlabeled"] or stored["target_unlabeled"]),
            }
        grid = earlier.get("grid")
        settings = {**(grid if isinstance(grid, dict) else {}), **nac.get("grid", {})}
        return {**before, **record, "nac": {**nac, "grid": settings, "asked": asked}}


def _same_measurement(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    """Whether all is equal but what can be added to one another."""
    added = {"grid", "criteria", "target_unlabeled"}
    return added <= stored.keys() and all(
        stored.get(key) == asked.get(key) for key in (stored.keys() | asked.keys()) - added
    )


def _items(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _both(stored: object, asked: list[str] | None) -> list[str] | None:
    """Name the criteria of two requests; None, as in a request, for all that take no further pass."""
    if not isinstance(stored, list) or asked is None:
        return None
    return sorted({*(name for name in stored if isinstance(name, str)), *asked})
