"""Loading code that others wrote: installed plug-ins, and modules or files named on the command line."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import re
import sys
import warnings
from pathlib import Path

from nacme.errors import ConfigError, NacmeWarning


@functools.cache
def load_entry_points(group: str) -> None:
    """Load every entry point of a group, once.

    Parameters
    ----------
    group : str
        Name of the group; loading its objects is all that happens, so they register themselves.

    Warns
    -----
    NacmeWarning
        If one cannot be loaded; the others are.
    """
    for entry in importlib.metadata.entry_points(group=group):
        try:
            entry.load()
        except Exception as error:  # a plug-in may raise anything
            warnings.warn(f"plug-in {entry.value} cannot be loaded: {error!r}", NacmeWarning, stacklevel=3)


def import_module(module: str) -> None:
    """Import a module by its dotted name, or by the path of its ``.py`` file, once.

    Parameters
    ----------
    module : str
        Name or path.

    Raises
    ------
    ConfigError
        If it cannot be imported.
    """
    path = Path(module)
    name = "nacme_user_" + re.sub(r"\W", "_", str(path.resolve())) if path.suffix == ".py" else module
    if name in sys.modules:
        return
    try:
        if path.suffix != ".py":
            importlib.import_module(name)
            return
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        sys.modules[name] = loaded
    except Exception as error:  # the user's code may raise anything
        raise ConfigError(f"module {module} cannot be loaded: {error!r}") from error
