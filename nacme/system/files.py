"""Reading and writing files in directories that others may have filled.

Only regular files are opened, without waiting for what is no file; nothing is written through a link. What is
written appears at once, under a name of its own until then, so that a reader never meets half a file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import secrets
import socket
import stat
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

#: How the names of half-written files end; between it and the file's own name stand host, process and a number.
TEMPORARY = ".nacme.tmp"
#: Seconds after which a half-written file of another machine is taken for one that a killed process left.
STALE = 24 * 3600.0
#: Device, inode, time and size of each file that this process wrote.
_WRITTEN: set[tuple[int, int, int, int]] = set()
_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular(path: str | os.PathLike[str], flags: int = os.O_RDONLY) -> int:
    """Open a regular file, never waiting; a link is followed for reading alone.

    Parameters
    ----------
    path : path-like
    flags : int
        As for `os.open`.

    Returns
    -------
    int
        A file descriptor.

    Raises
    ------
    OSError
        If it cannot be opened, or is something else than a file; ``strerror`` says what.
    """
    writes = flags & (os.O_WRONLY | os.O_RDWR)
    try:
        handle = os.open(
            path, flags | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY | (os.O_NOFOLLOW if writes else 0), 0o666
        )
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            refuse_unusual(path, follow=not writes)
        raise
    except ValueError as error:  # a null byte in the name
        raise OSError(errno.EINVAL, str(error), str(path)) from None
    if kind := _kind(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, f"it is {kind}, not a file", str(path))
    return handle


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Read a regular file; OSError as `open_regular` raises it."""
    with os.fdopen(open_regular(path), "rb") as file:
        return file.read()


def read_arrays(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read an ``.npz`` file of plain arrays.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    dict of str to ndarray

    Raises
    ------
    OSError
        As `open_regular` raises it.
    ValueError
        If it is no such file, or holds objects, or more than a gibibyte.
    """
    import numpy as np

    with os.fdopen(open_regular(path), "rb") as file:
        try:
            with zipfile.ZipFile(file) as members:
                if sum(member.file_size for member in members.infolist()) > 2**30:
                    raise ValueError("it holds more than a gibibyte")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                return dict(arrays)
        except OSError:
            raise
        except Exception as error:  # numpy and zipfile raise nearly anything
            raise ValueError(f"{path} is no file of arrays: {str(error).partition(chr(10))[0]}") from error


def refuse_unusual(path: str | os.PathLike[str], *, follow: bool = False) -> None:
    """Raise OSError if there is something else than a regular file at a path."""
    try:
        mode = (os.stat if follow else os.lstat)(path).st_mode
    except FileNotFoundError:
        return
    if kind := _kind(mode):
        raise OSError(errno.EINVAL, f"it is {kind}, not a file", str(path))


def _kind(mode: int) -> str | None:
    return None if stat.S_ISREG(mode) else next((name for is_it, name in _KINDS if is_it(mode)), "no file")


def replace(path: str | os.PathLike[str], write: Callable[[IO[bytes]], object], *, sync: bool = False) -> None:
    """Write a file under a temporary name in the same directory, and rename it.

    Parameters
    ----------
    path : path-like
        Of a regular file, or of none.
    write : callable
        Is given the open file.
    sync : bool
        Whether the content has reached the disk before it gets its name.

    Raises
    ------
    OSError
        If it cannot be written, or a link, a device or the like stands there. The old file is as it was, and no
        other is left. What `write` raises passes through, too.
    """
    path = Path(path)
    refuse_unusual(path)
    own = f"{_host()}-{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY}"
    # a name has at most 255 bytes
    temporary = path.with_name(f".{os.fsdecode(os.fsencode(path.name)[:180])}.{own}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            if sync:
                os.fsync(file.fileno())
            state = os.fstat(file.fileno())
        os.replace(temporary, path)
        _WRITTEN.add((state.st_dev, state.st_ino, state.st_mtime_ns, state.st_size))
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def own(handle: int) -> bool:
    """Whether this process wrote an open file by `replace`, and nobody has changed it since."""
    state = os.fstat(handle)
    return (state.st_dev, state.st_ino, state.st_mtime_ns, state.st_size) in _WRITTEN


def clean(directory: str | os.PathLike[str]) -> None:
    """Delete the half-written files that killed processes left in a directory, and nothing else."""
    for path in _temporary(directory):
        with contextlib.suppress(OSError):
            state = os.lstat(path)
            host, process, _ = path.name.removesuffix(TEMPORARY).rpartition(".")[2].split("-")
            dead = host == _host() and not os.path.exists(f"/proc/{process}") and os.path.exists("/proc/self")
            if stat.S_ISREG(state.st_mode) and (dead or time.time() - state.st_mtime > STALE):
                os.unlink(path)


def _temporary(directory: str | os.PathLike[str]) -> Iterator[Path]:
    pattern = re.compile(r"\..+\.[0-9a-f]{8}-\d+-[0-9a-f]{8}" + re.escape(TEMPORARY))
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for name in [entry.name for entry in entries]:
            if pattern.fullmatch(name):
                yield Path(directory, name)


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def inside(root: str | os.PathLike[str], path: str | os.PathLike[str]) -> bool:
    """Whether a path, every link in it followed, lies in a directory; False where that cannot be told."""
    try:
        whole, part = os.path.realpath(root), os.path.realpath(path)
    except (OSError, ValueError):
        return False
    return part == whole or part.startswith(os.path.join(whole, ""))


def file_name(*parts: object) -> str:
    """Make a file's name of names that anybody chose: readable, and different for different names.

    Parameters
    ----------
    *parts : object
        For example a data set and a criterion.

    Returns
    -------
    str
        Letters, digits, ``.``, ``_`` and ``-`` alone, 100 at most, no dot first; a short hash ends it where the
        names hold anything else.
    """
    text = "_".join(map(str, parts))
    slug = re.sub(r"[^0-9A-Za-z._-]+", "-", text).lstrip(".-")
    if slug == text and 0 < len(text) <= 100:
        return text
    digest = hashlib.sha256("\0".join(map(str, parts)).encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{slug[:90]}-{digest}" if slug else digest


def to_json(value: Any, **options: Any) -> str:
    """Write JSON that every parser reads: NaN and infinity, which JSON does not know, become null.

    Parameters
    ----------
    value : object
        Of dicts, lists, tuples, text, numbers, booleans and None.
    **options
        As for `json.dumps`.
    """
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
