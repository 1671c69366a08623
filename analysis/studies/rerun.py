r"""Train a slice of a study again and compare its records with the stored ones.

    DOMAINBED_ROOT=... python -m analysis.studies.rerun NAME --data_dir DATA --algorithm ERM --test_env 0 \
        [--hparams_seed 0] [--out DIR]

All hparams_seeds of the slice unless one is named. Prints the largest difference of each recorded number.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

import nacme
from domainbed_plugins.machine import default_processes
from domainbed_plugins.sweep.jobs import Job, make_jobs
from domainbed_plugins.sweep.launchers.base import Outcome, Progress
from domainbed_plugins.sweep.launchers.local import LocalLauncher
from domainbed_plugins.sweep.spec_file import load_spec

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m analysis.studies.rerun")
    parser.add_argument("study", help="a folder beside this file")
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--algorithm", default="ERM")
    parser.add_argument("--test_env", type=int, nargs="+", default=[0], help="of one run; several: single source")
    parser.add_argument("--hparams_seed", type=int, help="default: all of the study")
    parser.add_argument("--out", type=Path, help="where the runs go; default: a temporary folder")
    flags = parser.parse_args()
    whole = load_spec(HERE / flags.study / "spec.yaml")
    seeds = whole.hparams_seeds if flags.hparams_seed is None else [flags.hparams_seed]
    spec = replace(whole, algorithms=[flags.algorithm], test_envs=[flags.test_env], hparams_seeds=seeds)
    with tempfile.TemporaryDirectory() as temporary:
        out = flags.out or Path(temporary)
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # as the studies were trained: sums depend on it
        jobs = make_jobs(spec, out, flags.data_dir)
        with contextlib.redirect_stdout(sys.stderr):
            outcomes = train(jobs, spec.train_options())
        for outcome in outcomes:
            if outcome.state != "done":
                raise SystemExit(f"{outcome.job} {outcome.state}: {outcome.reason}")
        again = nacme.load_sweep(out)
    stored = pd.read_parquet(HERE / flags.study / "records.parquet")
    print(compare(stored, again).to_string())


def train(jobs: list[Job], options: dict[str, Any]) -> list[Outcome]:
    """Train jobs side by side, with a progress bar."""
    count = min(len(jobs), default_processes())
    shape = "{desc}: {percentage:3.0f}% {bar} {elapsed}"
    with tqdm(total=1.0, desc=f"{len(jobs)} runs", bar_format=shape, disable=None) as bar:

        def show(progress: Progress) -> None:
            bar.update(progress.fraction - bar.n)

        return LocalLauncher(options, parallel=count).run(jobs, on_progress=show)


def compare(stored: pd.DataFrame, again: pd.DataFrame) -> pd.DataFrame:
    """Find each number's largest difference, over the checkpoints of the slice, beside its largest magnitude."""
    key = ["dataset", "algorithm", "test_env", "test_envs", "trial_seed", "hparams_seed", "step"]
    both = stored.merge(again, on=key, suffixes=("", " again"), validate="one_to_one")
    if len(both) < len(again):
        raise SystemExit(f"{len(again) - len(both)} of {len(again)} checkpoints are not among the stored ones")
    rows = {}
    for name in again.columns.difference(key).intersection(stored.columns):
        if pd.api.types.is_float_dtype(stored[name]):
            old, new = both[name].to_numpy(float), both[f"{name} again"].to_numpy(float)
            same = (old == new) | (np.isnan(old) & np.isnan(new))
            apart = np.where(same, 0.0, np.abs(old - new))  # NaN where only one of them is undefined
            rows[name] = {"largest difference": apart.max(), "of": np.abs(old).max()}
    return pd.DataFrame(rows).T.sort_values("largest difference", ascending=False)


if __name__ == "__main__":
    main()
