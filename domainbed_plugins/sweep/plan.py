"""How large a sweep is, and roughly what it costs.

The estimate counts arithmetic: a training step costs three times a forward pass (one forward, two backward), an
evaluation one forward pass over every split. Networks: torchvision's tables for ResNet-18 and ResNet-50; DINOv2's
ViT-B/14 and the two small ones by hand; the ResNet-10 by a forward hook on its convolutions, of which
``2 * in_channels * kernel area * outputs`` were summed; all at the size that DomainBed feeds them. Pretrained ones
of timm are counted when they are asked for.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domainbed_plugins.backends import find as backends
from domainbed_plugins.backends import image_folders, networks
from domainbed_plugins.sweep.jobs import Job, SweepSpec, make_jobs
from domainbed_plugins.training.averages import first_step

if TYPE_CHECKING:
    from nacme.output import Format

#: Arithmetic per second that training keeps up, in 1e12: roughly float32 convolutions on one data-centre GPU.
SUSTAINED = 10.0


@dataclass(frozen=True)
class Network:
    """What a network costs.

    Attributes
    ----------
    gflop : float
        Of one image's forward pass, a multiplication and an addition counted as two.
    megabytes : float
        Of a checkpoint of ERM.
    """

    gflop: float
    megabytes: float


NETWORKS = {
    "digits": Network(0.002, 0.1),
    "MNIST CNN": Network(0.146, 1.5),
    "ResNet-10 at 64 px": Network(0.0465, 5.0),
    "ResNet-18": Network(3.6, 45),
    "ResNet-50": Network(8.2, 94),
    "ViT-B/14": Network(46.8, 343),
}
#: Images of DomainBed's data sets, by its README and the papers there; of the debugging ones by its code. How many
#: there are in WILDS's and Spawrious's depends on what was downloaded: they stand in no table.
IMAGES = {
    "Debug28": 48,
    "Debug224": 48,
    "RotatedDigits": 1_797,
    "ColoredDigits": 1_797,
    "RotatedMNIST": 70_000,
    "ColoredMNIST": 70_000,
    "VLCS": 10_729,
    "PACS": 9_991,
    "OfficeHome": 15_588,
    "TerraIncognita": 24_788,
    "DomainNet": 586_575,
    "SVIRO": 56_000,
    "EMOJI": 5_361,
}


def plan(
    spec: SweepSpec, output_dir: Path | None, data_dir: str | None, domainbed: str | None, form: Format
) -> None:
    """Print a row for each data set, and the sum.

    Parameters
    ----------
    spec : SweepSpec
    output_dir : path, optional
        To count what is done already.
    data_dir, domainbed : str, optional
        See `make_jobs`.
    form : {"table", "csv", "json"}
    """
    import pandas as pd

    from nacme.output import write_frame

    jobs = make_jobs(spec, output_dir or Path("sweep"), data_dir, domainbed)
    rows: dict[str, dict[str, Any]] = {}
    for job in jobs:
        row = rows.setdefault(job.args["dataset"], {"dataset": job.args["dataset"], "network": "", "runs": 0})
        for key, value in _cost(job, spec, domainbed, counted=output_dir is not None).items():
            row[key] = value if isinstance(value, str) else row.get(key, 0) + value
    frame = pd.DataFrame(list(rows.values()))
    if len(frame) > 1:
        # a part that is not known leaves the whole unknown
        total = {key: frame[key].sum(skipna=False) for key in frame.columns[2:]}
        frame = pd.concat([frame, pd.DataFrame([{"dataset": "all", "network": "", **total}])], ignore_index=True)
    for column in ("hours", "gigabytes"):
        frame[column] = [float(f"{value:.2g}") for value in frame[column]]
    write_frame(frame, form)
    print(
        f"hours: an estimate from the arithmetic, at {SUSTAINED:g} TFLOP/s (one GPU); reading and augmenting "
        "images come on top. gigabytes: checkpoints that stay on disk, an upper bound",
        file=sys.stderr,
    )
    if unknown := sorted({row["dataset"] for row in rows.values() if math.isnan(row["hours"])}):
        print(f"hours are unknown for {', '.join(unknown)}: how many images they hold is not", file=sys.stderr)


def _cost(job: Job, spec: SweepSpec, domainbed: str | None, *, counted: bool) -> dict[str, Any]:
    from domainbed_plugins.backends.arguments import make_hparams

    args = job.args
    testbed = backends.find(args["dataset"], domainbed)
    dataset = testbed.datasets.get_dataset_class(args["dataset"])
    hparams = make_hparams(testbed, args)
    base, size = image_folders.parse(args["dataset"]) or (args["dataset"], 224)
    name, network = _network(base, size, hparams, testbed.name)
    steps = args["steps"] or dataset.N_STEPS
    at = {*range(0, steps, args["checkpoint_freq"] or dataset.CHECKPOINT_FREQ), steps - 1}
    checkpoints, averages = len(at), len(spec.average)
    # averages are measured, too, once there are any
    passes = checkpoints + averages * sum(step >= first_step(spec.average_from, steps) for step in at)
    n_envs = testbed.datasets.num_environments(args["dataset"])
    train_envs = n_envs - len(args["test_envs"])
    images: float = IMAGES.get(base, math.nan)
    if spec.eval_splits == "fast" and "in" not in spec.splits():
        images *= 1 - (1 - args["holdout_fraction"]) * train_envs / n_envs
    trained = 3 * steps * hparams["batch_size"] * train_envs
    # of all, the last is there twice: as model.pkl, too
    kept = checkpoints + 1 if "all" in spec.keep else min(checkpoints, max(1, len(set(spec.keep))))
    done = {"done": int(job.state == "done")} if counted else {}
    return {
        "network": name,
        "runs": 1,
        **done,
        "steps": steps,
        "checkpoints": checkpoints,
        "gigabytes": kept * (1 + averages) * network.megabytes / 1000,
        "hours": (trained + passes * images) * network.gflop / 1000 / SUSTAINED / 3600,
    }


def _network(dataset: str, size: int, hparams: Mapping[str, Any], testbed: str) -> tuple[str, Network]:
    name = hparams.get("featurizer") or (networks.SCRATCH if size == image_folders.UNNAMED else None)
    if name == networks.SCRATCH:
        known = NETWORKS["ResNet-10 at 64 px"]
        return f"ResNet-10 at {size} px", Network(known.gflop * (size / 64) ** 2, known.megabytes)
    if name is not None:
        networks.check(hparams, testbed)
        return f"{name} at {size} px", _counted(name, size)
    stock = "ResNet-18" if hparams.get("resnet18") else "ResNet-50"
    if testbed == "embedded":
        stock = "digits"
    elif dataset in ("RotatedMNIST", "ColoredMNIST", "Debug28"):
        stock = "MNIST CNN"
    elif hparams.get("vit"):
        stock = "ViT-B/14"
    return stock, NETWORKS[stock]


@functools.cache
def _counted(featurizer: str, size: int) -> Network:
    flop, parameters = networks.count(featurizer, (3, size, size))
    return Network(flop / 1e9, 4 * parameters / 1e6)
