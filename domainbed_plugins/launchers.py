"""Running the jobs of a sweep side by side on this machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from domainbed_plugins import backends
from domainbed_plugins.sweep import Job
from nacme.errors import DegenerateCoverageWarning, NacmeError

PROGRESS_INTERVAL = 0.2  # seconds between a worker's messages


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


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    job: Job | None = None
    fraction: float = 0.0


def run_local(
    jobs: Sequence[Job],
    train_options: dict[str, object],
    *,
    processes: int,
    domainbed: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> list[tuple[Job, str]]:
    """Train jobs in worker processes that live for the whole sweep; what is done already is left alone.

    A run that was interrupted goes on. A failure, even a worker's death, does not stop the other runs.

    Parameters
    ----------
    jobs : sequence of Job
    train_options : dict
        Fields of `domainbed_plugins.runner.TrainOptions`.
    processes : int
        Workers; the cores are divided among them.
    domainbed : str, optional
        A DomainBed clone.
    on_progress : callable, optional
        Called with a `Progress` now and then.

    Returns
    -------
    list of (Job, str)
        The failed jobs, each with the last line of what went wrong.
    """
    waiting = [job for job in jobs if job.state != "done"]
    missing, done_before = len(waiting), len(jobs) - len(waiting)
    failures: list[tuple[Job, str]] = []
    # spawned, not forked: torch's thread pools do not survive a fork
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // processes)

    def start() -> _Worker:
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, train_options, domainbed, threads), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours)

    workers: list[_Worker] = [start() for _ in range(min(processes, len(waiting)))]
    ended = 0
    try:
        while waiting or any(worker.job for worker in workers):
            for worker in workers:
                if worker.job is None and waiting:
                    worker.job, worker.fraction = waiting.pop(0), 0.0
                    # a worker that died while idle is noticed when its answer is read
                    with contextlib.suppress(BrokenPipeError):
                        worker.pipe.send(worker.job)
            ready = wait([worker.pipe for worker in workers if worker.job], timeout=1.0)
            for index, worker in enumerate(workers):
                if worker.pipe not in ready or worker.job is None:
                    continue
                try:
                    message = worker.pipe.recv()
                except EOFError:
                    worker.process.join()
                    message = f"the worker died (exit code {worker.process.exitcode})"
                    workers[index] = start()
                if isinstance(message, float):
                    worker.fraction = message
                    continue
                if message:
                    failures.append((worker.job, message))
                worker.job = None
                ended += 1
            if on_progress:
                running = [worker for worker in workers if worker.job]
                fraction = (ended + sum(worker.fraction for worker in running)) / missing
                names = [str(worker.job) for worker in running]
                finished = done_before + ended - len(failures)
                on_progress(Progress(fraction, finished, len(failures), len(jobs), names))
    finally:
        for worker in workers:
            worker.process.terminate()
    return failures


def _work(pipe: Connection, train_options: dict[str, object], domainbed: str | None, threads: int) -> None:
    """Train what comes down the pipe; answer with fractions, and at a run's end with an error or ''."""
    import torch

    from domainbed_plugins.runner import TrainOptions, train

    torch.set_num_threads(threads)
    # the sweep's report tells it once for all runs
    warnings.simplefilter("ignore", DegenerateCoverageWarning)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for the process's life
    last = 0.0

    def on_step(step: int, n_steps: int) -> None:
        nonlocal last
        if time.monotonic() - last > PROGRESS_INTERVAL:
            last = time.monotonic()
            pipe.send((step + 1) / n_steps)

    options = TrainOptions(**train_options, on_step=on_step)  # type: ignore[arg-type]
    with contextlib.suppress(EOFError, KeyboardInterrupt, BrokenPipeError):
        while True:
            job: Job = pipe.recv()
            try:
                train(backends.find(job.args["dataset"], domainbed), job.args, options)
                pipe.send("")
            except NacmeError as error:
                pipe.send(str(error))
            except Exception as error:
                with (job.output_dir / "err.txt").open("a") as file:
                    traceback.print_exc(file=file)
                pipe.send(f"{type(error).__name__}: {error}")
