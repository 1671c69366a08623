"""A cache of what was read from a large sweep: plain arrays in one file beside the runs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from nacme.records.run import ADDED, DETECTED, FROM_NAC, HEAD, RESULTS
from nacme.records.table import Table
from nacme.version import __version__

NAME = ".nacme_cache.npz"


def signature(sweep: Path, runs: Iterable[str], known: Iterable[str]) -> str:
    """Summarise the state of a sweep's files; it changes whenever a record, a run or a saved model does.

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
    digest = hashlib.sha256(json.dumps([__version__, *HEAD, *FROM_NAC, *sorted(known)]).encode())
    for run in runs:
        # Adding or removing a file changes the directory's own time, appending to one does not.
        for path in (run, f"{run}/{RESULTS}", f"{run}/{ADDED}", f"{run}/{DETECTED}"):
            try:
                state = os.stat(f"{sweep}/{path}")
            except FileNotFoundError:
                digest.update(f"{path}\n".encode())
                continue
            digest.update(f"{path} {state.st_size} {state.st_mtime_ns}\n".encode())
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
    """
    try:
        return Table.load(sweep / NAME, expected)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
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
    with contextlib.suppress(OSError):
        descriptor, temporary = tempfile.mkstemp(prefix=NAME, dir=sweep)
        try:
            with os.fdopen(descriptor, "wb") as file:
                table.save(file, expected)
            os.chmod(temporary, 0o644)  # as any other file of the sweep; mkstemp's are private
            os.replace(temporary, sweep / NAME)
        except OSError:
            os.unlink(temporary)
