"""How well do the detectors tell CIFAR-10 from other images, and what do they cost?

    NACME_DATA=... python analysis/ood_cifar10.py [--json FILE]

In-distribution: 2,000 test images. Fitted on 1,000 training images. Settings that are searched are searched on
these 1,000 alone (half to fit, half against their own transformations); no test image of either side is seen.
Out-of-distribution: MNIST digits, and PACS images of the classes that CIFAR-10 lacks. Prints Markdown, then JSON.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_ood.detector as stock
import torch
from cifar_resnet import load, normalize
from PIL import Image
from torch import Tensor
from torchvision.datasets import MNIST

from nacme.ood import NACUE, NAP, LINe, tune
from nacme.ood.evaluation import detection_metrics

BATCH = 100
STAGES = ["layer1", "layer2", "layer3", "avgpool"]
SHARED = {"dog", "horse"}  # PACS classes that CIFAR-10 has too


def arrays(path: Path) -> tuple[Tensor, Tensor]:
    with np.load(path, allow_pickle=False) as file:
        return normalize(file["images"]), torch.from_numpy(file["labels"])


def digits(root: Path) -> Tensor:
    data = MNIST(str(root), train=False).data.numpy()
    images = [Image.fromarray(digit).resize((32, 32), Image.Resampling.BILINEAR).convert("RGB") for digit in data]
    return normalize(np.stack([np.asarray(image) for image in images]))


def pacs(root: Path, count: int, seed: int) -> Tensor:
    paths = sorted(path for path in root.glob("*/*/*.jpg") if path.parent.name not in SHARED)
    chosen = np.random.default_rng(seed).choice(len(paths), count, replace=False)
    images = []
    for index in chosen:
        with Image.open(paths[index]) as image:
            images.append(np.asarray(image.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)))
    return normalize(np.stack(images))


def batches(x: Tensor, y: Tensor | None = None) -> list[Any]:
    return list(zip(x.split(BATCH), y.split(BATCH))) if y is not None else list(x.split(BATCH))


def scores(detector: Any, x: Tensor) -> np.ndarray:
    # some of pytorch-ood's detectors build a graph, and its NACUE needs one
    return torch.cat([detector.predict(part).detach().double() for part in batches(x)]).numpy()


def build(model: Any, x: Tensor, y: Tensor) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Every detector, fitted, with the settings that were searched for it."""
    half = len(x) // 2
    fit, validation = batches(x[:half], y[:half]), batches(x[half:], y[half:])
    head = model.linear

    def searched(detector: Any, space: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        found = tune(detector, fit, validation, space)
        return detector, {**found.settings, "pseudo_auroc": round(found.auroc, 4)}

    # the stages differ in scale by orders of magnitude, so each is searched alone
    space = {"alpha": [10.0**k for k in range(-3, 5)], "bins": [50, 500], "fill": [5, 50]}
    single = {stage: searched(NACUE(model, [stage]), space)[1] for stage in STAGES}
    by_stage = {
        key: {stage: settings[key] for stage, settings in single.items()} for key in ("alpha", "bins", "fill")
    }
    found: dict[str, tuple[Any, dict[str, Any]]] = {
        "MSP": (stock.MaxSoftmax(model), {}),
        "Energy": (stock.EnergyBased(model), {}),
        "ViM": (stock.ViM(model.features, d=32, w=head.weight, b=head.bias), {"d": 32}),
        "KNN": (stock.KNN(model.features, k=50), {"k": 50}),
        "NACUE of pytorch-ood": (stock.NACUE(model, [model.avgpool]), {}),
        "NACUE, penultimate, published": (NACUE(model), {}),
        "NACUE, penultimate, searched": searched(NACUE(model), space),
        "NACUE, four layers, searched": (NACUE(model, STAGES, **by_stage), by_stage),
        "LINe, published": (LINe(model), {}),
        "LINe, searched": searched(LINe(model)),
        "NAP, published": (NAP(model), {}),
        "NAP, searched": searched(NAP(model)),
    }
    for detector, _ in found.values():
        with torch.no_grad() if not isinstance(detector, stock.NACUE) else torch.enable_grad():
            detector.fit(batches(x, y))
    return found


def cost(run: Callable[[Tensor], Any], plain: Callable[[Tensor], Any], x: Tensor) -> tuple[float, float]:
    """Processor time of a plain forward pass in ms per image, and of `run` in forward passes.

    Both are measured in turn, so that a busy machine slows them alike; medians of nine.
    """
    parts = batches(x[: 2 * BATCH])
    forward, ratio = [], []
    for one in (run, plain):
        one(parts[0])
    for _ in range(9):
        spent = []
        for one in (plain, run):
            start = time.process_time()
            for part in parts:
                one(part)
            spent.append((time.process_time() - start) / (2 * BATCH) * 1e3)
        forward.append(spent[0])
        ratio.append(spent[1] / spent[0])
    return statistics.median(forward), statistics.median(ratio)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the JSON there instead of behind the table")
    args = parser.parse_args()
    root = Path(os.environ.get("NACME_DATA") or sys.exit("set NACME_DATA to the folder that holds cifar10/"))
    torch.set_num_threads(1)
    model = load(root / "cifar10" / "resnet20.npz")
    test, labels = arrays(root / "cifar10" / "test_2000.npz")
    with torch.no_grad():
        correct = int((torch.cat([model(part) for part in batches(test)]).argmax(1) == labels).sum())
    outside = {"MNIST": digits(root / "mnist10k"), "PACS": pacs(root / "PACS", 2000, seed=0)}
    plain = torch.no_grad()(model)
    rows = []
    for name, (detector, settings) in build(model, *arrays(root / "cifar10" / "train_1000.npz")).items():
        print(name, file=sys.stderr)
        inside = scores(detector, test)
        row: dict[str, Any] = {"detector": name, "settings": settings}
        row |= {data: detection_metrics(inside, scores(detector, x)) for data, x in outside.items()}
        needs_graph = isinstance(detector, stock.NACUE)
        run = detector.predict if needs_graph else torch.no_grad()(detector.predict)
        row["forward_ms_per_image"], row["times_forward"] = cost(run, plain, test)
        rows.append(row)
    result = {
        "correct": correct,
        "images": {"CIFAR-10": len(test), **{name: len(x) for name, x in outside.items()}},
        "forward_ms_per_image": statistics.median(row["forward_ms_per_image"] for row in rows),
        "batch": BATCH,
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, 1 thread",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "date": datetime.date.today().isoformat(),
        "rows": rows,
    }
    print(table(result))
    text = json.dumps(result, indent=1)
    if args.json:
        partial = args.json.with_suffix(".tmp")
        partial.write_text(text + "\n")
        partial.replace(args.json)
    else:
        print(f"\n```json\n{text}\n```")


def table(result: dict[str, Any]) -> str:
    """Render the result as Markdown, the best detector first."""
    sets = [name for name in result["images"] if name != "CIFAR-10"]
    mean = {row["detector"]: np.mean([row[name]["auroc"] for name in sets]) for row in result["rows"]}
    lines = [
        "| detector | " + " | ".join(f"{name} AUROC | {name} FPR95" for name in sets) + " | mean AUROC | cost |",
        "| --- |" + " ---: |" * (2 * len(sets) + 2),
    ]
    for row in sorted(result["rows"], key=lambda row: -mean[row["detector"]]):
        cells = [f"{100 * row[name][key]:.1f}" for name in sets for key in ("auroc", "fpr95")]
        lines.append(
            f"| {row['detector']} | {' | '.join(cells)} | {100 * mean[row['detector']]:.1f} "
            f"| {row['times_forward']:.2f} |"
        )
    counts = ", ".join(f"{n} of {name}" for name, n in result["images"].items())
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines += [
        "",
        f"Images: {counts}; {result['correct']} of the first predicted right. AUROC and FPR95 (InD images "
        "flagged where 95% of OOD images are) in percent; "
        f"cost in plain forward passes, by processor time ({result['forward_ms_per_image']:.2f} ms per image, "
        f"batches of {result['batch']}). PACS without {' and '.join(sorted(SHARED))}, which CIFAR-10 has too.",
        f"{result['machine']}; {versions}; {result['date']}.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
