"""How far each run of a sweep is, by its files and what the scheduler knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from domainbed_plugins.backends import find as backends
from domainbed_plugins.runs import files as run_files
from domainbed_plugins.runs import paths
from domainbed_plugins.runs.lock import lock_note
from domainbed_plugins.runs.records import last_step
from domainbed_plugins.sweep.jobs import Job

State = Literal["not launched", "queued", "running", "interrupted", "failed", "done"]
STATES: tuple[State, ...] = ("not launched", "queued", "running", "interrupted", "failed", "done")


@dataclass(frozen=True)
class RunStatus:
    """How far one run is.

    Attributes
    ----------
    job : Job
    state : str
        ``"interrupted"``: it was begun and nobody is training it; running the sweep again goes on with it.
    step, steps : int or None
        Steps made (by the last record, or the training process's own word) and to make.
    rate : float or None
        Steps per second, of a run that is being trained.
    detail : str
        Who trains it, or why it failed.
    """

    job: Job
    state: State
    step: int | None = None
    steps: int | None = None
    rate: float | None = None
    detail: str = ""

    def row(self) -> dict[str, Any]:
        """As a table's row."""
        args = self.job.args
        return {
            "run": self.job.name,
            "dataset": args["dataset"],
            "algorithm": args["algorithm"],
            "test_envs": ",".join(map(str, args["test_envs"])),
            "hparams_seed": args["hparams_seed"],
            "trial_seed": args["trial_seed"],
            "state": self.state,
            "step": self.step,
            "steps": self.steps,
            "rate": self.rate,
            "detail": self.detail,
        }


def sweep_status(
    jobs: Sequence[Job], queued: Mapping[str, str] | None = None, domainbed: str | None = None
) -> list[RunStatus]:
    """Tell how far the runs of a sweep are.

    Parameters
    ----------
    jobs : sequence of Job
    queued : mapping of str to str
        By run name, what a scheduler says: ``"queued"`` or ``"running"``.
    domainbed : str, optional
        A DomainBed clone.

    Returns
    -------
    list of RunStatus
        In the jobs' order.
    """
    return [_status(job, (queued or {}).get(job.name), domainbed) for job in jobs]


def _status(job: Job, scheduled: str | None, domainbed: str | None) -> RunStatus:
    run = job.output_dir
    testbed = backends.find(job.args["dataset"], domainbed)
    steps = job.args["steps"] or testbed.datasets.get_dataset_class(job.args["dataset"]).N_STEPS
    if (run / paths.DONE).exists():
        return RunStatus(job, "done", steps, steps)
    last = last_step(run)
    step = None if last is None else last + 1
    note = lock_note(run / paths.LOCK)
    if note is not None or scheduled == "running":
        note = note or {}
        made = note["step"] + 1 if "step" in note else step
        detail = f"process {note['pid']} on {note['host']}" if "pid" in note else ""
        return RunStatus(job, "running", made, steps, note.get("rate"), detail)
    if scheduled == "queued":
        return RunStatus(job, "queued", step, steps)
    failure = _failure(run)
    if failure:
        return RunStatus(job, "failed", step, steps, detail=failure)
    begun = (run / paths.OUT).exists()
    return RunStatus(job, "interrupted" if begun else "not launched", step, steps)


def _failure(run: Path) -> str | None:
    if (run / paths.FAILED).exists():
        return " ".join(run_files.last_lines(run / paths.FAILED, 1)) or "unknown reason"
    # a run that DomainBed started leaves a traceback and nothing else
    lines = run_files.last_lines(run / paths.ERR, 200)
    if not (run / paths.STATE).exists() and any(line.startswith("Traceback ") for line in lines):
        return lines[-1]
    return None
