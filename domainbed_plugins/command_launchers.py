"""Our way of running jobs, for DomainBed's own sweep script.

DomainBed's ``python -m domainbed.scripts.sweep`` gives a launcher the command lines of its runs. The two here have
each of them trained by this package in place of DomainBed's script, with the same flags and into the same
directory, so that coverage is recorded and a run that was interrupted goes on.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from domainbed_plugins import train
from domainbed_plugins.backends import find as backends
from domainbed_plugins.backends.arguments import STOCK_FLAGS
from domainbed_plugins.sweep.jobs import Job
from domainbed_plugins.sweep.launchers.local import LocalLauncher
from domainbed_plugins.sweep.launchers.slurm import SlurmLauncher
from nacme.errors import ConfigError, NacmeError

_SCRIPT = "domainbed.scripts.train"


def register() -> None:
    """Add ``nacme`` (this machine) and ``nacme_slurm`` to ``domainbed.command_launchers.REGISTRY``.

    Raises
    ------
    ConfigError
        If DomainBed cannot be found.
    """
    registry = backends.module("command_launchers").REGISTRY
    registry["nacme"] = local_launcher
    registry["nacme_slurm"] = slurm_launcher


def local_launcher(commands: Sequence[str]) -> None:
    """Train DomainBed's command lines side by side on this machine.

    Parameters
    ----------
    commands : sequence of str

    Raises
    ------
    NacmeError
        If a run failed, after the others have ended.
    """
    outcomes = LocalLauncher().run([parse_command(command) for command in commands])
    _check([outcome.reason for outcome in outcomes if outcome.state != "done"])


def slurm_launcher(commands: Sequence[str]) -> None:
    """Train DomainBed's command lines on Slurm, with its defaults for resources.

    Parameters
    ----------
    commands : sequence of str

    Raises
    ------
    NacmeError
        If Slurm refuses the jobs, or a run failed, after the others have ended.
    """
    jobs = [parse_command(command) for command in commands]
    if not jobs:
        return
    outcomes = SlurmLauncher().run(jobs)
    _check([outcome.reason for outcome in outcomes if outcome.state != "done"])


def _check(reasons: Sequence[str]) -> None:
    if reasons:
        raise NacmeError(f"{len(reasons)} runs did not end, the first because: {reasons[0]}")


def parse_command(command: str) -> Job:
    """Read one of DomainBed's command lines.

    Parameters
    ----------
    command : str
        ``python -m domainbed.scripts.train --flag value ...``.

    Returns
    -------
    Job

    Raises
    ------
    ConfigError
        If it is something else.
    """
    words = shlex.split(command)
    if _SCRIPT not in words:
        raise ConfigError(f"{command!r} does not run {_SCRIPT}; the launchers of nacme run nothing else")
    # DomainBed writes the flags that were not given, too
    values = words[words.index(_SCRIPT) + 1 :]
    kept: list[str] = []
    for word in values:
        if word == "None" and kept and kept[-1].startswith("--"):
            kept.pop()
        else:
            kept.append(word)
    flags = train.parser().parse_args(kept)
    return Job({name: getattr(flags, name) for name in STOCK_FLAGS})
