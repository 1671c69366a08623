"""Running the jobs of a sweep one after another in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from domainbed_plugins.sweep.jobs import Job
from domainbed_plugins.sweep.launchers.base import Launcher, Outcome, Progress, register, train_job


@register
class DebugLauncher(Launcher):
    """Trains runs one after another in this process, where a debugger can follow."""

    name = "debug"

    def run(self, jobs: Sequence[Job], on_progress: Callable[[Progress], None] | None = None) -> list[Outcome]:
        """See `Launcher.run`; an interrupted run ends the sweep."""
        missing = [job for job in jobs if job.state != "done"]
        outcomes: list[Outcome] = []
        for job in missing:
            outcomes.append(train_job(job, self.train_options, self.domainbed))
            failed = sum(outcome.state == "failed" for outcome in outcomes)
            if on_progress:
                finished = len(jobs) - len(missing) + len(outcomes) - failed
                on_progress(Progress(len(outcomes) / len(missing), finished, failed, len(jobs), []))
            if outcomes[-1].state == "interrupted":
                break
        return outcomes
