"""How long does it take to read a sweep of DomainBed's size and to select from it, against DomainBed's own code?

Writes a synthetic sweep (by default 45,900 runs of 17 checkpoints, as many as DomainBed's paper trained), then
times, each in a process of its own:

* ours: `nacme.load_sweep` without a cache and again with it, then `nacme.select` and `nacme.rank_correlation` by
  validation accuracy and coverage, intervals from 1,000 resamples of the runs in each of the 765 cells;
* DomainBed's ``load_records`` and the three tables of its ``collect_results``, if ``DOMAINBED_ROOT`` is set.

    python analysis/benchmarks/load_sweep.py --runs 45900

Prints one line of JSON per measurement: seconds of the clock and of the processor, peak memory in GB, and the
mean test accuracy selected, which has to agree.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

N_ENVS = 4
CHECKPOINTS = 17


def write_sweep(root: Path, runs: int, seed: int = 0) -> None:
    """Write runs laid out as DomainBed's sweep: 20 hyper-parameter draws, 3 trials, 4 test envs, algorithms."""
    rng = np.random.default_rng(seed)
    for number in range(runs):
        hparams_seed, rest = number % 20, number // 20
        trial_seed, rest = rest % 3, rest // 3
        test_env, algorithm = rest % N_ENVS, rest // N_ENVS
        args = {
            "algorithm": f"Algorithm{algorithm}",
            "checkpoint_freq": None,
            "data_dir": "/datasets/domainbed",
            "dataset": "PACS",
            "holdout_fraction": 0.2,
            "hparams": None,
            "hparams_seed": hparams_seed,
            "output_dir": f"sweep/{number}",
            "save_model_every_checkpoint": False,
            "seed": number,
            "skip_model_save": False,
            "steps": 5001,
            "task": "domain_generalization",
            "test_envs": [test_env],
            "trial_seed": trial_seed,
            "uda_holdout_fraction": 0,
        }
        hparams = {"batch_size": 32, "class_balanced": False, "data_augmentation": True, "lr": float(rng.random())}
        hparams |= {"nonlinear_classifier": False, "resnet18": False, "resnet_dropout": 0.5, "weight_decay": 1e-4}
        lines = []
        for checkpoint, values in enumerate(rng.random((CHECKPOINTS, 2 * N_ENVS + 4))):
            record = {f"env{i}_in_acc": values[2 * i] for i in range(N_ENVS)}
            record |= {f"env{i}_out_acc": values[2 * i + 1] for i in range(N_ENVS)}
            record |= {"loss": values[-1], "step_time": values[-2], "mem_gb": 12.5, "epoch": checkpoint * 1.7}
            record |= {"nac_me": values[-3], "val_loss": values[-4]}
            nac = {"alpha": 0.1, "bins": 50, "fill": 500, "split": "out", "per_layer": {"pool": values[-3]}}
            nac |= {"layers": ["pool"], "occupied_bins": 12.5, "num_samples": 1500, "num_counted": 1400}
            record |= {"nac": {**nac, "degenerate": False}, "step": 300 * checkpoint}
            lines.append(json.dumps({**record, "args": args, "hparams": hparams}, sort_keys=True) + "\n")
        directory = root / hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest()
        directory.mkdir(parents=True)
        (directory / "results.jsonl").write_text("".join(lines))
        (directory / "done").write_text("done")


def measure_ours(root: Path) -> None:
    """Time reading, selecting and correlating with nacme, and print the figures."""
    import nacme

    start = time.perf_counter()
    df = nacme.load_sweep(root)
    loaded = time.perf_counter()
    chosen = nacme.select(df, ["val_acc", "nac_me"])
    selected = time.perf_counter()
    nacme.rank_correlation(df, ["val_acc", "nac_me"])
    end = time.perf_counter()
    report(
        load_s=loaded - start,
        select_s=selected - loaded,
        correlate_s=end - selected,
        total_s=end - start,
        test_acc=chosen["test_acc"][chosen["criterion"] == "val_acc"].mean(),
    )


def measure_domainbed(root: Path) -> None:
    """Time DomainBed's reading and what its ``collect_results`` does with the records, and print the figures."""
    sys.path.insert(0, os.environ["DOMAINBED_ROOT"])
    from domainbed import model_selection
    from domainbed.lib import reporting
    from domainbed.scripts import collect_results

    start = time.perf_counter()
    records = reporting.load_records(str(root))
    loaded = time.perf_counter()
    methods = [
        model_selection.IIDAccuracySelectionMethod,
        model_selection.LeaveOneOutSelectionMethod,
        model_selection.OracleSelectionMethod,
    ]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        for method in methods:
            collect_results.print_results_tables(records, method, latex=False)
    end = time.perf_counter()
    chosen = [methods[0].sweep_acc(group["records"]) for group in reporting.get_grouped_records(records)]
    report(load_s=loaded - start, tables_s=end - loaded, total_s=end - start, test_acc=float(np.mean(chosen)))


def report(**figures: float) -> None:
    """Print figures and the peak memory of this process and of the largest of its workers together."""
    figures["cpu_s"] = time.process_time()
    kilobytes = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(json.dumps({**{k: round(v, 4) for k, v in figures.items()}, "peak_gb": round(kilobytes / 1e6, 2)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=45_900)
    parser.add_argument("--sweep", type=Path, help="Where to write the sweep, or where one was written before.")
    parser.add_argument("--measure", choices=("ours", "domainbed"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        {"ours": measure_ours, "domainbed": measure_domainbed}[options.measure](options.sweep)
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = options.sweep or Path(temporary) / "sweep"
        if not root.exists():
            write_sweep(root, options.runs)
        for cache in root.glob(".nacme_cache*"):
            cache.unlink()
        steps = [("nacme, no cache", "ours"), ("nacme, from cache", "ours")]
        if "DOMAINBED_ROOT" in os.environ:
            steps.append(("DomainBed", "domainbed"))
        for title, measure in steps:
            command = [sys.executable, __file__, "--measure", measure, "--sweep", str(root)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            print(f"{title}: {done.stdout.strip()}", flush=True)


if __name__ == "__main__":
    main()
