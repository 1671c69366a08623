"""Running the jobs of a sweep: side by side on this machine, or one after another in this process.

A launcher is a function of jobs and `TrainOptions` fields that returns what became of each job that it ran.
Slurm's is in `domainbed_plugins.sweep.launchers.slurm`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Literal

from domainbed_plugins.backends import find as backends
from domainbed_plugins.machine import gpus, threads_each
from domainbed_plugins.runs import files as run_files
from domainbed_plugins.runs import paths
from domainbed_plugins.runs.lock import BusyError, lock_note
from domainbed_plugins.sweep.jobs import Job
from nacme import children
from nacme.errors import DegenerateCoverageWarning, NacmeError

PROGRESS_INTERVAL = 0.2  # seconds between a worker's messages
#: Seconds that a run has for saving its state when the sweep is stopped.
GRACE = 60.0


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
    from domainbed_plugins.training.loop import InterruptedRun
    from domainbed_plugins.training.options import TrainOptions
    from domainbed_plugins.training.run import train

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
        _note_failure(job, reason, reason + "\n" if known else traceback.format_exc())
        return Outcome(job, "failed", reason)
    return Outcome(job, "done")


def _note_failure(job: Job, reason: str, detail: str) -> None:
    with contextlib.suppress(OSError):  # where nothing can be written, the launcher still tells
        job.output_dir.mkdir(parents=True, exist_ok=True)
        with (job.output_dir / paths.ERR).open("a") as file:
            file.write(detail)
    run_files.mark_failed(job.output_dir, reason.partition("\n")[0])


def run_debug(
    jobs: Sequence[Job],
    train_options: Mapping[str, Any],
    *,
    domainbed: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> list[Outcome]:
    """Train jobs one after another in this process, where a debugger can follow.

    Parameters
    ----------
    jobs, train_options, domainbed, on_progress
        As for `run_local`.

    Returns
    -------
    list of Outcome
    """
    missing = [job for job in jobs if job.state != "done"]
    outcomes: list[Outcome] = []
    for job in missing:
        outcomes.append(train_job(job, train_options, domainbed))
        failed = sum(outcome.state == "failed" for outcome in outcomes)
        if on_progress:
            finished = len(jobs) - len(missing) + len(outcomes) - failed
            on_progress(Progress(len(outcomes) / len(missing), finished, failed, len(jobs), []))
        if outcomes[-1].state == "interrupted":
            break
    return outcomes


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    job: Job | None = None
    fraction: float = 0.0


def run_local(
    jobs: Sequence[Job],
    train_options: Mapping[str, Any],
    *,
    processes: int,
    domainbed: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> list[Outcome]:
    """Train jobs in worker processes that live for the whole sweep; what is done already is left alone.

    A run that was interrupted goes on. A failure, even a worker's death, does not stop the other runs. A run that
    another process is training is waited for, and taken over if that process goes away.

    Parameters
    ----------
    jobs : sequence of Job
    train_options : mapping
        Fields of `domainbed_plugins.training.options.TrainOptions`.
    processes : int
        Workers; the cores are divided among them, and the GPUs where there are any.
    domainbed : str, optional
        A DomainBed clone.
    on_progress : callable, optional
        Called with a `Progress` now and then.

    Returns
    -------
    list of Outcome
        Of the jobs that were missing, in the order in which they ended.
    """
    pool = _Pool(jobs, train_options, processes, domainbed)
    try:
        while not pool.ended():
            pool.assign()
            pool.listen()
            if on_progress:
                on_progress(pool.progress())
    finally:
        pool.close()
    return pool.outcomes


class _Pool:
    def __init__(
        self, jobs: Sequence[Job], train_options: Mapping[str, Any], processes: int, domainbed: str | None
    ) -> None:
        self.jobs = jobs
        self.waiting = [job for job in jobs if job.state != "done"]
        self.missing = len(self.waiting)
        self.outcomes: list[Outcome] = []
        self._train_options, self._domainbed = train_options, domainbed
        # spawned, not forked: torch's thread pools do not survive a fork
        self._context = multiprocessing.get_context("spawn")
        count = min(processes, len(self.waiting))
        self._threads = threads_each(processes)
        self._gpus = gpus() if count else []
        self.workers = [self._start(index) for index in range(count)]

    def _start(self, index: int) -> _Worker:
        ours, theirs = self._context.Pipe()
        gpu = self._gpus[index % len(self._gpus)] if self._gpus else None
        arguments = (theirs, self._train_options, self._domainbed, self._threads, gpu)
        # no daemon: those may not have children, and loaders have workers
        process = self._context.Process(target=_work, args=arguments)
        with children.starting():
            process.start()
        theirs.close()
        return _Worker(process, ours)

    def ended(self) -> bool:
        return not self.waiting and not any(worker.job for worker in self.workers)

    def assign(self) -> None:
        """Give the idle workers something to do; what is busy elsewhere waits at the end of the queue."""
        for index in [index for index, worker in enumerate(self.workers) if worker.job is None]:
            for _ in range(len(self.waiting)):
                job = self.waiting.pop(0)
                if job.state == "done":  # by another launch of the same sweep
                    self.outcomes.append(Outcome(job, "done"))
                elif lock_note(job.output_dir / paths.LOCK) is not None:
                    self.waiting.append(job)
                else:
                    self._hand_over(index, job)
                    break

    def _hand_over(self, index: int, job: Job) -> None:
        try:
            self.workers[index].pipe.send(job)
        except OSError:  # it died while it was idle
            self.workers[index] = self._start(index)
            self.workers[index].pipe.send(job)
        self.workers[index].job, self.workers[index].fraction = job, 0.0

    def listen(self) -> None:
        """Wait for messages, at most a second."""
        busy = [worker.pipe for worker in self.workers if worker.job]
        if not busy:
            time.sleep(0.0 if self.ended() else 1.0)
            return
        ready = wait(busy, timeout=1.0)
        for index, worker in enumerate(self.workers):
            if worker.pipe not in ready or worker.job is None:
                continue
            try:
                message = worker.pipe.recv()
            except (EOFError, OSError):
                worker.process.join()
                reason = f"the worker died (exit code {worker.process.exitcode})"
                _note_failure(worker.job, reason, reason + "\n")
                message = Outcome(worker.job, "failed", reason)
                self.workers[index] = self._start(index)
            if isinstance(message, float):
                worker.fraction = message
                continue
            if message.state == "busy":
                self.waiting.append(worker.job)
            else:
                self.outcomes.append(message)
            worker.job = None

    def progress(self) -> Progress:
        running = [worker for worker in self.workers if worker.job]
        fraction = (len(self.outcomes) + sum(worker.fraction for worker in running)) / self.missing
        failed = sum(outcome.state != "done" for outcome in self.outcomes)
        finished = len(self.jobs) - self.missing + len(self.outcomes) - failed
        return Progress(fraction, finished, failed, len(self.jobs), [str(worker.job) for worker in running])

    def close(self) -> None:
        """End the workers; a run under way saves its state first."""
        for worker in self.workers:
            if worker.job:
                worker.process.terminate()
            worker.pipe.close()
        deadline = time.monotonic() + GRACE
        for worker in self.workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            worker.process.kill()


def _work(
    pipe: Connection, train_options: Mapping[str, Any], domainbed: str | None, threads: int, gpu: str | None
) -> None:
    """Train what comes down the pipe; answer with fractions, and at a run's end with its outcome."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    # a terminal sends it to all processes; the sweep's own process then ends this one with SIGTERM
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    torch.set_num_threads(threads)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for the process's life
    last = 0.0

    def on_step(step: int, n_steps: int) -> None:
        nonlocal last
        if time.monotonic() - last > PROGRESS_INTERVAL:
            last = time.monotonic()
            try:
                pipe.send((step + 1) / n_steps)
            except OSError:  # the sweep's process is gone: save the state and end
                signal.raise_signal(signal.SIGTERM)

    with contextlib.suppress(EOFError, OSError):
        while True:
            job: Job = pipe.recv()
            pipe.send(train_job(job, train_options, domainbed, on_step))
