"""Running the jobs of a sweep side by side on this machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from domainbed_plugins.machine import default_processes, gpus, threads_each
from domainbed_plugins.runs import paths
from domainbed_plugins.runs.lock import lock_note
from domainbed_plugins.sweep.jobs import Job
from domainbed_plugins.sweep.launchers.base import Launcher, Outcome, Progress, note_failure, register, train_job
from nacme import children

PROGRESS_INTERVAL = 0.2  # seconds between a worker's messages
#: Seconds that a run has for saving its state when the sweep is stopped.
GRACE = 60.0


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    job: Job | None = None
    fraction: float = 0.0


@register
class LocalLauncher(Launcher):
    """Trains runs side by side on this machine, in worker processes that live for the whole sweep.

    The cores are divided among the workers, and the GPUs where there are any. A failure, even a worker's death,
    does not stop the other runs. A run that another process is training is waited for, and taken over if that
    process goes away.
    """

    name = "local"

    def run(self, jobs: Sequence[Job], on_progress: Callable[[Progress], None] | None = None) -> list[Outcome]:
        """See `Launcher.run`; the outcomes are in the order in which the runs ended."""
        pool = _Pool(jobs, self.train_options, self.parallel or default_processes(), self.domainbed)
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
                note_failure(worker.job, reason, reason + "\n")
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
