"""What does `--average sma` add to a training step, and `nacme average` to the plain passes that it needs?

    DOMAINBED_ROOT=... python -m analysis.benchmarks.averages --data_dir DIR [--dataset PACS64] [--runs 20]

* A step: ``algorithm.update`` on random images, in turn with and without the averages after it.
* `nacme average` of untrained runs: its ensembles and soups, against a plain accuracy pass
  (`nacme.measurement.accuracy`) for each pass that they take: of every member over validation and test splits, of
  every mean that a greedy soup tries over validation splits, of both soups over all; and, where training moves
  batch norm, of every mean over the batches that its statistics are taken from. Both sides decode once.

Processor time of this process, so that other work on the machine counts little.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from domainbed_plugins.average import AverageOptions, average
from domainbed_plugins.averaging.bench import STATISTICS_BATCHES
from domainbed_plugins.backends import find as backends
from domainbed_plugins.data.decoded import ValidationData
from domainbed_plugins.recording.options import RecordOptions
from domainbed_plugins.runs.checkpoints import build_algorithm
from domainbed_plugins.training.averages import Averages, moving_norms
from nacme.measurement import accuracy


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m analysis.benchmarks.averages")
    parser.add_argument("--data_dir")
    parser.add_argument("--dataset", default="PACS64")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=20, help="pairs of steps")
    parser.add_argument("--out", type=Path)
    flags = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    result: dict[str, Any] = {"dataset": flags.dataset, "load": os.getloadavg()[0]}
    result["step"] = steps(flags.dataset, flags.steps)
    with tempfile.TemporaryDirectory() as folder:
        result["average"] = passes(Path(folder), flags.data_dir, flags.dataset, flags.runs)
    print(json.dumps(result, indent=2))
    if flags.out:
        flags.out.write_text(json.dumps(result, indent=2) + "\n")


def steps(dataset: str, count: int) -> dict[str, Any]:
    """Time steps with averages and without, in turn."""
    testbed = backends.find(dataset)
    hparams = testbed.hparams_registry.default_hparams("ERM", dataset)
    made = testbed.datasets.get_dataset_class(dataset)
    shape, envs = getattr(made, "INPUT_SHAPE", None) or (3, 64, 64), len(made.ENVIRONMENTS) - 1
    network: Any = build_algorithm(testbed, "ERM", shape, 7, envs, hparams)
    averages = {kinds: Averages(network, kinds, 0, 0.995) for kinds in (("sma",), ("sma", "ema"))}
    batch = [(torch.rand(hparams["batch_size"], *shape), torch.randint(7, (hparams["batch_size"],)))] * envs
    plain, added = [], {kinds: [] for kinds in averages}
    for step in range(count + 2):
        taken = clocked(lambda: network.update(batch))
        extra = {kinds: clocked(partial(kept.update, step)) for kinds, kept in averages.items()}
        if step > 1:  # the first warm up
            plain.append(taken)
            for kinds, seconds in extra.items():
                added[kinds].append(seconds)
    own = statistics.median(plain)
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "milliseconds": 1000 * own,
        **{f"ratio_{'_'.join(kinds)}": 1 + statistics.median(times) / own for kinds, times in added.items()},
    }


def passes(sweep: Path, data_dir: str | None, dataset: str, runs: int) -> dict[str, Any]:
    """Time `nacme average`, and the plain passes."""
    testbed = backends.find(dataset)
    hparams = {**testbed.hparams_registry.default_hparams("ERM", dataset), "data_augmentation": False}
    args = {"dataset": dataset, "algorithm": "ERM", "test_envs": [0], "trial_seed": 0, "seed": 0}
    args |= {"holdout_fraction": 0.2, "uda_holdout_fraction": 0, "steps": 1}
    data = ValidationData(testbed, data_dir, 8 * 2**30, 0)
    made = data.open(args, hparams)
    envs = range(len(made))
    unknown = {f"env{env}_{part}_acc": None for env in envs for part in ("in", "out")}
    for run in range(runs):
        torch.manual_seed(run)
        network = build_algorithm(testbed, "ERM", made.input_shape, made.num_classes, len(made) - 1, hparams)
        directory = sweep / f"run{run}"
        directory.mkdir()
        record = {"step": 0, "args": {**args, "hparams_seed": run}, "hparams": hparams, **unknown}
        (directory / "results.jsonl").write_text(json.dumps(record) + "\n")
        (directory / "done").touch()
        content = {"model_dict": network.state_dict(), "model_hparams": hparams, "args": record["args"]}
        torch.save(content, directory / "model.pkl")
    record_options = RecordOptions(layers="penultimate", criteria=[])

    def ours() -> None:
        outcome = average(sweep, data_dir, AverageOptions(record_options, members=["last"]), n_workers=0)
        if outcome.failures:
            print(outcome.failures, file=sys.stderr)

    def plain() -> None:
        fresh = ValidationData(testbed, data_dir, 8 * 2**30, 0)
        fresh.open(args, hparams)
        held_out = [fresh.loader(f"env{env}_out") for env in envs if env]
        tests = [fresh.loader(f"env0_{part}") for part in ("in", "out")]
        for loaders, count in ((held_out + tests, runs + 2), (held_out, runs)):
            for loader in loaders * count:
                accuracy(network, loader)
        trained = [fresh.loader(f"env{env}_in") for env in envs if env]
        for loader in trained * (runs + 1) if moving_norms(network.train()) else ():
            accuracy(network, islice(loader, STATISTICS_BATCHES))

    seconds = {"plain": clocked(plain), "ours": clocked(ours)}
    return {"runs": runs, **seconds, "ratio": seconds["ours"] / seconds["plain"]}


def clocked(run: Callable[[], object]) -> float:
    """Processor time of a call, in seconds."""
    begun = time.process_time()
    run()
    return time.process_time() - begun


if __name__ == "__main__":
    main()
