"""Starting Python so that it does not take the working directory for a place of modules.

``python -m`` and `multiprocessing` look for modules in the working directory first, and so does every Python whose
``PYTHONPATH`` has an empty entry. A ``pickle.py`` that lies there, in a sweep of somebody else's, would be run.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

_SAFE_FLAG = sys.version_info >= (3, 11)
#: For a Python without ``-P``. What follows ``-c`` may be ``-u``; then come ``-m``, a module and its arguments.
_BOOT = (
    "import sys; sys.path[:1] = [p for p in sys.path[:1] if p]; "
    "sys.argv[:] = sys.argv[1 + sys.argv.index('-m'):]; "
    "import runpy; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
)


def interpreter(safe_flag: bool = _SAFE_FLAG) -> list[str]:
    """Words of a command that, followed by ``-m`` and a module, runs it.

    Parameters
    ----------
    safe_flag : bool
        Whether Python knows ``-P``, as it does from 3.11.
    """
    return [sys.executable, "-P"] if safe_flag else [sys.executable, "-c", _BOOT]


def environment() -> dict[str, str]:
    """Variables for such a command: those of this process, with a path in which nacme is found."""
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    entries = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    with contextlib.suppress(OSError):
        if home == os.getcwd():  # a checkout; this process found nacme there
            entries.insert(0, home)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entries)}


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """Let `multiprocessing` start its processes so; they then look where this process does."""
    from multiprocessing import util

    original = util._args_from_interpreter_flags  # type: ignore[attr-defined]
    flag = "-P" if _SAFE_FLAG else "-I"

    def flags() -> list[str]:
        return [*original(), *([] if flag in original() else [flag])]

    util._args_from_interpreter_flags = flags  # type: ignore[attr-defined]
    try:
        yield
    finally:
        util._args_from_interpreter_flags = original  # type: ignore[attr-defined]


def leave_working_directory() -> None:
    """Forget the working directory as a place of modules and of matplotlib's settings; a program's first act.

    Where nacme itself lies in the working directory, as in a checkout, modules are still found there.
    """
    os.environ["PYTHONSAFEPATH"] = "1"  # for all that this process starts; Python 3.10 ignores it
    home = os.path.dirname(os.path.abspath(__file__))
    try:
        here = os.getcwd()
    except OSError:  # deleted
        return
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if "" in entries and entries != [""]:
        os.environ["PYTHONPATH"] = os.pathsep.join(entry for entry in entries if entry)
        if os.path.dirname(home) != here and here not in entries:
            sys.path[:] = [entry for entry in sys.path if entry not in ("", here)]
    if os.path.lexists("matplotlibrc") and "matplotlib" not in sys.modules:
        # of all places, it looks for its settings here first, when it is imported
        os.chdir(home)
        try:
            with contextlib.suppress(ImportError):
                import matplotlib  # noqa: F401
        finally:
            os.chdir(here)
