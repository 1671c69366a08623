"""What does a training step cost under our runner, beside DomainBed's own script on the same arguments?

    DOMAINBED_ROOT=... python -m analysis.benchmarks.step_time --data_dir DIR [--dataset RotatedMNIST] [--rounds 5]

Both train the same run in this process, in rounds of alternating order after a warm-up, loaders in this process.
``step_time`` is what both write into their records; ``whole`` is the time from start to end, with evaluation,
recording and saved states, but without making the data set. A second part trains a sweep of embedded runs and says
for how much of the time no run was under way.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import torch

from domainbed_plugins import train
from domainbed_plugins.backends import find as backends
from domainbed_plugins.sweep.jobs import SweepSpec, make_jobs
from domainbed_plugins.sweep.launchers.local import LocalLauncher


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m analysis.benchmarks.step_time")
    parser.add_argument("--data_dir", help="of DomainBed's data sets; without it only the sweep is measured")
    parser.add_argument("--dataset", default="RotatedMNIST")
    parser.add_argument("--algorithm", default="ERM")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--hparams", default='{"batch_size": 8}', help="as DomainBed's own flag")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    result = {"load": os.getloadavg()[0], "sweep": sweep_overhead()}
    if flags.data_dir:
        result["steps"] = step_times(flags)
    print(json.dumps(result, indent=2))
    if flags.out:
        flags.out.write_text(json.dumps(result, indent=2) + "\n")


def step_times(flags: argparse.Namespace) -> dict[str, float]:
    """Train the same run by both, in turn; give the medians of each pair's ratio."""
    testbed = backends.domainbed()
    testbed.datasets.MultipleDomainDataset.N_WORKERS = 0
    made = testbed.datasets.get_dataset_class(flags.dataset)(flags.data_dir, [0], {})
    # both take this one: making it takes longer than the steps
    testbed.datasets.__dict__[flags.dataset].__new__ = lambda cls, *_, **__: made
    testbed.datasets.__dict__[flags.dataset].__init__ = lambda self, *_, **__: None
    argv = ["--dataset", flags.dataset, "--data_dir", flags.data_dir, "--algorithm", flags.algorithm]
    argv += ["--hparams", flags.hparams]
    argv += ["--steps", str(flags.steps), "--checkpoint_freq", str(flags.steps - 1)]
    pairs: dict[str, list[float]] = {"step_time": [], "whole": []}
    for number in range(flags.rounds + 1):
        seen = {}
        for name in ("stock", "ours") if number % 2 else ("ours", "stock"):
            seen[name] = _train(name, argv)
        if number:  # the first is the warm-up
            for key, ratios in pairs.items():
                ratios.append(seen["ours"][key] / seen["stock"][key])
            print(f"round {number}: {seen}", file=sys.stderr)
    return {
        **{f"{key}_ratio": statistics.median(ratios) for key, ratios in pairs.items()},
        **{f"{key}_ratio_worst": max(ratios) for key, ratios in pairs.items()},
    }


def _train(name: str, argv: list[str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        for stream in ("stdout", "stderr"):
            # the stock script puts its own in their place
            stack.enter_context(mock.patch.object(sys, stream, io.StringIO()))
        arguments = [*argv, "--output_dir", folder]
        begun = time.perf_counter()
        if name == "ours":
            train.main(arguments)
        else:
            stack.enter_context(mock.patch.object(sys, "argv", ["train", *arguments]))
            runpy.run_module("domainbed.scripts.train", run_name="__main__")
        whole = time.perf_counter() - begun
        last = json.loads((Path(folder) / "results.jsonl").read_text().splitlines()[-1])
    return {"step_time": last["step_time"], "whole": whole}


def sweep_overhead(runs: int = 4) -> dict[str, float]:
    """Run a sweep with one worker; its overhead is the part of the time in which no run is under way."""
    spec = SweepSpec(["RotatedDigits"], ["ERM"], test_envs=[[0]], hparams_seeds=range(runs))
    with tempfile.TemporaryDirectory() as folder:
        jobs = make_jobs(spec, Path(folder), None)
        begun = time.time()
        outcomes = LocalLauncher({}, parallel=1).run(jobs)
        whole = time.time() - begun
        assert [outcome.state for outcome in outcomes] == ["done"] * runs
        # a run makes its directory first and its mark of the end last
        spans = [(_born(job.output_dir), (job.output_dir / "done").stat().st_mtime) for job in jobs]
    trained = sum(end - start for start, end in spans)
    lasted = spans[-1][1] - spans[0][0]
    return {"runs": runs, "seconds": lasted, "overhead": 1 - trained / lasted, "start": whole - lasted}


def _born(path: Path) -> float:
    asked = subprocess.run(["stat", "--format=%.6W", str(path)], capture_output=True, text=True, check=True)
    return float(asked.stdout)


if __name__ == "__main__":
    main()
