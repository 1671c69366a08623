"""How much disk do the checkpoints and states of a sweep take at most, with and without a keep policy?

python -m analysis.benchmarks.disk [--out FILE]

Trains the same embedded runs under each policy and looks at the directory after every step.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
from pathlib import Path

import torch

from domainbed_plugins.backends import find as backends
from domainbed_plugins.sweep.jobs import SweepSpec, make_jobs
from domainbed_plugins.training.options import TrainOptions
from domainbed_plugins.training.run import train

POLICIES = {
    "all": ["all"],
    "best:nac_me best:val_acc last": ["best:nac_me", "best:val_acc", "last"],
    "best:nac_me": ["best:nac_me"],
    "none (the last model, as DomainBed)": [],
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.benchmarks.disk", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    result = {name: measure(keep, flags.runs) for name, keep in POLICIES.items()}
    print(json.dumps(result, indent=2))
    if flags.out:
        flags.out.write_text(json.dumps(result, indent=2) + "\n")


def measure(keep: list[str], runs: int) -> dict[str, float]:
    """Train; give the size of the largest moment and of the end, in checkpoints of one model and in megabytes."""
    spec = SweepSpec(["RotatedDigits"], ["ERM"], test_envs=[[0]], hparams_seeds=range(runs), keep=keep)
    with tempfile.TemporaryDirectory() as folder:
        sweep, peak = Path(folder), 0

        def look(step: int, n_steps: int) -> None:
            nonlocal peak
            peak = max(peak, size(sweep))

        for job in make_jobs(spec, sweep, None):
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                options = TrainOptions(**spec.train_options(), on_step=look)
                train(backends.find(job.args["dataset"]), job.args, options)
        end = size(sweep)
        one = max(path.stat().st_size for path in sweep.glob("*/model*.pkl"))
    peak = max(peak, end)
    return {
        "peak_checkpoints": peak / one,
        "end_checkpoints": end / one,
        "peak_mb": peak / 1e6,
        "end_mb": end / 1e6,
    }


def size(sweep: Path) -> int:
    """Bytes of the checkpoints and saved states in a sweep."""
    return sum(
        path.stat().st_size for pattern in ("model*.pkl", "state.pt") for path in sweep.glob(f"*/{pattern}")
    )


if __name__ == "__main__":
    main()
