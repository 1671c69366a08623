"""The training loop: DomainBed's, step for step and draw for draw, with recording in its evaluation pass.

Source: ``domainbed/scripts/train.py``. The order in which splits, loaders and the algorithm are made, and in which
the splits are evaluated, decides which random numbers each of them gets; it is kept, so that recording changes no
training number.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import torchvision

import nacme
from domainbed_plugins.backends import Testbed
from domainbed_plugins.train import parse_hparams
from nacme.errors import ConfigError, nearest
from nacme.measurement import CoverageSettings, accuracy
from nacme.recorder import Recorder

EVAL_BATCH_SIZE = 64


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
    eval_splits : {"all", "fast"}
        ``"fast"`` leaves out the training environments' ``in`` splits, unless coverage is measured there. It
        draws other random numbers than DomainBed does.
    n_workers : int or "auto", optional
        Workers of each loader; ``"auto"`` shares out the machine's cores. None: the data set's.
    on_step : callable, optional
        Called after each step with ``(step, n_steps)``.
    """

    settings: CoverageSettings = field(default_factory=CoverageSettings)
    grid: tuple[CoverageSettings, ...] = ()
    layers: list[str] | None = None
    split: str = "out"
    eval_splits: str = "all"
    n_workers: int | str | None = None
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
    """

    dataset: Any
    train: list[tuple[int, Any, Any]]
    uda: list[tuple[Any, Any]]
    by_name: dict[str, Any]


def train(testbed: Testbed, args: Mapping[str, Any], options: TrainOptions | None = None) -> None:
    """Train one run into its output directory.

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
    """
    args, options = dict(args), options or TrainOptions()
    check_names(testbed, args)
    hparams = make_hparams(testbed, args)
    output = Path(args["output_dir"])
    _open_output(output)
    with _teed(testbed, output):
        _describe(testbed, args, hparams)
        _train(testbed, args, hparams, options, output)


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
        raise ConfigError(
            f"--dataset {args['dataset']!r} is unknown to {testbed.name}; "
            f"{nearest(args['dataset'], testbed.datasets.DATASETS)}"
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

    ins, outs, udas = [], [], []
    for index, env in enumerate(dataset):
        seed = misc.seed_hash(args["trial_seed"], index)
        out, in_ = misc.split_dataset(env, int(len(env) * args["holdout_fraction"]), seed)
        uda = []
        if index in args["test_envs"]:
            uda, in_ = misc.split_dataset(in_, int(len(in_) * args["uda_holdout_fraction"]), seed)
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
    return Splits(dataset, trained, udas, by_name)


def _train(
    testbed: Testbed, args: dict[str, Any], hparams: dict[str, Any], options: TrainOptions, output: Path
) -> None:
    seed_everything(args["seed"])
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    device = "cuda" if torch.cuda.is_available() else "cpu"

    splits = make_splits(testbed, args, hparams)
    dataset = splits.dataset
    envs = [index for index, _, _ in splits.train]
    measured = {f"env{index}_{options.split}" for index in envs}
    skipped = {f"env{index}_in" for index in envs} - measured if options.eval_splits == "fast" else set()
    evaluated = {name: split for name, split in splits.by_name.items() if name not in skipped}
    workers = _workers(options.n_workers, dataset.N_WORKERS, len(splits.train) + len(splits.uda) + len(evaluated))
    infinite, fast = testbed.loaders.InfiniteDataLoader, testbed.loaders.FastDataLoader
    train_loaders = [
        infinite(split, weights, hparams["batch_size"], workers) for _, split, weights in splits.train
    ]
    uda_loaders = [infinite(split, weights, hparams["batch_size"], workers) for split, weights in splits.uda]
    eval_loaders = {name: fast(split, EVAL_BATCH_SIZE, workers) for name, split in evaluated.items()}

    num_domains = len(dataset) - len(args["test_envs"])
    make = testbed.algorithms.get_algorithm_class(args["algorithm"])
    algorithm = make(dataset.input_shape, dataset.num_classes, num_domains, hparams)
    algorithm.to(device)

    recorder = Recorder(
        algorithm,
        {f"env{index}_out": eval_loaders[f"env{index}_out"] for index in envs},
        coverage_loaders={name: loader for name, loader in eval_loaders.items() if name in measured},
        settings=options.settings,
        grid=options.grid,
        layers=options.layers,
        device=device,
        notes={"split": options.split, "testbed": str(testbed)},
    )

    def save(name: str) -> None:
        if args["skip_model_save"]:
            return
        content = {
            "args": args,
            "model_input_shape": dataset.input_shape,
            "model_num_classes": dataset.num_classes,
            "model_num_domains": num_domains,
            "model_hparams": hparams,
            "model_dict": algorithm.state_dict(),
        }
        torch.save(content, output / f"{name}.tmp")
        os.replace(output / f"{name}.tmp", output / name)

    minibatches = zip(*train_loaders)
    unlabeled = zip(*uda_loaders)
    # DomainBed counts the epochs of the smallest environment, test environments included
    ins = [split for name, split in splits.by_name.items() if name.endswith("_in")]
    steps_per_epoch = min(len(split) / hparams["batch_size"] for split in ins)
    n_steps = args["steps"] or dataset.N_STEPS
    checkpoint_freq = args["checkpoint_freq"] or dataset.CHECKPOINT_FREQ
    values: dict[str, list[float]] = collections.defaultdict(list)
    last_keys: list[str] = []
    for step in range(n_steps):
        started = time.time()
        batch = [(x.to(device), y.to(device)) for x, y in next(minibatches)]
        adapting = args["task"] == "domain_adaptation"
        step_values = algorithm.update(batch, [x.to(device) for x, _ in next(unlabeled)] if adapting else None)
        values["step_time"].append(time.time() - started)
        for key, value in step_values.items():
            values[key].append(value)

        if step % checkpoint_freq == 0 or step == n_steps - 1:
            results: dict[str, Any] = {"step": step, "epoch": step / steps_per_epoch}
            results.update({key: np.mean(value) for key, value in values.items()})
            results.update(_evaluate(algorithm, eval_loaders, recorder, device))
            results["mem_gb"] = torch.cuda.max_memory_allocated() / 1024**3
            row = {key: results[key] for key in sorted(results) if key != "nac"}
            if list(row) != last_keys:
                last_keys = list(row)
                testbed.misc.print_row(last_keys, colwidth=12)
            testbed.misc.print_row(list(row.values()), colwidth=12)
            results.update({"hparams": hparams, "args": args})
            with (output / "results.jsonl").open("a") as file:
                file.write(json.dumps(results, sort_keys=True) + "\n")
            values.clear()
            if args["save_model_every_checkpoint"]:
                save(f"model_step{step}.pkl")
        if options.on_step:
            options.on_step(step, n_steps)

    save("model.pkl")
    (output / "done").write_text("done")


def _workers(wanted: int | str | None, stock: int, loaders: int) -> int:
    """Choose the number of workers of each loader, and say so where they will be far too many."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if wanted == "auto":
        # a training loader and an evaluation loader are busy at a time; a loader of one core works in-process
        return 0 if cores <= 2 else min(stock, cores // 2)
    count = stock if wanted is None else int(wanted)
    if count * loaders > 4 * cores:
        print(
            f"{count} workers for each of {loaders} loaders are {count * loaders} processes on {cores} cores; "
            "--n_workers auto starts fewer (the count decides which augmentations are drawn)",
            file=sys.stderr,
        )
    return count


def _evaluate(
    algorithm: torch.nn.Module, loaders: Mapping[str, Any], recorder: Recorder, device: str
) -> dict[str, Any]:
    recording = recorder.start()
    measured = {**recorder.loaders, **recorder.coverage_loaders}
    results: dict[str, Any] = {}
    for name, loader in loaders.items():
        if name in measured:
            results[f"{name}_acc"] = recording.evaluate(name, loader)
        else:
            results[f"{name}_acc"] = accuracy(algorithm, loader, device)
        # DomainBed's evaluation leaves every module in training mode, whatever mode it was in
        algorithm.train()
    return {**results, **recording.finish()}


def _open_output(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / "out.txt").open("a").close()
    except OSError as error:
        raise ConfigError(f"--output_dir {output} cannot be written: {error.strerror}; choose another") from error
    if (output / "results.jsonl").exists():
        raise ConfigError(
            f"--output_dir {output} holds records already; choose another, or delete it to start anew"
        )


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
            stack.callback(tee.file.close)
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
