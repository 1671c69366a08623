"""Fixtures shared by the tests of the study: a small simulated sweep, written to disk as runs are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

WriteSweep = Callable[..., Path]


def _write_sweep(
    root: Path,
    *,
    datasets: tuple[str, ...] = ("RotatedDigits",),
    algorithms: tuple[str, ...] = ("ERM",),
    envs: int = 3,
    hparams_seeds: int = 4,
    trial_seeds: int = 2,
    checkpoints: int = 9,
    nac_me: str = "good",
    degenerate: bool = False,
    full_bins: float = 3.0,
    criteria: bool = True,
    seed: int = 0,
) -> Path:
    """Write runs whose criteria follow a latent quality: ``nac_me`` is one of good, bad, constant, null."""
    rng = np.random.default_rng(seed)
    for dataset in datasets:
        for algorithm in algorithms:
            for trial in range(trial_seeds):
                for hparams in range(hparams_seeds):
                    for test_env in range(envs):
                        name = f"{dataset}_{algorithm}_{test_env}_{hparams}_{trial}"
                        directory = root / name
                        directory.mkdir(parents=True)
                        base = 0.55 + 0.06 * test_env + rng.normal(0, 0.04)
                        peak = rng.uniform(0.3, 0.9)
                        lines = []
                        for index in range(checkpoints):
                            time = index / max(checkpoints - 1, 1)
                            quality = 1 - np.exp(-6 * (time + 0.05)) - 0.35 * max(time - peak, 0)
                            test = float(np.clip(base + 0.3 * (quality - 0.6) + rng.normal(0, 0.012), 0, 1))
                            val = float(np.clip(0.65 + 0.3 * quality + 0.1 * time + rng.normal(0, 0.02), 0, 1))
                            record: dict[str, object] = {
                                "step": 50 * index,
                                "epoch": 2.5 * index,
                                "loss": 2.3 * (1 - val),
                                "step_time": 0.01,
                                "mem_gb": 0.0,
                                "hparams": {"lr": 1e-3},
                                "args": {
                                    "dataset": dataset,
                                    "algorithm": algorithm,
                                    "test_envs": [test_env],
                                    "hparams_seed": hparams,
                                    "trial_seed": trial,
                                    "seed": 1000 * trial + hparams,
                                    "steps": 50 * (checkpoints - 1) + 1,
                                },
                            }
                            for env in range(envs):
                                accuracy = test if env == test_env else val
                                record[f"env{env}_in_acc"] = accuracy
                                record[f"env{env}_out_acc"] = accuracy
                            if criteria:
                                noise = rng.normal(0, 0.02)
                                score = {
                                    "good": 0.2 + 0.5 * (test - base) + 0.1 * noise,
                                    "bad": 0.2 - 0.5 * (test - base) + 0.1 * noise,
                                    "constant": 0.25,
                                    "null": None,
                                }[nac_me]
                                record["nac_me"] = score
                                record["val_loss"] = 2.0 * (1.05 - val) + float(rng.normal(0, 0.02))
                                record["nac"] = {
                                    "alpha": 0.1,
                                    "bins": 50,
                                    "fill": 500,
                                    "split": "out",
                                    "occupied_bins": 1.1 if degenerate else 21.5,
                                    "degenerate": degenerate,
                                    "full_bins": full_bins,
                                }
                            lines.append(json.dumps(record))
                        (directory / "results.jsonl").write_text("\n".join(lines) + "\n")
                        (directory / "done").write_text("done")
    return root


@pytest.fixture(scope="session")
def write_sweep() -> WriteSweep:
    """Return a function that writes a simulated sweep into a directory."""
    return _write_sweep


@pytest.fixture(scope="session")
def simulated_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a sweep of 24 runs: 3 test envs, 4 hyper-parameter seeds, 2 trials, 9 checkpoints each."""
    return _write_sweep(tmp_path_factory.mktemp("simulated") / "sweep")
