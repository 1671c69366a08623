"""The files of one run: its lock, its records, its saved state and the marks of its end.

A state is written before the record that belongs to it, and holds that record: whatever the moment of a crash,
going back to the state and appending its record gives every record once.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import torch

from nacme.errors import ConfigError, NacmeError

RESULTS = "results.jsonl"
STATE = "state.pt"
COVERAGE = "coverage.npz"
LOCK = ".lock"
FAILED = "failed"
DONE = "done"
#: Seconds that a run waits for its lock: looking at a lock takes it for a moment.
PATIENCE = 2.0
#: Seconds between two notes of the step in the lock file.
BEAT = 1.0
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class BusyError(NacmeError):
    """A run that another process is training."""


class Lock:
    """A run's lock, held by the process that trains it; it goes with the process, however that ends.

    Attributes
    ----------
    path : path
    """

    def __init__(self, path: Path, file: IO[str]) -> None:
        self.path = path
        self._file = file
        self._noted = 0.0

    def note(self, step: int, n_steps: int, rate: float) -> None:
        """Write down how far the run is, not more often than once a second."""
        if time.monotonic() - self._noted < BEAT:
            return
        self._noted = time.monotonic()
        self._write({"step": step, "steps": n_steps, "rate": round(rate, 3)})

    def _write(self, content: dict[str, Any]) -> None:
        note = {"host": socket.gethostname(), "pid": os.getpid(), **content}
        with contextlib.suppress(OSError):  # for display only
            self._file.seek(0)
            self._file.truncate()
            self._file.write(json.dumps(note))
            self._file.flush()


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[Lock]:
    """Hold a run's lock.

    Parameters
    ----------
    directory : path
        The run's, which exists.

    Yields
    ------
    Lock

    Raises
    ------
    BusyError
        If another process holds it.
    """
    path = directory / LOCK
    with path.open("a+") as file:
        deadline = time.monotonic() + PATIENCE
        # a POSIX lock, not flock: children do not inherit it, and it works across machines
        while not _take(file, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise BusyError(f"{directory} is being trained by {_holder(path)}; wait for it, or stop it")
            time.sleep(0.05)
        lock = Lock(path, file)
        lock._write({})
        yield lock
        if (directory / DONE).exists():
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def shared_lock(path: Path) -> Iterator[None]:
    """Hold a lock that many processes may hold at a time, for `lock_note` to see.

    Parameters
    ----------
    path : path
        Of a file that exists.
    """
    with path.open() as file:
        _take(file, fcntl.LOCK_SH)
        yield


def lock_note(path: Path) -> dict[str, Any] | None:
    """Read who holds a lock and how far it is.

    Parameters
    ----------
    path : path
        Of the lock file.

    Returns
    -------
    dict or None
        ``host``, ``pid`` and, once training, ``step``, ``steps``, ``rate`` in steps per second. None: nobody.
    """
    try:
        with path.open("r+") as file:
            return None if _take(file, fcntl.LOCK_EX) else _parse(file.read())
    except OSError:  # no such file, or not ours to lock
        return None


def _parse(text: str) -> dict[str, Any]:
    try:
        note = json.loads(text)
    except json.JSONDecodeError:  # read while it was being written
        return {}
    return note if isinstance(note, dict) else {}


def _holder(path: Path) -> str:
    note = _parse(path.read_text())
    return f"process {note.get('pid', '?')} on {note.get('host', '?')}"


def _take(file: IO[str], kind: int) -> bool:
    try:
        fcntl.lockf(file, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        # a file system without locks: the launchers' own bookkeeping has to do
    return True


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
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        # torch.save turns an OSError of its file into a RuntimeError
        temporary.unlink(missing_ok=True)
        raise _write_error(path, error) from error


def sweep_away(directory: Path) -> None:
    """Delete the half-written files that a killed process left."""
    for path in directory.glob("*.tmp"):
        path.unlink(missing_ok=True)


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
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if state["version"] != 1:
            raise ConfigError(f"{path} was written by another version of nacme; delete {directory} to start anew")
    except NacmeError:
        raise
    except Exception as error:
        raise NacmeError(f"{path} is no state of a run ({error}); delete {directory} to start anew") from error
    return state


def append_record(directory: Path, line: str) -> None:
    """Append one line to the records, in one write that has reached the disk on return.

    Parameters
    ----------
    directory : path
    line : str
        Without its newline.

    Raises
    ------
    NacmeError
        If it does not fit on the disk; the records are as they were.
    """
    path = directory / RESULTS
    data = line.encode() + b"\n"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
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


def rewind_records(directory: Path, count: int, line: str | None) -> None:
    """Bring the records to where a state is: drop later ones, repeated ones and a torn last line.

    Parameters
    ----------
    directory : path
    count : int
        Records before the state's own.
    line : str or None
        The state's own record.

    Raises
    ------
    NacmeError
        If records are missing.
    """
    path = directory / RESULTS
    content = path.read_bytes() if path.exists() else b""
    lines = content.split(b"\n")[:-1][:count]  # what follows the last newline is torn
    if len(lines) < count:
        raise NacmeError(
            f"{path} holds {len(lines)} records where the run's state says {count}; "
            f"delete {directory} to start anew"
        )
    wanted = b"".join(record + b"\n" for record in lines)
    if line is not None:
        wanted += line.encode() + b"\n"
    if wanted != content:
        write_atomically(path, lambda file: file.write(wanted))


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
        text = path.read_text(errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-count:]
