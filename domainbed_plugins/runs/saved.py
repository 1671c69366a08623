"""The saved models of runs: which step each one is of, and what is needed to measure it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domainbed_plugins.runs import paths
from domainbed_plugins.runs.records import Records, find_runs, read_records
from nacme.errors import SweepError
from nacme.records.run import final_step


@dataclass(frozen=True)
class Job:
    """One checkpoint to measure.

    Attributes
    ----------
    directory : Path
        The run's.
    checkpoint : Path
    step : int
    args, hparams : dict
        Of the run's records.
    recorded : dict
        The step's own record; the last one if there is none.
    """

    directory: Path
    checkpoint: Path
    step: int
    args: dict[str, Any]
    hparams: dict[str, Any]
    recorded: dict[str, Any]


class DisagreeingError(SweepError):
    """Records and saved models that contradict each other."""


def saved_models(run: Path, records: Records) -> dict[int, Path]:
    """Find a run's saved models, by step.

    Parameters
    ----------
    run : path
    records : Records

    Returns
    -------
    dict of int to path
        Of a step that is saved twice, its own file.

    Raises
    ------
    DisagreeingError
        If ``model.pkl`` is of a later step than the last on record, so that records are lost: no model can be
        told from another then.
    """
    names = os.listdir(run)
    models = {step: run / name for name in names if (step := paths.step_of(name)) is not None}
    if records.last is not None and paths.MODEL in names:
        last = records.last["step"]
        end = final_step(records.last)
        if (end is not None and end != last) or max(models, default=0) > last:
            true = max(models, default=0) if end is None else end
            raise DisagreeingError(
                f"{run / paths.MODEL} is of step {true}, but the records end at step {last}: some are lost; "
                f"restore {paths.RESULTS}, or move {paths.MODEL} away"
            )
        models.setdefault(last, run / paths.MODEL)
    return dict(sorted(models.items()))


def check_step(content: Mapping[str, Any], step: int, path: Path) -> None:
    """Refuse a saved model that says itself to be of another step than the one it is taken for.

    Parameters
    ----------
    content : mapping
        From `domainbed_plugins.runs.checkpoints.load_checkpoint`; what DomainBed saved says nothing.
    step : int
    path : path
        Named in the error.

    Raises
    ------
    DisagreeingError
    """
    own = content.get("step")
    if own is not None and own != step:
        raise DisagreeingError(
            f"{path} is of step {own}, not {step}: it was renamed, or records are lost; restore them"
        )


def find_jobs(sweep: Path, failures: list[str]) -> list[Job]:
    """Find the saved checkpoints of a sweep.

    Parameters
    ----------
    sweep : Path
    failures : list of str
        Receives a line for each run that is left alone.

    Returns
    -------
    list of Job

    Raises
    ------
    SweepError
        If there are no runs, or none saved a checkpoint.
    """
    runs = find_runs(sweep, failures)
    if not runs and not failures:
        raise SweepError(f"{sweep} holds no runs: neither it nor a directory in it has a {paths.RESULTS}")
    jobs: list[Job] = []
    for run in runs:
        records = read_records(run)
        try:
            models = saved_models(run, records)
        except DisagreeingError as error:
            failures.append(str(error))
            continue
        if not models:
            if records.last is None:  # which model its model.pkl is, only a record could tell
                failures += records.faults
            continue
        latest = records.last
        if latest is None:
            failures += records.faults or [f"{run / paths.RESULTS} holds no record; left alone"]
            continue
        if not isinstance(latest.get("hparams"), dict):
            failures.append(f"{run / paths.RESULTS}: no whole record says hparams; left alone")
            continue
        jobs += [
            Job(run, path, step, latest["args"], latest["hparams"], records.by_step.get(step, latest))
            for step, path in models.items()
        ]
    if not jobs and not failures:
        raise SweepError(
            f"{sweep} holds no saved checkpoint; train with --save_model_every_checkpoint to have one of each step"
        )
    return jobs
