"""What training writes into a run: its records, its saved state and the marks of its end.

A state is written before the record that belongs to it, and holds that record: whatever the moment of a crash,
going back to the state and appending its record gives every record once.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import torch

from domainbed_plugins.runs.paths import FAILED, RESULTS, STATE
from nacme.errors import ConfigError, NacmeError
from nacme.records.lines import Faults, read_lines
from nacme.system import files
from nacme.system.tensors import load_tensors

STATE_KEYS = {"version", "step", "records", "line", "settings", "algorithm", "values", "streams", "generators"}
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file under a temporary name, flush it to the disk and rename it.

    Parameters
    ----------
    path : path
    write : callable
        Is given the open file.

    Raises
    ------
    NacmeError
        If the disk is full or the file cannot be written; the old file is as it was, and no other is left.
    """
    try:
        files.replace(path, write, sync=True)
    except (OSError, RuntimeError) as error:
        # torch.save turns an OSError of its file into a RuntimeError
        raise _write_error(path, error) from error


def _write_error(path: Path, error: BaseException) -> NacmeError:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(error)
    return NacmeError(f"{path} cannot be written: {reason}; free space, then start the run again: it continues")


def is_disk_full(error: OSError) -> bool:
    """Whether an error says that there is no space left."""
    return error.errno in _DISK_FULL


def save_state(directory: Path, state: dict[str, Any]) -> None:
    """Write a run's state.

    Parameters
    ----------
    directory : path
    state : dict
        Of tensors, numbers, text and containers of them. ``records`` is how many records come before the one
        that it holds as ``line``.

    Raises
    ------
    NacmeError
        See `write_atomically`.
    """
    write_atomically(directory / STATE, lambda file: torch.save(state, file))


def load_state(directory: Path) -> dict[str, Any] | None:
    """Read a run's state; nothing in it is executed.

    Parameters
    ----------
    directory : path

    Returns
    -------
    dict or None
        None: there is none.

    Raises
    ------
    NacmeError
        If the file is no state.
    """
    path = directory / STATE
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = load_tensors(path)
        if not state.keys() >= STATE_KEYS or not isinstance(state["settings"], dict):
            raise ValueError("it lacks what a run goes on from")
        if state["version"] != 1:
            raise ConfigError(f"{path} was written by another version of nacme; delete {directory} to start anew")
    except NacmeError:
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise NacmeError(f"{path} is no state of a run ({reason}); delete {directory} to start anew") from error
    return state


def append_record(directory: Path, line: str, name: str = RESULTS) -> None:
    """Append one line to the records, in one write that has reached the disk on return.

    Parameters
    ----------
    directory : path
    line : str
        Without its newline.
    name : str
        Of the file.

    Raises
    ------
    NacmeError
        If it does not fit on the disk; the records are as they were.
    """
    path = directory / name
    data = line.encode() + b"\n"
    try:
        handle = files.open_regular(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            size = os.fstat(handle).st_size
            try:
                if os.write(handle, data) < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(handle)
            except OSError:
                os.ftruncate(handle, size)
                raise
        finally:
            os.close(handle)
    except OSError as error:
        raise _write_error(path, error) from error


def rewind_records(directory: Path, count: int, own: Sequence[str], name: str = RESULTS) -> None:
    """Bring the records to where a state is: drop later ones, repeated ones and a torn last line.

    Parameters
    ----------
    directory : path
    count : int
        Records before the state's own.
    own : sequence of str
        The state's own records.
    name : str
        Of the file.

    Raises
    ------
    NacmeError
        If records are missing.
    """
    path = directory / name
    try:
        files.refuse_unusual(path)
        content = files.read_bytes(path) if path.exists() else b""
    except OSError as error:
        raise NacmeError(f"{path} cannot be read: {error.strerror}; delete {directory} to start anew") from error
    lines = content.split(b"\n")[:-1][:count]  # what follows the last newline is torn
    if len(lines) < count:
        raise NacmeError(
            f"{path} holds {len(lines)} records where the run's state says {count}; "
            f"delete {directory} to start anew"
        )
    wanted = b"".join(record + b"\n" for record in (*lines, *(line.encode() for line in own)))
    if wanted != content:
        write_atomically(path, lambda file: file.write(wanted))


def first_record(directory: Path) -> dict[str, Any]:
    """Read the first of a run's records; empty: there is none."""
    path = directory / RESULTS
    found = read_lines(str(path), Faults()) if os.path.lexists(path) else iter(())
    return next((record for _, record in found), {})


def has_records(directory: Path) -> bool:
    """Whether the run has written at least one record."""
    path = directory / RESULTS
    return path.exists() and path.stat().st_size > 0


def mark_failed(directory: Path, reason: str) -> None:
    """Write down why a run failed, for ``nacme sweep status``."""
    with contextlib.suppress(OSError, NacmeError):  # the disk may be full: the failure is reported anyway
        write_atomically(directory / FAILED, lambda file: file.write(reason.encode() + b"\n"))


def last_lines(path: Path, count: int = 5) -> list[str]:
    """Read the last lines of a text file that are not blank; none if there is no such file."""
    try:
        text = files.read_bytes(path).decode(errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-count:]
