r"""Train a slice of a study again and compare its records with the stored ones.

    DOMAINBED_ROOT=... python -m analysis.studies.rerun NAME --data_dir DATA --algorithm ERM --test_env 0 \
        [--hparams_seed 0] [--out DIR]

Takes minutes on two cores for one run. Prints the largest difference of each recorded number.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

import nacme
from domainbed_plugins.launchers import run_debug
from domainbed_plugins.spec_file import load_spec
from domainbed_plugins.sweep import make_jobs

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m analysis.studies.rerun")
    parser.add_argument("study", help="a folder beside this file")
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--algorithm", default="ERM")
    parser.add_argument("--test_env", type=int, default=0)
    parser.add_argument("--hparams_seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="where the run goes; default: a temporary folder")
    flags = parser.parse_args()
    spec = replace(
        load_spec(HERE / flags.study / "spec.yaml"),
        algorithms=[flags.algorithm],
        test_envs=[[flags.test_env]],
        hparams_seeds=[flags.hparams_seed],
    )
    with tempfile.TemporaryDirectory() as temporary:
        out = flags.out or Path(temporary)
        with contextlib.redirect_stdout(sys.stderr):
            (outcome,) = run_debug(make_jobs(spec, out, flags.data_dir), spec.train_options())
        if outcome.state != "done":
            raise SystemExit(f"the run {outcome.state}: {outcome.reason}")
        again = nacme.load_sweep(out)
    stored = pd.read_parquet(HERE / flags.study / "records.parquet")
    print(compare(stored, again).to_string())


def compare(stored: pd.DataFrame, again: pd.DataFrame) -> pd.DataFrame:
    """Largest absolute and relative difference of each number, over the checkpoints that both hold."""
    key = ["dataset", "algorithm", "test_env", "trial_seed", "hparams_seed", "step"]
    both = stored.merge(again, on=key, suffixes=("", " again"), validate="one_to_one")
    if len(both) < len(again):
        raise SystemExit(f"{len(again) - len(both)} of {len(again)} checkpoints are not among the stored ones")
    rows = {}
    for name in again.columns.difference(key).intersection(stored.columns):
        if pd.api.types.is_float_dtype(stored[name]):
            old, new = both[name].to_numpy(float), both[f"{name} again"].to_numpy(float)
            apart = np.abs(old - new)
            rows[name] = {"largest difference": np.nanmax(apart), "of": np.nanmax(np.abs(old))}
    return pd.DataFrame(rows).T.sort_values("largest difference", ascending=False)


if __name__ == "__main__":
    main()
