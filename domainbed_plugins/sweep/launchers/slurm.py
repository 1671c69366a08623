"""Running the jobs of a sweep on Slurm, as job arrays of submitit.

Only ``sbatch`` and ``squeue`` are asked, and the runs' own files tell how far they are: accounting storage
(``sacct``) is not needed. A run whose time ends, or that is preempted, saves its state and is queued again.
"""

from __future__ import annotations

import getpass
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from domainbed_plugins.runs import files as run_files
from domainbed_plugins.runs import paths
from domainbed_plugins.runs.lock import locked
from domainbed_plugins.sweep.jobs import Job, Resources
from domainbed_plugins.sweep.launchers.base import Launcher, Outcome, Progress, register, train_job
from domainbed_plugins.sweep.status import RunStatus, sweep_status
from nacme import children
from nacme.errors import ConfigError, NacmeError, NacmeWarning
from nacme.system import files

#: Seconds between two looks at the queue.
POLL = 5.0
#: Slurm's default limit of an array is 1,001.
ARRAY_SIZE = 1000
#: Seconds before its time ends that a run is told so.
WARNING_TIME = 120
_QUEUED = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED", "STOPPED")


class SlurmTask:
    """What a Slurm job runs: one run of the sweep, saved and queued again when its time ends.

    Parameters
    ----------
    train_options : mapping
        Fields of `domainbed_plugins.training.options.TrainOptions`.
    domainbed : str, optional
        A DomainBed clone.
    """

    def __init__(self, train_options: Mapping[str, Any], domainbed: str | None) -> None:
        self.train_options, self.domainbed = dict(train_options), domainbed

    def __call__(self, job: Job) -> str:
        """Train; give the outcome's state."""
        import torch

        torch.set_num_threads(int(os.environ.get("SLURM_CPUS_PER_TASK") or 1))
        # submitit's handler queues the job again and exits at once; the state is to be saved before
        number = signal.Signals[f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}"]
        queue_again = signal.getsignal(number)
        told: list[int] = []
        signal.signal(number, lambda n, _: told.append(n))

        def on_step(step: int, n_steps: int) -> None:
            if told:
                signal.raise_signal(signal.SIGTERM)

        outcome = train_job(job, self.train_options, self.domainbed, on_step)
        if told and outcome.state == "interrupted" and callable(queue_again):
            queue_again(told[0], None)
        return outcome.state

    def checkpoint(self, job: Job) -> Any:
        """Tell submitit how to go on: the run finds its own state."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, job)


@register
class SlurmLauncher(Launcher):
    """Submits runs that are not in the queue already, and follows them; ending this process does not end them.

    What a run asks for is in `resources`. Submitit's logs and the list of job numbers go to the sweep's directory.
    """

    name = "slurm"

    def run(self, jobs: Sequence[Job], on_progress: Callable[[Progress], None] | None = None) -> list[Outcome]:
        """See `Launcher.run`."""
        sweep_dir = min(job.output_dir.parent for job in jobs)
        parallel = self.parallel or self.resources.parallel
        missing = [job for job in jobs if job.state != "done"]
        with locked(sweep_dir):  # two launches do not submit the same run
            scheduled = self.scheduled_runs(sweep_dir)
            new = [job for job in missing if job.name not in scheduled]
            _submit(new, SlurmTask(self.train_options, self.domainbed), sweep_dir, self.resources, parallel)
        there = len(missing) - len(new)
        print(f"{len(new)} jobs submitted, {there} in the queue already", file=sys.stderr, flush=True)
        if not self.wait:
            return []
        try:
            return _follow(jobs, missing, sweep_dir, self.domainbed, on_progress)
        except KeyboardInterrupt:
            print("the Slurm jobs go on; the same command follows them again, scancel ends them", file=sys.stderr)
            raise

    @classmethod
    def scheduled_runs(cls, sweep_dir: Path) -> dict[str, str]:
        """See `Launcher.scheduled_runs`."""
        numbers = _numbers(sweep_dir)
        if not numbers:
            return {}
        command = ["squeue", "--noheader", "--array", "--user", getpass.getuser(), "--format", "%F_%K %i %T"]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        except (OSError, subprocess.SubprocessError) as error:
            said = (getattr(error, "stderr", None) or str(error)).strip().partition("\n")[0]
            raise NacmeError(
                f"Slurm does not answer ({said}); {sweep_dir / paths.JOBS} lists jobs of this sweep"
            ) from error
        states = {}
        for line in answer.stdout.splitlines():
            words = line.split()
            if len(words) == 3:
                states[words[0]] = states[words[1]] = "queued" if words[2] in _QUEUED else "running"
        return {run: states[number] for run, number in numbers.items() if number in states}


def _submit(jobs: Sequence[Job], task: SlurmTask, sweep_dir: Path, resources: Resources, parallel: int) -> None:
    try:
        import submitit
    except ImportError as error:
        raise ConfigError("--launcher slurm needs submitit: pip install 'nacme[slurm]'") from error
    if not str(sweep_dir.absolute()).isprintable():  # it stands in the header of a script
        raise ConfigError(f"--output_dir {str(sweep_dir)!r} holds what cannot be printed; choose another")
    if shutil.which("sbatch") is None:
        raise ConfigError("--launcher slurm needs Slurm, but there is no sbatch here; use --launcher local")
    asked = {
        "partition": resources.partition,
        "account": resources.account,
        "time": resources.time,
        "mem": resources.mem,
        "gpus_per_node": resources.gpus or None,
    }
    python = shlex.join(children.interpreter())
    executor = submitit.SlurmExecutor(folder=sweep_dir / paths.LOGS, max_num_timeout=10_000, python=python)
    executor.update_parameters(
        **{key: value for key, value in asked.items() if value is not None},
        cpus_per_task=resources.cpus,
        array_parallelism=parallel,
        job_name="nacme",
        signal_delay_s=WARNING_TIME,
        additional_parameters={"export": "ALL"},
    )
    for first in range(0, len(jobs), ARRAY_SIZE):
        part = jobs[first : first + ARRAY_SIZE]
        for job in part:
            (job.output_dir / paths.FAILED).unlink(missing_ok=True)
        try:
            submitted = executor.map_array(task, part)
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            reason = " ".join(str(error).split())
            raise NacmeError(f"Slurm refused the jobs ({reason}); check the specification's resources") from error
        numbers = {job.name: slurm_job.job_id for job, slurm_job in zip(part, submitted)}
        _write_numbers(sweep_dir, {**_numbers(sweep_dir), **numbers})


def _write_numbers(sweep_dir: Path, numbers: Mapping[str, str]) -> None:
    content = json.dumps(numbers, indent=1).encode()
    run_files.write_atomically(sweep_dir / paths.JOBS, lambda file: file.write(content))


def _numbers(sweep_dir: Path) -> dict[str, str]:
    """Read which Slurm job trains which run; a file of anything else is said and counts as none."""
    path = sweep_dir / paths.JOBS
    if not os.path.lexists(path):
        return {}
    try:
        numbers = json.loads(files.read_bytes(path))
        if not isinstance(numbers, dict) or not all(isinstance(number, str) for number in numbers.values()):
            raise ValueError("no numbers by name")
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        warnings.warn(f"{path} does not list Slurm jobs ({reason}); it is ignored", NacmeWarning, stacklevel=2)
        return {}
    return numbers


def _follow(
    jobs: Sequence[Job],
    missing: Sequence[Job],
    sweep_dir: Path,
    domainbed: str | None,
    on_progress: Callable[[Progress], None] | None,
) -> list[Outcome]:
    begun = {status.job.name: status.step or 0 for status in sweep_status(missing, {}, domainbed)}
    while True:
        try:
            scheduled = SlurmLauncher.scheduled_runs(sweep_dir)
        except NacmeError:  # the controller may be restarting
            scheduled = {job.name: "queued" for job in missing}
        statuses = sweep_status(missing, scheduled, domainbed)
        if on_progress:
            on_progress(_progress(jobs, statuses, begun))
        if not any(status.state in ("queued", "running") for status in statuses):
            return [_outcome(status) for status in statuses]
        time.sleep(POLL)


def _progress(jobs: Sequence[Job], statuses: Sequence[RunStatus], begun: Mapping[str, int]) -> Progress:
    made = to_make = 0
    for status in statuses:
        steps, first = status.steps or 1, begun[status.job.name]
        made += max(0, (status.step or 0) - first)
        to_make += max(1, steps - first)
    done = sum(status.state == "done" for status in statuses)
    failed = sum(status.state == "failed" for status in statuses)
    running = [str(status.job) for status in statuses if status.state == "running"]
    return Progress(min(1.0, made / to_make), len(jobs) - len(statuses) + done, failed, len(jobs), running)


def _outcome(status: RunStatus) -> Outcome:
    if status.state == "done":
        return Outcome(status.job, "done")
    if status.state == "failed":
        return Outcome(status.job, "failed", status.detail)
    return Outcome(status.job, "interrupted", "its Slurm job ended before the run did")
