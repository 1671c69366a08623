"""Locks: a run is trained by one process, and a file that several write is changed by one at a time.

A POSIX lock, not flock: children do not inherit it, it works across machines, and it goes with the process,
however that ends. Some file systems have none. There a second file is the lock: made where there is none, touched
every few seconds by whoever holds it, and taken over when its process is gone or has not touched it for minutes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from domainbed_plugins.runs.paths import DONE, LOCK
from nacme.errors import NacmeError
from nacme.system import files

#: Seconds that a run waits for its lock: looking at a lock takes it for a moment.
PATIENCE = 2.0
#: Seconds between two notes of the step in the lock file.
BEAT = 1.0
#: Seconds between two touches of a lock that is a file, and without one until it counts as left behind.
TOUCH, STALE = 10.0, 180.0
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class BusyError(NacmeError):
    """A run that another process is training."""


class Lock:
    """A lock that this process holds.

    Attributes
    ----------
    path : path
    """

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self._handle = handle
        self._noted = 0.0
        self._touching: _Touching | None = None

    def note(self, step: int, n_steps: int, rate: float) -> None:
        """Write down how far the run is, not more often than once a second.

        Raises
        ------
        BusyError
            If another process has taken the lock over, as after a long sleep of this one.
        """
        if time.monotonic() - self._noted < BEAT:
            return
        self._noted = time.monotonic()
        if self._touching and self._touching.lost:
            raise BusyError(f"{self.path.parent} has been taken over by {_holder(self.path)}; it goes on there")
        self._write({"step": step, "steps": n_steps, "rate": round(rate, 3)})

    def take(self) -> bool:
        """Try to get it; False if another process has it."""
        if _fresh(_held(self.path)):
            return False
        try:
            fcntl.lockf(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            if error.errno not in _NO_LOCKS:
                raise
            self._touching = _Touching.begin(_held(self.path))
            return self._touching is not None
        return True

    def release(self) -> None:
        """Let go of it."""
        if self._touching:
            self._touching.end()
        os.close(self._handle)

    def _write(self, content: dict[str, Any]) -> None:
        note = {"host": socket.gethostname(), "pid": os.getpid(), **content}
        with contextlib.suppress(OSError):  # for display only
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, json.dumps(note).encode(), 0)


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
    NacmeError
        If the directory cannot be written.
    """
    path = directory / LOCK
    with _taken(path, f"{directory} is being trained by {{}}; wait for it, or stop it", PATIENCE) as lock:
        lock._write({})
        yield lock
        if (directory / DONE).exists():
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def changing(path: Path, patience: float = 120.0) -> Iterator[None]:
    """Be the only process that changes a file.

    Parameters
    ----------
    path : path
        Of the file; a lock file lies beside it meanwhile.
    patience : float
        Seconds to wait for others.

    Raises
    ------
    NacmeError
        If it takes longer, or the directory cannot be written.
    """
    beside = path.with_name(f".{path.name}.lock")
    with _taken(beside, f"{path} is being changed by {{}}; wait for it, or stop it", patience) as lock:
        lock._write({})
        yield
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def _taken(path: Path, busy: str, patience: float) -> Iterator[Lock]:
    deadline = time.monotonic() + patience
    while True:
        try:
            lock = Lock(path, files.open_regular(path, os.O_RDWR | os.O_CREAT))
        except OSError as error:
            raise NacmeError(f"{path} cannot be locked: {error.strerror}") from error
        try:
            # who held it before may have deleted the file that is open here
            if lock.take() and _same_file(path, lock._handle):
                break
        except OSError as error:
            lock.release()
            raise NacmeError(f"{path} cannot be locked: {error.strerror}") from error
        lock.release()
        if time.monotonic() > deadline:
            raise BusyError(busy.format(_holder(path)))
        time.sleep(0.05)
    try:
        yield lock
    finally:
        lock.release()


def _same_file(path: Path, handle: int) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samestat(os.lstat(path), os.fstat(handle))
    return False


@contextlib.contextmanager
def shared_lock(path: Path) -> Iterator[None]:
    """Hold a lock that many processes may hold at a time, for `lock_note` to see; none where there are no locks.

    Parameters
    ----------
    path : path
        Of a file that exists.
    """
    handle = files.open_regular(path)
    try:
        with contextlib.suppress(OSError):
            fcntl.lockf(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


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
        try:
            handle, kind = files.open_regular(path, os.O_RDWR), fcntl.LOCK_EX
        except PermissionError:  # another user's
            handle, kind = files.open_regular(path), fcntl.LOCK_SH
    except OSError:
        return None
    try:
        fcntl.lockf(handle, kind | fcntl.LOCK_NB)
        free = not _fresh(_held(path))
    except OSError as error:
        free = error.errno not in (errno.EACCES, errno.EAGAIN) and not _fresh(_held(path))
    finally:
        os.close(handle)
    return None if free else _parse(path)


def _parse(path: Path) -> dict[str, Any]:
    try:
        note = json.loads(files.read_bytes(path))
    except (OSError, ValueError, RecursionError):  # read while it was being written
        return {}
    if not isinstance(note, dict):
        return {}
    kinds: dict[str, tuple[type, ...]] = {"host": (str,), "rate": (int, float)}
    known = ("host", "pid", "step", "steps", "rate")
    return {key: note[key] for key in known if isinstance(note.get(key), kinds.get(key, (int,)))}


def _holder(path: Path) -> str:
    note = _parse(path)
    return f"process {note.get('pid', '?')} on {note.get('host', '?')}"


def _held(path: Path) -> Path:
    """Name the file that is the lock where the file system has none."""
    return path.with_name(f"{path.name}.held")


def _fresh(held: Path) -> bool:
    """Whether a lock that is a file is held by a process that lives."""
    try:
        age = time.time() - os.lstat(held).st_mtime
        host, _, process = files.read_bytes(held).decode(errors="replace").partition(" ")
    except OSError:
        return False
    number = process.partition(" ")[0]
    gone = host == socket.gethostname() and number.isdigit() and not _lives(int(number[:9]))
    return age < STALE and not gone


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


class _Touching:
    """Holds a lock that is a file, by touching it from a thread."""

    def __init__(self, held: Path, token: bytes) -> None:
        self.lost = False
        self._held, self._token = held, token
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._touch, daemon=True)
        self._thread.start()

    @classmethod
    def begin(cls, held: Path) -> _Touching | None:
        """Make the file; None if another process was faster."""
        token = f"{socket.gethostname()} {os.getpid()} {secrets.token_hex(8)}".encode()
        if os.path.lexists(held):
            # whoever moves a stale file away first may make a new one
            left = held.with_name(f"{held.name}.{secrets.token_hex(8)}")
            with contextlib.suppress(OSError):
                os.rename(held, left)
                if _fresh(left):  # another process had just done so
                    with contextlib.suppress(OSError):
                        os.link(left, held)
                    os.unlink(left)
                    return None
                os.unlink(left)
        try:
            handle = os.open(held, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except FileExistsError:
            return None
        with os.fdopen(handle, "wb") as file:
            file.write(token)
        return cls(held, token)

    def _touch(self) -> None:
        while not self._ended.wait(TOUCH):
            try:
                self.lost = files.read_bytes(self._held) != self._token
                if not self.lost:
                    os.utime(self._held)
            except FileNotFoundError:
                self.lost = True
            except OSError:  # the file system stumbles; the next touch tells
                continue

    def end(self) -> None:
        """Let go."""
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            if files.read_bytes(self._held) == self._token:
                self._held.unlink()
