"""What a launcher is: a way to train the runs of a sweep. Each is a class in a file of its own, with a name."""

from __future__ import annotations

import contextlib
import os
import traceback
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from domainbed_plugins.backends import find as backends
from domainbed_plugins.runs import files as run_files
from domainbed_plugins.runs import paths
from domainbed_plugins.runs.lock import BusyError
from domainbed_plugins.sweep.jobs import Job, Resources
from nacme.errors import ConfigError, DegenerateCoverageWarning, NacmeError
from nacme.system import files


@dataclass(frozen=True)
class Progress:
    """How far a sweep is.

    Attributes
    ----------
    fraction : float
        Of the work that was missing at the start, in [0, 1].
    finished, failed, total : int
        Runs.
    running : list of str
        What is being trained.
    """

    fraction: float
    finished: int
    failed: int
    total: int
    running: list[str]


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes
    ----------
    job : Job
    state : {"done", "failed", "busy", "interrupted"}
        ``"busy"``: another process is training it.
    reason : str
        Why it is not done, in one line.
    """

    job: Job
    state: Literal["done", "failed", "busy", "interrupted"]
    reason: str = ""


def train_job(
    job: Job,
    train_options: Mapping[str, Any],
    domainbed: str | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Outcome:
    """Train one job; an error goes to its ``err.txt`` and its mark of failure.

    Parameters
    ----------
    job : Job
    train_options : mapping
        Fields of `domainbed_plugins.training.options.TrainOptions`.
    domainbed : str, optional
        A DomainBed clone.
    on_step : callable, optional
        See `TrainOptions`.

    Returns
    -------
    Outcome
    """
    from domainbed_plugins.training.options import TrainOptions
    from domainbed_plugins.training.run import train
    from domainbed_plugins.training.signals import InterruptedRun

    # the sweep's report tells it once for all runs
    warnings.simplefilter("ignore", DegenerateCoverageWarning)
    try:
        options = TrainOptions(**train_options, on_step=on_step)
        train(backends.find(job.args["dataset"], domainbed), job.args, options)
    except BusyError as error:
        return Outcome(job, "busy", str(error))
    except InterruptedRun as error:
        return Outcome(job, "interrupted", str(error))
    except Exception as error:
        known = isinstance(error, NacmeError)
        reason = str(error) if known else f"{type(error).__name__}: {error}"
        note_failure(job, reason, reason + "\n" if known else traceback.format_exc())
        return Outcome(job, "failed", reason)
    return Outcome(job, "done")


def note_failure(job: Job, reason: str, detail: str) -> None:
    """Mark a run as failed, for ``nacme sweep status``, and add what happened to its ``err.txt``."""
    with contextlib.suppress(OSError):  # where nothing can be written, the launcher still tells
        job.output_dir.mkdir(parents=True, exist_ok=True)
        handle = files.open_regular(job.output_dir / paths.ERR, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        with os.fdopen(handle, "a") as file:
            file.write(detail)
    run_files.mark_failed(job.output_dir, reason.partition("\n")[0])


@dataclass(frozen=True)
class Launcher(ABC):
    """A way to train the runs of a sweep.

    A new one gives itself a name, says how to `run`, and is registered with `register`. An installed package
    offers its own by an entry point of the group ``nacme.launchers`` that names the module.

    Attributes
    ----------
    name : str
        As ``nacme sweep run --launcher`` has it.
    train_options : mapping
        Fields of `domainbed_plugins.training.options.TrainOptions`.
    domainbed : str, optional
        A DomainBed clone.
    resources : Resources
        What a run asks of a scheduler.
    parallel : int, optional
        Runs at a time. None: as many as suit.
    wait : bool
        Whether `run` follows runs that a scheduler took, until they end.
    """

    name: ClassVar[str]

    train_options: Mapping[str, Any] = field(default_factory=dict)
    domainbed: str | None = None
    resources: Resources = field(default_factory=Resources)
    parallel: int | None = None
    wait: bool = True

    @abstractmethod
    def run(self, jobs: Sequence[Job], on_progress: Callable[[Progress], None] | None = None) -> list[Outcome]:
        """Train what is not done yet; a run that was interrupted goes on.

        Parameters
        ----------
        jobs : sequence of Job
            Of one sweep, at least one.
        on_progress : callable, optional
            Called with a `Progress` now and then.

        Returns
        -------
        list of Outcome
            Of the jobs that were missing; a failure does not stop the others. Empty if they are not waited for.

        Raises
        ------
        NacmeError
            If runs cannot be launched at all.
        """

    @classmethod
    def scheduled_runs(cls, sweep_dir: Path) -> dict[str, str]:
        """Ask the scheduler behind the launcher, if there is one, which runs of a sweep it has.

        Parameters
        ----------
        sweep_dir : path

        Returns
        -------
        dict of str to str
            ``"queued"`` or ``"running"`` by run name; empty for a sweep that was never given to it.

        Raises
        ------
        NacmeError
            If the scheduler has runs of the sweep and does not answer.
        """
        return {}


_Class = TypeVar("_Class", bound=type[Launcher])
#: Launchers by name.
REGISTERED: dict[str, type[Launcher]] = {}


def register(launcher: _Class) -> _Class:
    """Make a launcher known by its name; decorates the class.

    Raises
    ------
    ConfigError
        If another has the name.
    """
    before = REGISTERED.setdefault(launcher.name, launcher)
    if before is not launcher:
        raise ConfigError(f"launcher {launcher.name!r} is taken by {before.__module__}; choose another name")
    return launcher
