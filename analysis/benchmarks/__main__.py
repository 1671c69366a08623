"""What does coverage cost, beside plain evaluation and beside the authors' recipe?

    python -m analysis.benchmarks --out bench

measures in one process, in rounds of alternating order after a warm-up, and writes ``results.md`` and
``results.json``. The CPU always; CUDA where present. Where ``DOMAINBED_ROOT`` or ``OOD_COVERAGE_ROOT`` name clones
of DomainBed and of the authors' repository, their own code is measured too.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from analysis.benchmarks.kernel import measure_kernel
from analysis.benchmarks.passes import BINS, measure_passes
from analysis.benchmarks.recipes import authors_code, domainbed_accuracy
from analysis.benchmarks.results import Results, markdown, targets
from analysis.benchmarks.startup import measure_startup
from analysis.benchmarks.workloads import WORKLOADS
from domainbed_plugins.machine import keep_freed_memory


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m analysis.benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("bench"), help="folder for results.md and results.json")
    parser.add_argument("--quick", action="store_true", help="the smallest network and few repeats: a smoke run")
    parser.add_argument("--threads", type=int, help="of PyTorch on the CPU; default: its own choice")
    parser.add_argument("--repeats", type=int, default=5, help="rounds per measurement")
    parser.add_argument("--models", nargs="+", default=[w.name for w in WORKLOADS], help="default: all")
    flags = parser.parse_args()
    if unknown := set(flags.models) - {w.name for w in WORKLOADS}:
        parser.error(f"unknown model {unknown.pop()!r}; choose from {', '.join(w.name for w in WORKLOADS)}")
    if flags.threads:
        torch.set_num_threads(flags.threads)
    if flags.quick:
        flags.repeats, flags.models = 2, ["MNIST_CNN"]
    kept = keep_freed_memory()
    accuracy, is_theirs = domainbed_accuracy()
    tools = {"accuracy": accuracy, "authors": authors_code()}
    load_before, begun = os.getloadavg()[0], time.monotonic()
    say("startup")
    startup = measure_startup(1 if flags.quick else flags.repeats)
    devices = [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]
    passes, kernels = {}, {}
    for device in devices:
        say(f"{device}: counting kernel")
        kernels[device.type] = [measure_kernel(bins, device, flags.repeats) for bins in (50, 1000)]
        passes[device.type] = []
        for workload in WORKLOADS:
            if workload.name not in flags.models:
                continue
            if workload.name.startswith("ViT") and importlib.util.find_spec("timm") is None:
                say(f"{device}: {workload.name} left out, since timm is not installed")
                continue
            say(f"{device}: {workload.name}")
            bins = BINS[:1] if flags.quick else BINS
            passes[device.type] += measure_passes(workload, device, flags.repeats, bins, tools)
    setting = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        **machine(),
        "threads": torch.get_num_threads(),
        "freed memory": "kept by the process" if kept else "handed back as the C library decides",
        "repeats": flags.repeats,
        "quick": flags.quick,
        "accuracy pass": "DomainBed's misc.accuracy" if is_theirs else "DomainBed's misc.accuracy, written anew",
        "authors' code": "measured" if tools["authors"] else "not at hand: OOD_COVERAGE_ROOT is unset",
        "load average before": round(load_before, 2),
        "load average after": round(os.getloadavg()[0], 2),
        "minutes": round((time.monotonic() - begun) / 60, 1),
    }
    results = Results(setting, passes, kernels, startup)
    flags.out.mkdir(parents=True, exist_ok=True)
    compared = [dict(zip(("target", "device", "measured", "met"), row, strict=True)) for row in targets(results)]
    write(flags.out / "results.json", json.dumps({**asdict(results), "targets": compared}, indent=1) + "\n")
    write(flags.out / "results.md", markdown(results))
    print(flags.out / "results.md")


def machine() -> dict[str, Any]:
    """Say what the figures were measured on and with."""
    versions = {
        name: importlib.metadata.version(name) for name in ("torch", "torchvision", "torchmetrics", "nacme")
    }
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
        **versions,
    }


def processor() -> str:
    """Name the processor's kind."""
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write(path: Path, text: str) -> None:
    """Write a file to a temporary name and rename it."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    temporary.replace(path)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
