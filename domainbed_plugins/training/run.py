"""Setting up a run as DomainBed does: its hyper-parameters, data, splits and output directory; then training it.

Source: ``domainbed/scripts/train.py``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import PIL
import torch
import torchvision

import nacme
from domainbed_plugins.backends.find import Testbed, embedded
from domainbed_plugins.runs import files as run_files
from domainbed_plugins.runs.keep import check_keep
from domainbed_plugins.train import parse_hparams
from domainbed_plugins.training.loop import EVAL_BATCH_SIZE as EVAL_BATCH_SIZE
from domainbed_plugins.training.loop import Training, check_same
from nacme.errors import ConfigError, NacmeError, nearest
from nacme.settings import CoverageSettings


@dataclass(frozen=True)
class TrainOptions:
    """What the plugin adds to DomainBed's arguments.

    Attributes
    ----------
    settings : CoverageSettings
    grid : tuple of CoverageSettings
        Further settings to record from the same pass.
    layers : sequence of str, optional
        None: penultimate features.
    split : {"out", "in"}
        The training environments' splits that coverage is measured on.
    criteria : list of str, optional
        Criteria to record beside NAC-ME and the validation loss. None: all that take no further pass.
    target_unlabeled : bool
        Whether to record criteria that look at unlabelled target data, the test environments' ``out`` splits.
    eval_splits : {"all", "fast"}
        ``"fast"`` leaves out the training environments' ``in`` splits, unless coverage is measured there. It
        draws other random numbers than DomainBed does.
    n_workers : int or "auto", optional
        Workers of each loader; ``"auto"`` shares out the machine's cores. None: the data set's.
    keep : sequence of str
        Which saved checkpoints stay on disk: see `domainbed_plugins.runs.keep`. None given: all that are saved.
    on_step : callable, optional
        Called after each step with ``(step, n_steps)``.
    """

    settings: CoverageSettings = field(default_factory=CoverageSettings)
    grid: tuple[CoverageSettings, ...] = ()
    layers: list[str] | None = None
    split: str = "out"
    criteria: list[str] | None = None
    target_unlabeled: bool = False
    eval_splits: str = "all"
    n_workers: int | str | None = None
    keep: Sequence[str] = ()
    on_step: Callable[[int, int], None] | None = None


@dataclass(frozen=True)
class Splits:
    """A data set's environments, split as DomainBed splits them.

    Attributes
    ----------
    dataset : DomainBed data set
    train : list of (int, dataset, weights)
        What is trained on: ``in`` splits of the training environments.
    uda : list of (dataset, weights)
        Unlabelled target splits.
    by_name : dict of str to dataset
        What is evaluated, in DomainBed's order: every ``env{i}_in``, ``env{i}_out``, ``env{i}_uda``.
    hash : str
        Of what decides which sample is in which split: the environments' sizes, the splits' and their seeds.
    """

    dataset: Any
    train: list[tuple[int, Any, Any]]
    uda: list[tuple[Any, Any]]
    by_name: dict[str, Any]
    hash: str


def train(testbed: Testbed, args: Mapping[str, Any], options: TrainOptions | None = None) -> None:
    """Train one run into its output directory; one that was interrupted goes on where its state was saved.

    Parameters
    ----------
    testbed : Testbed
    args : mapping
        DomainBed's arguments, by flag name.
    options : TrainOptions, optional

    Raises
    ------
    ConfigError
        For arguments that cannot work; nothing has been written then.
    BusyError
        If another process is training the run.
    InterruptedRun
        After SIGTERM or SIGUSR1.
    """
    args, options = dict(args), options or TrainOptions()
    check_names(testbed, args)
    check_keep(options.keep, skip_model_save=args["skip_model_save"])
    args["save_model_every_checkpoint"] = args["save_model_every_checkpoint"] or bool(options.keep)
    hparams = make_hparams(testbed, args)
    output = Path(args["output_dir"])
    if (output / run_files.DONE).exists():
        print(f"{output} is done; nothing to train", file=sys.stderr)
        return
    _open_output(output)
    with run_files.locked(output) as lock:
        if (output / run_files.DONE).exists():  # by whoever held the lock
            return
        try:
            with _teed(testbed, output):
                _begin(testbed, args, hparams, options, output).run(lock)
        except OSError as error:
            if not run_files.is_disk_full(error):
                raise
            raise NacmeError(
                f"{output}: {error.strerror}; free space, then start the run again: it continues"
            ) from error


def _begin(
    testbed: Testbed, args: dict[str, Any], hparams: dict[str, Any], options: TrainOptions, output: Path
) -> Training:
    """Make a run ready for its first step, or for the one after its saved state."""
    state = _resumable(output, args, options)
    (output / run_files.FAILED).unlink(missing_ok=True)
    run_files.sweep_away(output)
    _describe(testbed, args, hparams)
    seed_everything(args["seed"])
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    splits = make_splits(testbed, args, hparams)
    training = Training(testbed, args, hparams, splits, options, output, state)
    if state:
        run_files.rewind_records(output, state["records"], state["line"])
        print(f"Resumed before step {training.step} of {training.n_steps}")
    return training


def check_names(testbed: Testbed, args: Mapping[str, Any]) -> None:
    """Refuse an unknown data set or algorithm, or a test environment out of range.

    Parameters
    ----------
    testbed : Testbed
    args : mapping

    Raises
    ------
    ConfigError
    """
    try:
        testbed.algorithms.get_algorithm_class(args["algorithm"])
    except NotImplementedError:
        raise ConfigError(
            f"--algorithm {args['algorithm']!r} is unknown to {testbed.name}; "
            f"{nearest(args['algorithm'], testbed.algorithms.ALGORITHMS)}"
        ) from None
    if args["dataset"] not in testbed.datasets.DATASETS:
        known = dict.fromkeys([*testbed.datasets.DATASETS, *embedded().datasets.DATASETS])
        raise ConfigError(
            f"--dataset {args['dataset']!r} is unknown to {testbed.name}; {nearest(args['dataset'], known)}"
        )
    count = testbed.datasets.num_environments(args["dataset"])
    wrong = [env for env in args["test_envs"] if not 0 <= env < count]
    if wrong:
        raise ConfigError(f"--test_envs {wrong[0]} is out of range: {args['dataset']} has envs 0 to {count - 1}")
    if len(set(args["test_envs"])) == count:
        raise ConfigError("--test_envs names every environment; leave at least one to train on")


def make_hparams(testbed: Testbed, args: Mapping[str, Any]) -> dict[str, Any]:
    """Draw a run's hyper-parameters as DomainBed does.

    Parameters
    ----------
    testbed : Testbed
    args : mapping

    Returns
    -------
    dict

    Raises
    ------
    ConfigError
        If ``hparams`` is no JSON object.
    """
    registry = testbed.hparams_registry
    if args["hparams_seed"] == 0:
        hparams = registry.default_hparams(args["algorithm"], args["dataset"])
    else:
        seed = testbed.misc.seed_hash(args["hparams_seed"], args["trial_seed"])
        hparams = registry.random_hparams(args["algorithm"], args["dataset"], seed)
    return {**hparams, **parse_hparams(args["hparams"])}


def make_dataset(testbed: Testbed, args: Mapping[str, Any], hparams: Mapping[str, Any]) -> Any:
    """Load a data set.

    Parameters
    ----------
    testbed : Testbed
    args, hparams : mapping

    Returns
    -------
    DomainBed data set

    Raises
    ------
    ConfigError
        If the data cannot be found.
    """
    make = testbed.datasets.get_dataset_class(args["dataset"])
    try:
        return make(args["data_dir"], args["test_envs"], hparams)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"--data_dir {args['data_dir']}: {args['dataset']} cannot be read there: {error}"
        ) from error


def seed_everything(seed: int) -> None:
    """Seed the global generators that data sets and algorithms draw from, as DomainBed does.

    Parameters
    ----------
    seed : int
    """
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the algorithms draw from the global generators
    torch.manual_seed(seed)


def make_splits(testbed: Testbed, args: Mapping[str, Any], hparams: Mapping[str, Any]) -> Splits:
    """Load a data set and split its environments as DomainBed does.

    Parameters
    ----------
    testbed : Testbed
    args, hparams : mapping

    Returns
    -------
    Splits

    Raises
    ------
    ConfigError
        If the data cannot be found, or a split is too small.
    """
    dataset = make_dataset(testbed, args, hparams)
    misc, balanced = testbed.misc, hparams["class_balanced"]

    def weighted(split: Any) -> tuple[Any, Any]:
        return split, misc.make_weights_for_balanced_classes(split) if balanced else None

    ins, outs, udas, parts = [], [], [], []
    for index, env in enumerate(dataset):
        seed = misc.seed_hash(args["trial_seed"], index)
        out, in_ = misc.split_dataset(env, int(len(env) * args["holdout_fraction"]), seed)
        uda = []
        if index in args["test_envs"]:
            uda, in_ = misc.split_dataset(in_, int(len(in_) * args["uda_holdout_fraction"]), seed)
        parts.append((args["dataset"], index, seed, len(env), len(out), len(uda)))
        ins.append(weighted(in_))
        outs.append(weighted(out))
        if len(uda):
            udas.append(weighted(uda))
        if not len(out):
            raise ConfigError(
                f"--holdout_fraction {args['holdout_fraction']} leaves env {index} ({len(env)} samples) without a "
                "validation split; raise it"
            )
    if args["task"] == "domain_adaptation" and not udas:
        raise ConfigError("--task domain_adaptation needs unlabelled samples; set --uda_holdout_fraction above 0")
    trained = [(index, *pair) for index, pair in enumerate(ins) if index not in args["test_envs"]]
    for label, split in [(f"env{i}_in", s) for i, s, _ in trained] + [("an uda split", s) for s, _ in udas]:
        # without weights DomainBed's sampler never completes a batch of such a split, and waits for ever
        if len(split) < hparams["batch_size"] and not balanced:
            raise ConfigError(
                f"batch_size {hparams['batch_size']} is larger than {label} ({len(split)} samples): no batch "
                "would ever be complete; lower it with --hparams '{\"batch_size\": 8}'"
            )
    by_name = {
        **{f"env{index}_in": split for index, (split, _) in enumerate(ins)},
        **{f"env{index}_out": split for index, (split, _) in enumerate(outs)},
        **{f"env{index}_uda": split for index, (split, _) in enumerate(udas)},
    }
    return Splits(dataset, trained, udas, by_name, hashlib.md5(json.dumps(parts).encode()).hexdigest())


def _open_output(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / "out.txt").open("a").close()
    except OSError as error:
        raise ConfigError(f"--output_dir {output} cannot be written: {error.strerror}; choose another") from error


def _resumable(output: Path, args: Mapping[str, Any], options: TrainOptions) -> dict[str, Any] | None:
    """Find where an interrupted run goes on; None where it starts."""
    state = run_files.load_state(output)
    if state:
        check_same(output, state, args, options)
    elif run_files.has_records(output):
        raise ConfigError(
            f"{output} holds records but no state to go on from, as a run that DomainBed started; "
            "delete it to start anew, or choose another --output_dir"
        )
    return state


@contextlib.contextmanager
def _teed(testbed: Testbed, output: Path) -> Iterator[None]:
    """Copy standard output and error into ``out.txt`` and ``err.txt``."""
    with contextlib.ExitStack() as stack:
        # DomainBed's tee writes to the standard output of its birth, and so would the one for errors
        streams = {
            "out": (sys.stdout, contextlib.redirect_stdout),
            "err": (sys.stderr, contextlib.redirect_stderr),
        }
        for name, (stream, redirect) in streams.items():
            tee = testbed.misc.Tee(output / f"{name}.txt")
            tee.stdout = stream
            stack.callback(_close, tee.file)
            stack.enter_context(redirect(tee))
        yield


def _describe(testbed: Testbed, args: Mapping[str, Any], hparams: Mapping[str, Any]) -> None:
    versions = {
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
        "Torchvision": torchvision.__version__,
        "CUDA": torch.version.cuda,
        "CUDNN": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "NumPy": np.__version__,
        "PIL": PIL.__version__,
        "nacme": nacme.__version__,
        "Testbed": testbed,
    }
    for title, entries in (("Environment", versions), ("Args", args), ("HParams", hparams)):
        print(f"{title}:")
        for key, value in entries.items() if title == "Environment" else sorted(entries.items()):
            print(f"\t{key}: {value}")


def _close(file: IO[str]) -> None:
    # what a full disk did not take is lost, and told already
    with contextlib.suppress(OSError):
        file.close()
