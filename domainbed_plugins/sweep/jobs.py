"""Sweeps: which runs a study needs, where each one lives, and how far it is.

Source: ``domainbed/scripts/sweep.py`` decides the arguments of a run, its seed and the name of its directory; they
are kept, so that either program finds the other's runs.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from domainbed_plugins.backends import find as backends
from domainbed_plugins.backends.arguments import STOCK_FLAGS
from domainbed_plugins.recording.options import RecordOptions
from nacme.errors import ConfigError
from nacme.settings import CoverageSettings

#: Words for the test environments of a sweep's runs.
COMBINATIONS = ("single", "pairs", "pairs_only", "single_source")

#: A sweep of more is a mistake in its specification.
MOST_RUNS = 200_000

State = Literal["not launched", "incomplete", "done"]


@dataclass(frozen=True)
class Resources:
    """What a run asks of Slurm; None: the cluster's default.

    Attributes
    ----------
    partition, account : str, optional
    time : str, optional
        Such as ``"24:00:00"``. A run that needs longer is queued again and goes on.
    gpus, cpus : int
    mem : str, optional
        Such as ``"16G"``.
    parallel : int
        How many runs at a time.
    """

    partition: str | None = None
    account: str | None = None
    time: str | None = None
    gpus: int = 0
    cpus: int = 1
    mem: str | None = None
    parallel: int = 100


@dataclass(frozen=True)
class SweepSpec(RecordOptions):
    """The runs of a sweep, as the product of what varies, and how each is trained and recorded.

    Attributes
    ----------
    datasets, algorithms : sequence of str
    test_envs : {"single", "pairs", "pairs_only", "single_source"} or sequence of sequence of int
        ``"single"``: each environment in turn. ``"pairs"``: each environment and each pair, as DomainBed's
        leave-one-domain-out cross-validation needs. ``"pairs_only"``: each pair. ``"single_source"``: all but
        one, so that each environment in turn is trained on alone.
    hparams_seeds, trial_seeds : sequence of int
    steps, checkpoint_freq : int, optional
        None: the data set's.
    hparams : mapping
        Overrides what is drawn.
    eval_splits, n_workers
        See `domainbed_plugins.training.options.TrainOptions`.
    keep : sequence of str
        Checkpoints that stay on disk: ``"all"``, or some of ``"last"`` and ``"best:CRITERION"``. None given: the
        last model, as DomainBed does.
    average, average_from, average_decay
        See `domainbed_plugins.training.run.TrainOptions`.
    resources : Resources
        For Slurm.
    """

    settings: CoverageSettings = field(default_factory=CoverageSettings, kw_only=True)
    datasets: Sequence[str]
    algorithms: Sequence[str]
    test_envs: str | Sequence[Sequence[int]] = "single"
    hparams_seeds: Sequence[int] = (0,)
    trial_seeds: Sequence[int] = (0,)
    steps: int | None = None
    checkpoint_freq: int | None = None
    hparams: Mapping[str, Any] = field(default_factory=dict)
    eval_splits: str = "all"
    n_workers: int | str | None = None
    keep: Sequence[str] = ()
    average: Sequence[str] = ()
    average_from: int | float = 0.4
    average_decay: float = 0.995
    resources: Resources = Resources()

    def train_options(self) -> dict[str, Any]:
        """Fields of `domainbed_plugins.training.options.TrainOptions`."""
        names = [field.name for field in fields(RecordOptions)]
        names += ["eval_splits", "n_workers", "keep", "average", "average_from", "average_decay"]
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes
    ----------
    args : dict
        Arguments of `domainbed_plugins.training.run.train`, ``output_dir`` among them.
    """

    args: dict[str, Any]

    @property
    def output_dir(self) -> Path:
        """Where the run lives."""
        return Path(self.args["output_dir"])

    @property
    def state(self) -> State:
        """How far it is, by its files."""
        if (self.output_dir / "done").exists():
            return "done"
        return "incomplete" if self.output_dir.exists() else "not launched"

    @property
    def name(self) -> str:
        """Of its directory."""
        return self.output_dir.name

    def __str__(self) -> str:
        a = self.args
        envs = ",".join(map(str, a["test_envs"]))
        return (
            f"{a['dataset']} {a['algorithm']} test env {envs} hparams {a['hparams_seed']} trial {a['trial_seed']}"
        )


def make_jobs(spec: SweepSpec, output_dir: Path, data_dir: str | None, domainbed: str | None = None) -> list[Job]:
    """List the runs of a sweep.

    Parameters
    ----------
    spec : SweepSpec
    output_dir : path
        Of the sweep.
    data_dir : str or None
        Where DomainBed's data sets are; the embedded ones need none.
    domainbed : str, optional
        A DomainBed clone.

    Returns
    -------
    list of Job
        In a fixed order.

    Raises
    ------
    ConfigError
        If a testbed cannot be found or does not know a data set or algorithm, or ``test_envs`` does not fit it.
    """
    from domainbed_plugins.backends.arguments import check_names

    jobs: list[Job] = []
    for trial_seed, dataset, algorithm in itertools.product(spec.trial_seeds, spec.datasets, spec.algorithms):
        testbed = backends.find(dataset, domainbed)
        check_names(testbed, {"dataset": dataset, "algorithm": algorithm, "test_envs": []})
        combinations = _test_envs(spec.test_envs, testbed.datasets.num_environments(dataset))
        axes = (spec.trial_seeds, spec.datasets, spec.algorithms, combinations, spec.hparams_seeds)
        if (count := math.prod(map(len, axes))) > MOST_RUNS:
            raise ConfigError(f"the specification asks for {count:,} runs; at most {MOST_RUNS:,} make a sweep")
        for test_envs, hparams_seed in itertools.product(combinations, spec.hparams_seeds):
            varied: dict[str, Any] = {
                "dataset": dataset,
                "algorithm": algorithm,
                "test_envs": test_envs,
                "holdout_fraction": STOCK_FLAGS["holdout_fraction"]["default"],
                "hparams_seed": hparams_seed,
                "data_dir": data_dir,
                "task": STOCK_FLAGS["task"]["default"],
                "trial_seed": trial_seed,
                "seed": testbed.misc.seed_hash(dataset, algorithm, test_envs, hparams_seed, trial_seed),
            }
            if spec.steps is not None:
                varied["steps"] = spec.steps
            if spec.checkpoint_freq is not None:
                varied["checkpoint_freq"] = spec.checkpoint_freq
            if spec.hparams:
                varied["hparams"] = json.dumps(dict(spec.hparams))
            name = hashlib.md5(json.dumps(varied, sort_keys=True).encode()).hexdigest()
            defaults = {flag: options.get("default") for flag, options in STOCK_FLAGS.items()}
            switches = {flag: False for flag, options in STOCK_FLAGS.items() if "action" in options}
            switches["save_model_every_checkpoint"] = bool(spec.keep)
            args = {**defaults, **switches, **varied, "output_dir": str(Path(output_dir) / name)}
            check_names(testbed, args)
            jobs.append(Job(args))
    return jobs


def _test_envs(wanted: str | Sequence[Sequence[int]], count: int) -> list[list[int]]:
    if wanted == "single":
        return [[env] for env in range(count)]
    if wanted == "pairs":
        return [[i] if i == j else [i, j] for i in range(count) for j in range(i, count)]
    if wanted == "pairs_only":
        return [list(pair) for pair in itertools.combinations(range(count), 2)]
    if wanted == "single_source":
        return [[env for env in range(count) if env != source] for source in range(count)]
    if isinstance(wanted, str):
        raise ConfigError(f"test_envs={wanted!r} is unknown; use {', '.join(map(repr, COMBINATIONS))}, or a list")
    return [list(envs) for envs in wanted]
