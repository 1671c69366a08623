"""Measuring the checkpoints of finished runs, whoever trained them: ``nacme score``.

Writes ``nac.jsonl`` beside each ``results.jsonl``, one line for each step, and changes nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domainbed_plugins.scored_runs import Job, Ledger, find_jobs
from domainbed_plugins.train import add_coverage_flags, coverage_settings, parse_grid
from nacme.criteria import load_criteria_module
from nacme.errors import ConfigError, NacmeError, NacmeWarning, SweepError
from nacme.run_reader import RESULTS

if TYPE_CHECKING:
    from torch import nn

    from domainbed_plugins.backends import Testbed
    from domainbed_plugins.validation_data import ValidationData
    from nacme.measurement import CoverageSettings

#: A checkpoint's accuracies may differ by so much from those that training recorded before it is said.
ACCURACY_GAP = 0.005


@dataclass(frozen=True)
class ScoreOptions:
    """How checkpoints are measured.

    Attributes
    ----------
    settings : CoverageSettings
    grid : tuple of CoverageSettings
        Further settings to record from the same pass.
    layers : list of str, optional
        None: penultimate features.
    split : {"out", "in"}
        The training environments' splits that coverage is measured on.
    criteria : list of str, optional
        The criteria to record beside NAC-ME and the validation loss. None: all that take no further pass.
    target_unlabeled : bool
        Whether to record criteria that look at unlabelled target data: the test environments' ``out`` splits.
    """

    settings: CoverageSettings
    grid: tuple[CoverageSettings, ...] = ()
    layers: list[str] | None = None
    split: str = "out"
    criteria: list[str] | None = None
    target_unlabeled: bool = False

    def asked(self) -> dict[str, Any]:
        """Say in JSON what is asked for; a step that has it on record is done."""
        return {
            "settings": asdict(self.settings),
            "grid": [asdict(settings) for settings in self.grid],
            "layers": self.layers,
            "split": self.split,
            "criteria": sorted(self.criteria) if self.criteria is not None else None,
            "target_unlabeled": self.target_unlabeled,
        }


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


def parser() -> argparse.ArgumentParser:
    """Build the parser.

    Returns
    -------
    argparse.ArgumentParser
    """
    result = argparse.ArgumentParser(
        prog="nacme score",
        description="Measure the saved checkpoints of a sweep (or of one run) and write nac.jsonl beside each "
        "results.jsonl. Checkpoints measured already with the same settings are skipped.",
    )
    result.add_argument("sweep", metavar="SWEEP", type=Path)
    result.add_argument("--data_dir", help="the data, as for training")
    add_coverage_flags(result)
    running = result.add_argument_group("running")
    running.add_argument("--cache_gb", type=float, help="memory for decoded data; default: half of what is free")
    running.add_argument("--n_workers", type=int, help="processes that decode images; default: by the cores")
    running.add_argument("--domainbed", metavar="PATH", help="a DomainBed clone; default: DOMAINBED_ROOT")
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Parse flags and measure.

    Parameters
    ----------
    argv : sequence of str, optional
        None: the process's arguments.

    Raises
    ------
    NacmeError
        For a user's mistake, or if a checkpoint could not be measured.
    """
    flags = parser().parse_args(argv)
    if flags.criteria_module:
        load_criteria_module(flags.criteria_module)
    settings = coverage_settings(flags)
    options = ScoreOptions(
        settings=settings,
        grid=parse_grid(flags.nac_grid, settings),
        layers=flags.nac_layers,
        split=flags.nac_split,
        criteria=flags.criteria,
        target_unlabeled=flags.target_unlabeled,
    )
    outcome = score(
        flags.sweep,
        flags.data_dir,
        options,
        domainbed=flags.domainbed,
        cache_gb=flags.cache_gb,
        n_workers=flags.n_workers,
    )
    _report(outcome)


def score(
    sweep: str | os.PathLike[str],
    data_dir: str | None,
    options: ScoreOptions,
    *,
    domainbed: str | None = None,
    cache_gb: float | None = None,
    n_workers: int | None = None,
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

    _check_criteria(options)
    if data_dir is not None and not Path(data_dir).is_dir():
        raise ConfigError(f"--data_dir {data_dir} is not a directory; give the folder that training read")
    outcome = Outcome()
    jobs = find_jobs(Path(sweep), outcome.failures)
    ledgers = {job.directory: Ledger(job.directory, options.asked()) for job in jobs}
    waiting = [job for job in jobs if not ledgers[job.directory].holds(job.step)]
    outcome.skipped = len(jobs) - len(waiting)
    scorer = _Scorer(data_dir, options, domainbed, cache_gb, n_workers)
    # runs that share a data set and its splits stand together
    waiting.sort(key=lambda job: (*_sharing(job.args), str(job.directory), job.step))
    for job in tqdm(waiting, desc="score", unit="checkpoint", disable=None):
        try:
            record = scorer.measure(job, outcome)
        except ConfigError:
            raise
        except NacmeError as error:
            named = str(job.checkpoint) in str(error)
            outcome.failures.append(str(error) if named else f"{job.checkpoint}: {error}")
        except Exception as error:  # algorithms of others may raise anything
            first = str(error).partition("\n")[0]
            outcome.failures.append(f"{job.checkpoint} cannot be measured: {type(error).__name__}: {first}")
        else:
            ledgers[job.directory].add(job.step, record)
            outcome.measured += 1
    return outcome


class _Scorer:
    """Measures checkpoint after checkpoint and keeps what the next one can use: data, and the network."""

    def __init__(
        self,
        data_dir: str | None,
        options: ScoreOptions,
        domainbed: str | None,
        cache_gb: float | None,
        n_workers: int | None,
    ) -> None:
        from domainbed_plugins import validation_data as data

        self._data_dir = data_dir
        self._options = options
        self._domainbed = domainbed
        self._cache_bytes = data.default_cache_bytes() if cache_gb is None else int(cache_gb * 2**30)
        self._n_workers = data.default_workers() if n_workers is None else n_workers
        self._opened: tuple[Testbed, ValidationData] | None = None
        self._built: tuple[Any, nn.Module] | None = None

    def measure(self, job: Job, outcome: Outcome) -> dict[str, Any]:
        """Measure one checkpoint; note in ``outcome`` what is odd about it."""
        import torch

        from domainbed_plugins.checkpoints import load_checkpoint, load_weights
        from nacme.recorder import Recorder

        testbed, data = self._open(job)
        # before the data is decoded: a corrupt file costs nothing then
        state = load_checkpoint(job.checkpoint)["model_dict"]
        dataset = data.open(job.args, job.hparams)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        algorithm = self._build(testbed, dataset, job).to(device)
        load_weights(algorithm, state, job.checkpoint)

        options = self._options
        envs = [env for env in range(len(dataset)) if env not in job.args["test_envs"]]
        targets = job.args["test_envs"] if options.target_unlabeled else []
        covered, validated, unlabeled = (
            [f"env{env}_{split}" for env in part]
            for part, split in ((envs, options.split), (envs, "out"), (targets, "out"))
        )
        loaders = {name: data.loader(name) for name in dict.fromkeys([*covered, *validated, *unlabeled])}
        recorder = Recorder(
            algorithm,
            {name: loaders[name] for name in validated},
            coverage_loaders={name: loaders[name] for name in covered},
            criteria=options.criteria,
            target_loaders={name: loaders[name] for name in unlabeled},
            settings=options.settings,
            grid=options.grid,
            layers=options.layers,
            device=device,
            notes={"split": options.split, "testbed": str(testbed), "augmented": False},
        )
        recorder.warned = True  # said once for all checkpoints
        # some algorithms draw random numbers to predict; so scoring again gives the same
        torch.manual_seed(testbed.misc.seed_hash(job.args["seed"], job.step))
        recording = recorder.start()
        gaps = [0.0]
        for name, loader in loaders.items():
            recorded = job.recorded.get(f"{name}_acc") if job.recorded["step"] == job.step else None
            accuracy = recording.evaluate(name, loader)
            gaps += [] if recorded is None else [abs(accuracy - recorded)]
        record = recording.finish()
        outcome.degenerate += record["nac"]["degenerate"]
        outcome.accuracy_gap = max(outcome.accuracy_gap, *gaps)
        outcome.apart += max(gaps) > ACCURACY_GAP
        in_run = job.recorded.get("nac") or {}
        settings = ("alpha", "bins", "fill", "correct_only", "split", "layers")
        outcome.hidden += any(in_run.get(key, record["nac"][key]) != record["nac"][key] for key in settings)
        return record

    def _open(self, job: Job) -> tuple[Testbed, ValidationData]:
        from domainbed_plugins import backends
        from domainbed_plugins.validation_data import ValidationData

        testbed = backends.find(job.args["dataset"], self._domainbed)
        if self._opened is None or self._opened[0].name != testbed.name:
            data = ValidationData(testbed, self._data_dir, self._cache_bytes, self._n_workers)
            self._opened = testbed, data
        return self._opened

    def _build(self, testbed: Testbed, dataset: Any, job: Job) -> nn.Module:
        """Build the job's network, or take the last one if it is alike."""
        from domainbed_plugins.checkpoints import build_algorithm

        shape, classes = dataset.input_shape, dataset.num_classes
        domains = len(dataset) - len(job.args["test_envs"])
        kind = (job.args["dataset"], job.args["algorithm"], domains, json.dumps(job.hparams, sort_keys=True))
        if self._built is None or self._built[0] != kind:
            self._built = None  # two networks need not fit into memory
            algorithm = build_algorithm(testbed, job.args["algorithm"], shape, classes, domains, job.hparams)
            self._built = kind, algorithm
        return self._built[1]


def _sharing(args: dict[str, Any]) -> tuple[Any, ...]:
    """Order runs so that those that may share decoded data follow one another."""
    holdout = args.get("holdout_fraction", 0.2)
    return args["dataset"], args["trial_seed"], holdout, args["seed"], args["test_envs"], args["algorithm"]


def _check_criteria(options: ScoreOptions) -> None:
    """Refuse criteria that no pass over data gives."""
    from nacme.criteria import VARIANT_PREFIX, get_criterion, recorded_names

    for name in options.criteria or ():
        if not get_criterion(name).is_recorded:
            raise ConfigError(f"--criteria {name}: it follows from {RESULTS} and needs no measuring")
        if name.startswith(VARIANT_PREFIX) and name not in recorded_names():
            raise ConfigError(f"--criteria {name}: other settings of NAC-ME are named by --nac_grid")


def _report(outcome: Outcome) -> None:
    """Say what became of the checkpoints, on standard error; fail if one could not be measured."""
    import warnings

    print(f"nacme: {outcome.measured} measured, {outcome.skipped} done before", file=sys.stderr)
    if outcome.degenerate:
        warnings.warn(
            f"coverage is degenerate at {outcome.degenerate} of {outcome.measured} checkpoints: NAC-ME says "
            "little more there than how many samples were counted; try --nac_alpha auto, or --nac_grid",
            NacmeWarning,
            stacklevel=2,
        )
    if outcome.apart:
        warnings.warn(
            f"at {outcome.apart} of {outcome.measured} checkpoints validation accuracies differ from the recorded "
            f"ones, by up to {100 * outcome.accuracy_gap:.1f} points: expected where training augmented its "
            "validation images or predicting draws random numbers; else check --data_dir",
            NacmeWarning,
            stacklevel=2,
        )
    if outcome.hidden:
        warnings.warn(
            f"training recorded coverage of {outcome.hidden} of these checkpoints with other settings: its nac_me "
            f"stands in {RESULTS} and goes before the one measured now; --nac_grid gives keys of their own",
            NacmeWarning,
            stacklevel=2,
        )
    if outcome.failures:
        for failure in outcome.failures:
            print(f"nacme: {failure}", file=sys.stderr)
        raise SweepError(
            f"{len(outcome.failures)} of {len(outcome.failures) + outcome.measured + outcome.skipped} checkpoints "
            "could not be measured; the others were"
        )
