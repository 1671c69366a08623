"""What do 20 checkpoints of a run cost under ``nacme score``, beside evaluating each with DomainBed's own loaders?

    DOMAINBED_ROOT=... python -m analysis.benchmarks.score_sweep --data_dir DIR [--dataset PACS64] [--out bench]

Trains 20 checkpoints, a step apart, then measures them in processes of their own, in rounds of alternating order:

* ``stock``: for each checkpoint, load it, build DomainBed's ``FastDataLoader`` (64 images a batch, the data set's
  own number of workers) for every training environment's validation split, and call ``misc.accuracy``;
* ``stock, augmented`` (on request): the same with the random augmentation that DomainBed applies to those splits;
* ``nacme score``: accuracy, coverage and all default criteria on the same splits.

All list the data set's files once. Times are taken within the process, most imports left out; processor time
includes the loaders' workers. Accuracies without augmentation have to agree. Writes ``score_sweep.md`` and
``score_sweep.json``.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from analysis.benchmarks.__main__ import machine, say, write
from analysis.benchmarks.recipes import domainbed_accuracy
from analysis.benchmarks.timing import Spread
from domainbed_plugins import score
from domainbed_plugins.backends import find as backends
from domainbed_plugins.data.generators import seed_everything
from domainbed_plugins.data.splits import make_splits
from domainbed_plugins.machine import keep_freed_memory
from domainbed_plugins.runs.checkpoints import build_algorithm, load_checkpoint
from domainbed_plugins.runs.files import write_atomically
from domainbed_plugins.scoring.groups import MOST_MODELS
from nacme.settings import CoverageSettings

STOCK, AUGMENTED, OURS = "stock", "stock, augmented", "nacme score"
SIDES = (STOCK, AUGMENTED, OURS)
CLOCKS = ("processor", "wall")


def train(run: Path, data_dir: str | None, dataset: str, algorithm: str, checkpoints: int) -> None:
    """Train a run of one step between checkpoints, and lay it out as DomainBed does."""
    testbed = backends.find(dataset)
    args = {"dataset": dataset, "data_dir": data_dir, "algorithm": algorithm, "test_envs": [0]}
    args |= {"trial_seed": 0, "hparams_seed": 0, "seed": 0, "holdout_fraction": 0.2, "uda_holdout_fraction": 0}
    args["task"] = "domain_generalization"
    hparams = {**testbed.hparams_registry.default_hparams(algorithm, dataset), "data_augmentation": False}
    seed_everything(0)
    splits = make_splits(testbed, args, hparams)
    shape, classes = splits.dataset.input_shape, splits.dataset.num_classes
    network: Any = build_algorithm(testbed, algorithm, shape, classes, len(splits.train), hparams)
    batches = [next(iter(torch.utils.data.DataLoader(split, 32, shuffle=True))) for _, split, _ in splits.train]
    run.mkdir(parents=True)
    lines = []
    for step in range(checkpoints):
        content = {"model_dict": network.state_dict(), "model_hparams": hparams, "args": args}
        write_atomically(run / f"model_step{step}.pkl", lambda file, content=content: torch.save(content, file))
        unknown = {f"env{env}_{part}_acc": None for env in range(len(splits.dataset)) for part in ("in", "out")}
        lines.append(json.dumps({"step": step, "args": args, "hparams": hparams, **unknown}) + "\n")
        network.update([(x, y) for x, y in batches])
    (run / "results.jsonl").write_text("".join(lines))


def read_records(run: Path) -> list[dict[str, Any]]:
    """Read the run's records."""
    return [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]


def measure_stock(run: Path, data_dir: str | None, augmented: bool) -> dict[str, float]:
    """Evaluate checkpoint by checkpoint; give the accuracy of each on each split."""
    records = read_records(run)
    args, hparams = records[0]["args"], {**records[0]["hparams"], "data_augmentation": augmented}
    testbed = backends.find(args["dataset"])
    splits = make_splits(testbed, {**args, "data_dir": data_dir}, hparams)
    dataset = splits.dataset
    names = [f"env{env}_out" for env in range(len(dataset)) if env not in args["test_envs"]]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    accuracy, _ = domainbed_accuracy()
    accuracies = {}
    for record in records:
        state = load_checkpoint(run / f"model_step{record['step']}.pkl")["model_dict"]
        shape, classes = dataset.input_shape, dataset.num_classes
        network = build_algorithm(testbed, args["algorithm"], shape, classes, len(names), hparams)
        network.load_state_dict(state)
        network.to(device)
        for name in names:
            # let go of at the end of the line, and of its workers: DomainBed's live as long as the run
            loader = backends.module("lib.fast_data_loader").FastDataLoader(
                splits.by_name[name], 64, dataset.N_WORKERS
            )
            accuracies[f"{record['step']} {name}"] = accuracy(network, loader, None, device)
            del loader
    return accuracies


def measure_score(run: Path, data_dir: str | None) -> dict[str, float]:
    """Score the run anew."""
    (run / "nac.jsonl").unlink(missing_ok=True)
    outcome = score.score(run, data_dir, score.ScoreOptions(CoverageSettings()))
    assert not outcome.failures, outcome.failures[0]
    # largest difference from the accuracies on record, which are the stock loaders' once those have been measured
    return {"accuracy gap": outcome.accuracy_gap, "checkpoints": outcome.measured}


def put_on_record(run: Path, accuracies: dict[str, float]) -> None:
    """Write accuracies into the run's records, as training does; scoring compares its own with them."""
    records = {record["step"]: record for record in read_records(run)}
    for name, accuracy in accuracies.items():
        step, split = name.split()
        records[int(step)][f"{split}_acc"] = accuracy
    write(run / "results.jsonl", "".join(json.dumps(record) + "\n" for record in records.values()))


def measure(side: str, run: Path, data_dir: str | None) -> None:
    """Time one side in this process, and print what it took and found."""
    if side == OURS:
        keep_freed_memory()  # as the command does
    begun, before = time.perf_counter(), os.times()
    found = measure_score(run, data_dir) if side == OURS else measure_stock(run, data_dir, side == AUGMENTED)
    gc.collect()
    elapsed, after = time.perf_counter() - begun, os.times()
    spent = sum(after[:4]) - sum(before[:4])
    print(json.dumps({"wall": elapsed, "processor": spent, "found": found}))


def rounds(
    run: Path, data_dir: str, sides: tuple[str, ...], repeats: int, threads: int
) -> dict[str, list[dict[str, Any]]]:
    """Measure each side in turn, each time in a process of its own."""
    taken: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}

    def once(side: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "analysis.benchmarks.score_sweep", "--measure", side]
        command += ["--run", str(run), "--data_dir", data_dir, "--threads", str(threads)]
        done = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
        )
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    once(OURS)  # has read every image from the disk, for all
    for number in range(repeats):
        for side in sides if number % 2 == 0 else reversed(sides):
            taken[side].append(once(side))
            say(f"round {number + 1}, {side}: {taken[side][-1]['processor']:.1f} s")
            if side == STOCK:
                put_on_record(run, taken[side][-1]["found"])
    return taken


def markdown(setting: dict[str, Any], taken: dict[str, list[dict[str, Any]]]) -> str:
    """Write the page."""
    lines = ["# Scoring a run's checkpoints", "", *(f"- {name}: {value}" for name, value in setting.items()), ""]
    lines += ["| | processor time, s | by the clock, s |", "| --- | ---: | ---: |"]
    for side in taken:
        cells = [_spread([once[clock] for once in taken[side]], 1) for clock in CLOCKS]
        lines.append(f"| {side} | {' | '.join(cells)} |")
    lines += ["", "| times faster than | processor time | by the clock |", "| --- | ---: | ---: |"]
    for side, clocks in ratios(taken).items():
        lines.append(f"| {side} | {' | '.join(_spread(clocks[clock], 2) for clock in CLOCKS)} |")
    return "\n".join([*lines, ""])


def ratios(taken: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, list[float]]]:
    """Divide the time of each stock side by ours, round by round, by side and clock."""
    return {
        side: {clock: [a[clock] / b[clock] for a, b in zip(taken[side], taken[OURS])] for clock in CLOCKS}
        for side in taken
        if side != OURS
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.benchmarks.score_sweep", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--dataset", default="PACS64")
    parser.add_argument("--algorithm", default="ERM")
    parser.add_argument("--checkpoints", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=2, help="rounds")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch on the CPU")
    parser.add_argument("--out", type=Path, default=Path("bench"), help="folder for the two files")
    parser.add_argument("--augmented", action="store_true", help="measure DomainBed's augmented evaluation too")
    parser.add_argument("--measure", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--run", type=Path, help="where to train the run, or where one was trained before")
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    if flags.measure:
        measure(flags.measure, flags.run, flags.data_dir)
        return
    with tempfile.TemporaryDirectory() as temporary:
        run = (flags.run or Path(temporary) / "run").resolve()
        if not run.exists():
            train(run, flags.data_dir, flags.dataset, flags.algorithm, flags.checkpoints)
        load_before = os.getloadavg()[0]
        sides = SIDES if flags.augmented else (STOCK, OURS)
        taken = rounds(run, flags.data_dir, sides, flags.repeats, flags.threads)
    setting = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        **machine(),
        "threads": flags.threads,
        "run": f"{flags.checkpoints} checkpoints of {flags.algorithm} on {flags.dataset}",
        "networks that share a batch": f"by memory, up to {MOST_MODELS}",
        "rounds": f"{flags.repeats}, after one pass that does not count",
        "load average before": round(load_before, 2),
        "load average after": round(os.getloadavg()[0], 2),
        "largest difference of accuracies": max(once["found"]["accuracy gap"] for once in taken[OURS]),
    }
    flags.out.mkdir(parents=True, exist_ok=True)
    content = {"setting": setting, "times": taken, "ratios": ratios(taken)}
    write(flags.out / "score_sweep.json", json.dumps(content, indent=1) + "\n")
    write(flags.out / "score_sweep.md", markdown(setting, taken))
    print(flags.out / "score_sweep.md")


def _spread(values: list[float], digits: int) -> str:
    spread = Spread.of(values)
    return f"{spread.median:.{digits}f} ({spread.low:.{digits}f} to {spread.high:.{digits}f})"


if __name__ == "__main__":
    main()
