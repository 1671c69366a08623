"""What ``nacme sweep run | plan | status | delete`` do."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domainbed_plugins.backends import find as backends
from domainbed_plugins.backends.arguments import check_hparams
from domainbed_plugins.recording.options import as_begun, begun_layers
from domainbed_plugins.runs import files as run_files
from domainbed_plugins.runs import paths
from domainbed_plugins.runs.lock import lock_note, locked, shared_lock
from domainbed_plugins.sweep.jobs import Job, SweepSpec, make_jobs
from domainbed_plugins.sweep.launchers import find_launcher, launchers
from domainbed_plugins.sweep.launchers.base import Outcome, Progress
from domainbed_plugins.sweep.spec_file import load_spec
from domainbed_plugins.sweep.status import RunStatus, sweep_status
from nacme.errors import ConfigError, NacmeError
from nacme.output import say
from nacme.settings import CoverageSettings
from nacme.system import files
from nacme.system.text import printable

if TYPE_CHECKING:
    from nacme.output import Format

_FORM = "{percentage:3.0f}%|{bar:24}| {elapsed} elapsed, {remaining} left{postfix}"


def run_sweep(
    spec: SweepSpec,
    output_dir: Path,
    *,
    data_dir: str | None = None,
    domainbed: str | None = None,
    launcher: str = "local",
    processes: int | None = None,
    wait: bool = True,
) -> None:
    """Train what is missing of a sweep.

    Parameters
    ----------
    spec : SweepSpec
    output_dir : path
    data_dir, domainbed : str, optional
        See `make_jobs`.
    launcher : str
        ``"local"``, ``"slurm"``, ``"debug"``, or the name of another that is registered.
    processes : int, optional
        Runs at a time. None: as many as suit the machine, or the specification's ``resources.parallel``.
    wait : bool
        Whether to follow runs that a scheduler took, until they end.

    Raises
    ------
    ConfigError
        If the directory cannot be written, or holds a sweep that measures otherwise.
    NacmeError
        If a run failed; the message lists them with the last lines of their ``err.txt``.
    """
    launcher_class = find_launcher(launcher)
    jobs = make_jobs(spec, output_dir, data_dir, domainbed)
    spec.load_criteria()
    _check_edited(jobs, output_dir)
    for job in jobs:
        if spec.hparams and job.state == "not launched":
            check_hparams(backends.find(job.args["dataset"], domainbed), job.args)
    _open_sweep(spec, output_dir)
    spec = as_begun(spec, _layers_begun(jobs))
    chosen = launcher_class(
        spec.train_options(), domainbed=domainbed, resources=spec.resources, parallel=processes, wait=wait
    )
    done = sum(job.state == "done" for job in jobs)
    print(f"{len(jobs)} runs, {done} done already; records go to {output_dir}", file=sys.stderr, flush=True)
    if done == len(jobs):
        return
    with _progress_bar() as show, _queueing(output_dir), _terminable():
        outcomes = chosen.run(jobs, show)
    _report(jobs, outcomes)


def _check_edited(jobs: Sequence[Job], output_dir: Path) -> None:
    """Refuse to train runs beside those of the same seeds that an earlier wording of the specification began."""
    same = {_seeds(job.args): job.args for job in jobs}
    names = {job.name for job in jobs}
    others = sorted(path.parent for path in output_dir.glob(f"*/{paths.RESULTS}") if path.parent.name not in names)
    for directory in others:
        before = run_files.first_record(directory).get("args")
        if not isinstance(before, dict) or (now := same.get(_seeds(before))) is None:
            continue
        for key in ("steps", "checkpoint_freq", "hparams", "holdout_fraction", "task"):
            if before.get(key) != now[key]:
                raise ConfigError(
                    f"{directory} was trained with {key} = {before.get(key)}, not {now[key]}; "
                    "choose another --output_dir, or delete the runs that the specification no longer means"
                )


def _seeds(args: Mapping[str, Any]) -> str:
    """What tells the runs of a specification apart."""
    varied = ("dataset", "algorithm", "test_envs", "hparams_seed", "trial_seed")
    return json.dumps([args.get(key) for key in varied])


def _layers_begun(jobs: Sequence[Job]) -> str | None:
    """Tell which layers the sweep's runs were begun with; None: none of them had a choice."""
    for job in jobs:
        nac = run_files.first_record(job.output_dir).get("nac")
        # the embedded testbed's network is none that the authors measured
        if isinstance(nac, dict) and not str(nac.get("testbed", "")).startswith("embedded"):
            return str(begun_layers(None, [str(layer) for layer in nac.get("layers") or ()]))
    return None


def _open_sweep(spec: SweepSpec, output_dir: Path) -> None:
    path = output_dir / paths.SETTINGS
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        os.close(files.open_regular(output_dir / paths.QUEUE, os.O_WRONLY | os.O_CREAT))
        before = json.loads(files.read_bytes(path)) if os.path.lexists(path) else None
    except OSError as error:
        raise ConfigError(
            f"--output_dir {output_dir} cannot be written: {error.strerror}; choose another"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path} is not JSON ({error}); delete it if its sweep is the one that you run"
        ) from error
    if before is not None and not isinstance(before, dict):
        raise ConfigError(f"{path} is no JSON object; delete it if its sweep is the one that you run")
    if before is not None and before.get("settings") is None:  # of a sweep begun from Python without any
        before["settings"] = CoverageSettings().as_json()
    measured = {**spec.as_json(), "eval_splits": spec.eval_splits, "keep": sorted(spec.keep)}
    if spec.average:
        measured["average"] = [sorted(spec.average), spec.average_from, spec.average_decay]
    text = json.dumps(measured, indent=2, sort_keys=True) + "\n"
    if before is None:
        run_files.write_atomically(path, lambda file: file.write(text.encode()))
        return
    now = json.loads(text)
    for key in {**now, **before}:
        if before.get(key) != now.get(key):
            value = now.get(key)
            raise ConfigError(
                f"{output_dir} holds a sweep with {key} = {before.get(key)}, not {value}; what was measured "
                "differently does not compare: choose another --output_dir"
            )


@contextlib.contextmanager
def _queueing(output_dir: Path) -> Iterator[None]:
    """Say, for as long as this process lives, that runs of the sweep are waiting."""
    with shared_lock(output_dir / paths.QUEUE):
        yield


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """End on SIGTERM as on Ctrl-C: the runs under way save their states."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        raise StoppedSweep("the sweep was stopped; run the same command again: it continues") from None
    finally:
        signal.signal(signal.SIGTERM, before)


class StoppedSweep(NacmeError):
    """A sweep that a signal ended."""

    exit_code = 75  # as InterruptedRun


@contextlib.contextmanager
def _progress_bar() -> Iterator[Callable[[Progress], None]]:
    from tqdm import tqdm

    # disable=None: a bar on a terminal, quiet in a pipe
    with tqdm(total=1.0, disable=None, bar_format=_FORM, file=sys.stderr) as bar:

        def show(progress: Progress) -> None:
            failed = f", {progress.failed} failed" if progress.failed else ""
            running = "; ".join(progress.running[:2]) + ("; ..." if len(progress.running) > 2 else "")
            bar.set_postfix_str(f"{progress.finished}/{progress.total} runs{failed}; {running}")
            bar.update(progress.fraction - bar.n)

        yield show


def _report(jobs: Sequence[Job], outcomes: Sequence[Outcome]) -> None:
    bad = [outcome for outcome in outcomes if outcome.state != "done"]
    for outcome in bad:
        say(f"{outcome.state}: {outcome.job} ({outcome.job.output_dir}): {outcome.reason}")
        for line in run_files.last_lines(outcome.job.output_dir / paths.ERR):
            print(f"    {printable(line)}", file=sys.stderr)
    if bad:
        job = bad[0].job
        raise NacmeError(
            f"{len(bad)} of {len(jobs)} runs did not end ({bad[0].state}: {job}: {bad[0].reason}); run the same "
            "command again to go on with them"
        )


def run_command(
    spec: str,
    output_dir: Path,
    data_dir: str | None,
    domainbed: str | None,
    launcher: str,
    processes: int | None,
    wait: bool,
) -> None:
    """``nacme sweep run``; arguments as for `run_sweep`, the specification by its path or name."""
    run_sweep(
        load_spec(spec),
        output_dir,
        data_dir=data_dir,
        domainbed=domainbed,
        launcher=launcher,
        processes=processes,
        wait=wait,
    )


def read_status(
    spec: SweepSpec, output_dir: Path, data_dir: str | None = None, domainbed: str | None = None
) -> list[RunStatus]:
    """Tell how far the runs of a sweep are, by their files and the launchers.

    Parameters
    ----------
    spec, output_dir, data_dir, domainbed
        As for `run_sweep`.

    Returns
    -------
    list of RunStatus
    """
    jobs = make_jobs(spec, output_dir, data_dir, domainbed)
    scheduled: dict[str, str] = {}
    for launcher in launchers().values():
        scheduled |= launcher.scheduled_runs(output_dir)
    if lock_note(output_dir / paths.QUEUE) is not None:
        scheduled = {**{job.name: "queued" for job in jobs}, **scheduled}
    return sweep_status(jobs, scheduled, domainbed)


def status_command(spec: str, output_dir: Path, data_dir: str | None, domainbed: str | None, form: Format) -> None:
    """``nacme sweep status``: a row for each run, and on standard error how many there are in each state."""
    import pandas as pd

    from nacme.output import write_frame

    statuses = read_status(load_spec(spec), output_dir, data_dir, domainbed)
    frame = pd.DataFrame([status.row() for status in statuses])
    for column in ("step", "steps"):
        frame[column] = frame[column].astype("Int64")
    write_frame(frame, form)
    print(_counts(statuses), file=sys.stderr)


def _counts(statuses: Sequence[RunStatus]) -> str:
    counts = Counter(status.state for status in statuses)
    return f"{len(statuses)} runs: " + ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))


def delete_command(spec: str, output_dir: Path, data_dir: str | None, domainbed: str | None, yes: bool) -> None:
    """``nacme sweep delete``: removes the directories of failed and interrupted runs, after asking."""
    statuses = read_status(load_spec(spec), output_dir, data_dir, domainbed)
    chosen = [status for status in statuses if status.state in ("failed", "interrupted")]
    if not chosen:
        print(f"nothing to delete; {_counts(statuses)}", file=sys.stderr)
        return
    for status in chosen:
        print(f"{status.state}: {status.job} ({status.job.output_dir})", file=sys.stderr)
    if not yes and not _confirmed(f"Delete the {len(chosen)} directories with what they hold?"):
        print("nothing was deleted", file=sys.stderr)
        return
    deleted = sum(_delete(output_dir, status.job.output_dir) for status in chosen)
    print(f"deleted {deleted} runs", file=sys.stderr)


def _delete(sweep: Path, run: Path) -> bool:
    """Delete a run's directory; say why where it is left alone."""
    if run.is_symlink() or not files.inside(sweep, run):
        say(f"{run} is a link; left alone")
        return False
    try:
        with locked(run):
            shutil.rmtree(run)
    except NacmeError as error:  # whoever started it in the meantime keeps it
        say(f"{error}; left alone")
        return False
    except OSError as error:
        say(f"{error.filename or run} cannot be deleted: {error.strerror}")
        return False
    return True


def _confirmed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise ConfigError("there is no terminal to ask on; add --yes to go ahead")
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


def plan_command(
    spec: str, output_dir: Path | None, data_dir: str | None, domainbed: str | None, form: Format
) -> None:
    """``nacme sweep plan``: how many runs, steps, checkpoints, bytes and hours."""
    from domainbed_plugins.sweep.plan import plan

    plan(load_spec(spec), output_dir, data_dir, domainbed, form)
