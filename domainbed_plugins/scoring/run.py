"""Measuring every saved checkpoint of a sweep, and adding what is found to the records of its runs."""

from __future__ import annotations

import os
from collections import Counter, defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domainbed_plugins.recording.options import as_begun, begun_layers
from domainbed_plugins.runs.counts import SHAM, CountStore
from domainbed_plugins.runs.paths import SCORED_COUNTS
from domainbed_plugins.runs.records import Ledger
from domainbed_plugins.runs.saved import Job, find_jobs
from domainbed_plugins.scoring.options import ScoreOptions
from nacme.errors import ConfigError, NacmeError
from nacme.records.run import RESULTS

if TYPE_CHECKING:
    from domainbed_plugins.scoring.groups import Measured


#: A checkpoint's accuracies may differ by so much from those that training recorded before it is said.
ACCURACY_GAP = 0.005


@dataclass
class Outcome:
    """What became of a sweep's checkpoints.

    Attributes
    ----------
    measured, skipped, degenerate : int
        Checkpoints: measured now, found done, of those measured now with degenerate coverage.
    failures : list of str
        One line for each that could not be measured.
    accuracy_gap : float
        Largest difference of a split's accuracy from the one that training recorded.
    apart : int
        Checkpoints where it is above `ACCURACY_GAP`.
    hidden : int
        Checkpoints of which training recorded coverage with other settings.
    """

    measured: int = 0
    skipped: int = 0
    degenerate: int = 0
    failures: list[str] = field(default_factory=list)
    accuracy_gap: float = 0.0
    apart: int = 0
    hidden: int = 0


def score(
    sweep: str | os.PathLike[str],
    data_dir: str | None,
    options: ScoreOptions,
    *,
    domainbed: str | None = None,
    cache_gb: float | None = None,
    n_workers: int | None = None,
    models: int | None = None,
    overwrite: bool = False,
) -> Outcome:
    """Measure every saved checkpoint of a sweep.

    Parameters
    ----------
    sweep : path-like
        A sweep directory, or a single run's.
    data_dir : str or None
        As DomainBed's ``--data_dir``.
    options : ScoreOptions
    domainbed : str, optional
        A DomainBed clone.
    cache_gb : float, optional
        Gibibytes of decoded data to keep. None: half of the free memory.
    n_workers : int, optional
        Processes that decode images. None: by the machine's cores.
    models : int, optional
        Checkpoints measured at a time, on the same batches. None: as many as memory allows, up to eight.
    overwrite : bool
        Whether to measure everything anew and to forget what was measured before. Otherwise only what is missing
        is measured, and put beside it.

    Returns
    -------
    Outcome

    Raises
    ------
    NacmeError
        If there is nothing to measure, or the data cannot be read. What is wrong with one checkpoint stands in
        the outcome.
    """
    from tqdm import tqdm

    from domainbed_plugins.scoring.groups import GroupScorer

    if models is not None and models < 1:
        raise ConfigError(f"--models {models}: at least one at a time; leave the flag away to let memory decide")
    options.load_criteria()
    _check_criteria(options)
    if data_dir is not None and not Path(data_dir).is_dir():
        raise ConfigError(f"--data_dir {data_dir} is not a directory; give the folder that training read")
    outcome = Outcome()
    jobs = find_jobs(Path(sweep), outcome.failures)
    ledgers = {job.directory: Ledger(job.directory, options.asked()) for job in jobs}
    lacking = [
        (job, None if overwrite else options.lacking(ledgers[job.directory].record(job.step))) for job in jobs
    ]
    waiting = [job for job, names in lacking if names is None or names]
    outcome.skipped = len(jobs) - len(waiting)
    if options.criteria is not None and all(names is not None for _, names in lacking):
        missing = {name for _, names in lacking for name in names or ()}
        options = replace(options, criteria=[name for name in options.criteria if name in missing])
    # runs that share a data set and its splits stand together
    waiting.sort(key=lambda job: (*_sharing(job.args), str(job.directory), job.step))
    # a run's file that was begun at the penultimate layer goes on there, unless layers are asked for
    queues: dict[str | None, deque[Job]] = defaultdict(deque)
    for job in waiting:
        queues[_layers_begun(ledgers[job.directory])].append(job)
    with tqdm(total=len(waiting), desc="score", unit="checkpoint", disable=None) as bar:
        for layers, queue in queues.items():
            here = as_begun(options, layers)
            scorer = GroupScorer(data_dir, here, domainbed, cache_gb, n_workers, models)
            shams = _Shams(here, queue)
            while queue:
                for job, result in scorer.measure_next(queue):
                    if isinstance(result, Exception):
                        outcome.failures.append(_failure(job, result))
                    else:
                        shams.keep(job, result)
                        ledgers[job.directory].add(job.step, result.record, overwrite=overwrite)
                        _note(outcome, job, result)
                    shams.end(job, ledgers[job.directory])
                    bar.update()
    return outcome


class _Shams:
    """Keeps what each checkpoint counted until its run is scored, and adds the sham that needs all of them.

    A run whose training recorded ``nac_me`` has the sham of that; it gets no other.
    """

    def __init__(self, options: ScoreOptions, jobs: Iterable[Job]) -> None:
        self._options = options
        self._left = Counter(job.directory for job in jobs)

    def keep(self, job: Job, measured: Measured) -> None:
        wanted = self._options.criteria is None or SHAM in self._options.criteria
        if wanted and "nac_me" not in job.recorded:
            self._store(job).add(job.step, measured.counts, measured.record)

    def end(self, job: Job, ledger: Ledger) -> None:
        """Count a checkpoint as dealt with; with a run's last, write down its shams."""
        self._left[job.directory] -= 1
        if not self._left[job.directory]:
            store = self._store(job)
            values = store.shams(ledger.steps(), self._options.settings.fill, job.args["seed"])
            ledger.update({step: {SHAM: value} for step, value in values.items()})
            store.clear()

    def _store(self, job: Job) -> CountStore:
        return CountStore(job.directory / SCORED_COUNTS, self._options.asked())


def _layers_begun(ledger: Ledger) -> str | None:
    """Tell which layers a run's scoring was begun with; None where it was not, or at layers of the user's own."""
    nac = ledger.measured()
    if not nac or nac.get("testbed", "").startswith("embedded"):
        return None  # the embedded testbed's network is none that the authors measured
    layers = begun_layers(nac["asked"]["layers"], nac["layers"])
    return layers if isinstance(layers, str) else None


def _note(outcome: Outcome, job: Job, measured: Measured) -> None:
    """Add to a sweep's outcome what is odd about a checkpoint."""
    nac = measured.record["nac"]
    outcome.measured += 1
    outcome.degenerate += nac["degenerate"]
    outcome.accuracy_gap = max(outcome.accuracy_gap, measured.accuracy_gap)
    outcome.apart += measured.accuracy_gap > ACCURACY_GAP
    in_run = job.recorded.get("nac") or {}
    settings = ("alpha", "bins", "fill", "correct_only", "split", "layers")
    outcome.hidden += any(in_run.get(key, nac[key]) != nac[key] for key in settings)


def _failure(job: Job, error: Exception) -> str:
    """Say in one line why a checkpoint could not be measured."""
    if isinstance(error, NacmeError):
        return str(error) if str(job.checkpoint) in str(error) else f"{job.checkpoint}: {error}"
    first = str(error).partition("\n")[0]
    return f"{job.checkpoint} cannot be measured: {type(error).__name__}: {first}"


def _sharing(args: dict[str, Any]) -> tuple[Any, ...]:
    """Order runs so that those that may share decoded data follow one another."""
    holdout = args.get("holdout_fraction", 0.2)
    return args["dataset"], args["trial_seed"], holdout, args["seed"], args["test_envs"], args["algorithm"]


def _check_criteria(options: ScoreOptions) -> None:
    """Refuse criteria that no pass over data gives."""
    from nacme.criteria.registry import VARIANT_PREFIX, get_criterion, recorded_names

    for name in options.criteria or ():
        if not get_criterion(name).is_recorded:
            raise ConfigError(f"--criteria {name}: it follows from {RESULTS} and needs no measuring")
        if name.startswith(VARIANT_PREFIX) and name not in recorded_names():
            raise ConfigError(f"--criteria {name}: other settings of NAC-ME are named by --nac_grid")
