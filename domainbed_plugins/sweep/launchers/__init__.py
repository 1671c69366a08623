"""Where the runs of a sweep are trained: one launcher a file, found by name."""

from __future__ import annotations

from domainbed_plugins.sweep.launchers.base import REGISTERED, Launcher
from nacme.errors import ConfigError, nearest
from nacme.system.plugins import load_entry_points


def launchers() -> dict[str, type[Launcher]]:
    """List the launchers: this package's own, and those that installed packages offer.

    Returns
    -------
    dict of str to type
        By name.
    """
    from domainbed_plugins.sweep.launchers import debug, local, slurm  # noqa: F401 - they register themselves

    load_entry_points("nacme.launchers")
    return dict(REGISTERED)


def find_launcher(name: str) -> type[Launcher]:
    """Find a launcher.

    Raises
    ------
    ConfigError
        If there is none of that name.
    """
    known = launchers()
    if name not in known:
        raise ConfigError(f"--launcher {name!r} is unknown; {nearest(name, known)}")
    return known[name]
