"""A cache of what was read from a large sweep: plain arrays in one file beside the runs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import warnings
from collections.abc import Iterable
from pathlib import Path

from nacme.errors import NacmeWarning
from nacme.records.run import ADDED, AVERAGES, CONTROLS, DETECTED, FROM_NAC, HEAD, RESULTS
from nacme.records.table import Table
from nacme.system import files
from nacme.version import __version__

NAME = ".nacme_cache.npz"
#: Raised when reading changes, so that what was read before serves no longer.
FORM = 3


def signature(sweep: Path, runs: Iterable[str], known: Iterable[str]) -> str:
    """Summarise the state of a sweep's files; it changes whenever a record, a run or a saved model does.

    Sizes and times of content can be set back; numbers of inodes and times of change cannot, nor do they survive a
    copy, so that a cache that came with a sweep from elsewhere never serves.

    Parameters
    ----------
    sweep : Path
        The sweep directory.
    runs : iterable of str
        Names of the directories in it.
    known : iterable of str
        Names of the criteria looked for.

    Returns
    -------
    str
    """
    digest = hashlib.sha256(json.dumps([__version__, FORM, *HEAD, *FROM_NAC, *sorted(known)]).encode())
    for run in runs:
        # Adding or removing a file changes the directory's own time, appending to one does not.
        for name in ("", RESULTS, ADDED, CONTROLS, AVERAGES, DETECTED):
            path = f"{run}/{name}" if name else run
            try:
                state = os.stat(f"{sweep}/{path}")
                said = f"{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns} {state.st_ino}"
            except OSError as error:
                said = f"{error.errno}"
            digest.update(os.fsencode(path) + f" {said}\n".encode())
    return digest.hexdigest()


def load(sweep: Path, expected: str) -> Table | None:
    """Read the cache of a sweep.

    Parameters
    ----------
    sweep : Path
        The sweep directory.
    expected : str
        The sweep's `signature`.

    Returns
    -------
    Table or None
        None if there is no readable cache of that signature.

    Warns
    -----
    NacmeWarning
        If there is a file that is no cache.
    """
    path = sweep / NAME
    try:
        with os.fdopen(files.open_regular(path), "rb") as file:
            return Table.load(file, expected)
    except FileNotFoundError:
        return None
    except Exception as error:  # numpy and zipfile raise nearly anything
        reason = error.strerror if isinstance(error, OSError) else str(error).partition("\n")[0]
        warnings.warn(
            f"{path} is no cache of records ({reason or type(error).__name__}); the records were read",
            NacmeWarning,
            stacklevel=3,
        )
        return None


def save(sweep: Path, expected: str, table: Table) -> None:
    """Write the cache of a sweep, unless the directory cannot be written to.

    Parameters
    ----------
    sweep : Path
        The sweep directory.
    expected : str
        Its signature from *before* it was read, so that what was written meanwhile is read next time.
    table : Table
        What was read.
    """
    files.clean(sweep)
    with contextlib.suppress(OSError):
        files.replace(sweep / NAME, lambda file: table.save(file, expected))
