"""Does GReg notice outliers that it was not trained on, and what does it cost in accuracy?

    python analysis/greg_study.py --out DIR [--dataset RotatedDigits] [--data_dir DIR] [--steps N] [--hparams JSON]

Trains ERM and GReg alike, seed after seed, and measures the energy score of each against outliers: of the kind
that GReg was trained on (shuffled patches), of kinds that it never saw (Gaussian noise on the images; pieces of
photographs, scikit-learn's two, and PACS's where NACME_DATA is set), and images of the test domain. Prints
Markdown. Runs that are finished are not trained again.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from domainbed_plugins import train
from domainbed_plugins.algorithms.greg import energy
from domainbed_plugins.backends import find as backends
from domainbed_plugins.data.decoded import ValidationData
from domainbed_plugins.runs.checkpoints import build_algorithm, load_checkpoint, load_weights
from domainbed_plugins.runs.saved import find_jobs
from nacme.ood.evaluation import detection_metrics
from nacme.ood.outliers import pseudo_outliers, resized
from nacme.taps import untouched

ALGORITHMS = ("ERM", "GReg")
SEEN = "jigsaw (trained on)"


def photographs(count: int, shape: tuple[int, ...], generator: np.random.Generator, pacs: Path | None) -> Tensor:
    """Square pieces of photographs in grey, at the network's size, ``[count, *shape]`` in [0, 1]."""
    if pacs is None:
        pictures = [Image.fromarray(picture) for picture in load_sample_images().images]
    else:
        paths = sorted((pacs / "photo").glob("*/*.jpg"))
        chosen = generator.choice(len(paths), min(count, len(paths)), replace=False)
        pictures = [Image.open(paths[i]) for i in chosen]
    pieces = []
    for i in range(count):
        picture = pictures[i % len(pictures)].convert("L")
        size = int(generator.integers(min(picture.size) // 4, min(picture.size) + 1))
        left, top = (int(generator.integers(0, extent - size + 1)) for extent in picture.size)
        piece = picture.resize(shape[1:][::-1], box=(left, top, left + size, top + size))
        pieces.append(torch.from_numpy(np.array(piece)).float()[None] / 255)
    return resized(torch.stack(pieces), shape)


def trained(algorithm: str, seed: int, args: argparse.Namespace) -> Path:
    """Train one run, unless it is there."""
    run = Path(args.out) / f"{args.dataset}_{algorithm}_{seed}"
    flags = ["--dataset", args.dataset, "--algorithm", algorithm, "--test_envs", str(args.test_env)]
    flags += ["--trial_seed", str(seed), "--seed", str(seed), "--hparams", args.hparams]
    flags += ["--steps", str(args.steps), "--checkpoint_freq", str(args.steps), "--output_dir", str(run)]
    flags += [
        "--n_workers",
        "0",
        "--eval_splits",
        "fast",
        *(["--data_dir", args.data_dir] if args.data_dir else []),
    ]
    with contextlib.redirect_stdout(sys.stderr):
        train.main(flags)
    return run


def measured(run: Path, args: argparse.Namespace) -> dict[str, float]:
    """Accuracies, and AUROC and FPR95 of the energy score against each kind of outliers."""
    job = find_jobs(run, [])[-1]
    record = json.loads((run / "results.jsonl").read_text().splitlines()[-1])
    testbed = backends.find(args.dataset)
    data = ValidationData(testbed, args.data_dir, 2**30, 0)
    dataset = data.open(job.args, job.hparams)
    envs = [env for env in range(len(dataset)) if env != args.test_env]
    shape = tuple(dataset.input_shape)
    model = build_algorithm(testbed, job.args["algorithm"], shape, dataset.num_classes, len(envs), job.hparams)
    load_weights(model, load_checkpoint(job.checkpoint)["model_dict"], job.checkpoint)

    def images(*names: str) -> Tensor:
        return torch.cat([x for name in names for x, _ in data.loader(name)])

    inside = images(*(f"env{env}_out" for env in envs))
    generator, numbers = torch.Generator().manual_seed(1), np.random.default_rng(1)
    outside = {
        SEEN: pseudo_outliers(inside, "jigsaw", generator),
        "noise": pseudo_outliers(inside, "noise", generator),
        "photographs": photographs(1000, shape, numbers, None),
        "test domain": images(f"env{args.test_env}_in"),
    }
    if os.environ.get("NACME_DATA"):
        outside["PACS photographs"] = photographs(1000, shape, numbers, Path(os.environ["NACME_DATA"]) / "PACS")

    def scores(x: Tensor) -> np.ndarray:
        with untouched(model), torch.no_grad():
            return torch.cat([energy(model.predict(part)) for part in x.split(256)]).double().numpy()

    found = {
        "validation accuracy": float(np.mean([record[f"env{env}_out_acc"] for env in envs])),
        "test accuracy": float(record[f"env{args.test_env}_in_acc"]),
    }
    known = scores(inside)
    for name, x in outside.items():
        metrics = detection_metrics(known, scores(x))
        found |= {f"{name}: {label}": metrics[key] for key, label in (("auroc", "AUROC"), ("fpr95", "FPR95"))}
    return found


def study(args: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Train and measure every run: by algorithm, one entry per seed."""
    found: dict[str, list[dict[str, float]]] = {algorithm: [] for algorithm in ALGORITHMS}
    for seed in range(args.seeds):
        for algorithm in ALGORITHMS:
            found[algorithm].append(measured(trained(algorithm, seed, args), args))
    return found


def table(found: dict[str, list[dict[str, float]]], args: argparse.Namespace) -> str:
    """Render means and standard deviations over seeds, and of the paired difference, in percent."""
    erm, greg = (found[algorithm] for algorithm in ALGORITHMS)
    lines = ["| | ERM | GReg | GReg - ERM |", "| --- | ---: | ---: | ---: |"]
    for key in erm[0]:
        a, b = (np.array([100 * one[key] for one in side]) for side in (erm, greg))
        cells = [f"{v.mean():{sign}.1f} ± {v.std(ddof=1):.1f}" for v, sign in ((a, ""), (b, ""), (b - a, "+"))]
        lines.append(f"| {key} | {' | '.join(cells)} |")
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, {backends.find(args.dataset)}"
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    lines += [
        "",
        f"{args.dataset}, test env {args.test_env}, {args.seeds} seeds, {args.steps} steps, default "
        f"hyper-parameters{f' but {args.hparams}' if args.hparams != '{}' else ''}; in percent, mean ± standard "
        "deviation over seeds.",
        f"{machine}; {versions}; {datetime.date.today().isoformat()}.",
    ]
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    result.add_argument("--out", required=True, help="where the runs go")
    result.add_argument("--dataset", default="RotatedDigits")
    result.add_argument("--data_dir")
    result.add_argument("--test_env", type=int, default=0)
    result.add_argument("--seeds", type=int, default=3, help="at least 2")
    result.add_argument("--steps", type=int, default=300)
    result.add_argument("--hparams", default="{}", help="hyper-parameters of both that override the registry's")
    return result


def main() -> None:
    args: Any = parser().parse_args()
    torch.set_num_threads(1)
    print(table(study(args), args))


if __name__ == "__main__":
    main()
