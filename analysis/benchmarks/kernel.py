"""The counting kernel alone: its speed against the authors' comparison, and the memory it takes."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from analysis.benchmarks.recipes import AuthorsEstimator
from analysis.benchmarks.timing import Run, Spread, side_by_side
from nacme import NeuronActivationCoverage

BATCH, NEURONS = 64, 2048


@dataclass(frozen=True)
class KernelFigures:
    """One number of bins.

    Attributes
    ----------
    bins : int
    milliseconds, authors_milliseconds : Spread
        Of one batch; processor time on the CPU, time between events on CUDA.
    times_faster : Spread
    extra_bytes, authors_extra_bytes : int
        Peak of what was allocated during the update.
    allowed_bytes : int
        ``4 B N + 8 N M`` and a megabyte.
    """

    bins: int
    milliseconds: Spread
    authors_milliseconds: Spread
    times_faster: Spread
    extra_bytes: int
    authors_extra_bytes: int
    allowed_bytes: int


def measure_kernel(bins: int, device: torch.device, repeats: int, calls: int = 20) -> KernelFigures:
    """Count one batch of states with both.

    Parameters
    ----------
    bins : int
        ``M``.
    device : torch.device
    repeats : int
        Pairs that are timed.
    calls : int
        Of our kernel per pair: one call alone is shorter than clocks resolve well.

    Returns
    -------
    KernelFigures
    """
    states = torch.rand(BATCH, NEURONS, generator=torch.Generator().manual_seed(0)).to(device)
    ours = NeuronActivationCoverage(NEURONS, bins=bins).to(device)
    theirs = AuthorsEstimator(NEURONS, bins, 500, device)

    def count() -> None:
        for _ in range(calls):
            ours.update(states)

    runs: dict[str, Run] = {"ours": count, "authors": lambda: theirs.update(states)}
    times = side_by_side(runs, device, repeats)
    clock = "processor" if device.type == "cpu" else "wall"
    ratio, mine, authors = (
        times.ratio(("authors",), ("ours",), clock),
        times.seconds("ours", clock),
        times.seconds("authors", clock),
    )
    assert ratio is not None
    assert mine is not None
    assert authors is not None
    return KernelFigures(
        bins,
        _scaled(mine, 1e3 / calls),
        _scaled(authors, 1e3),
        _scaled(ratio, calls),
        peak_extra_bytes(lambda: ours.update(states), device),
        peak_extra_bytes(lambda: theirs.update(states), device),
        4 * BATCH * NEURONS + 8 * NEURONS * bins + 2**20,
    )


def peak_extra_bytes(run: Run, device: torch.device) -> int:
    """Find the most that tensors allocated while something ran held at any time, beyond what was held before.

    Parameters
    ----------
    run : callable
    device : torch.device

    Returns
    -------
    int
        Bytes: from PyTorch's own statistics on CUDA, from the allocations that its profiler sees on the CPU.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    held = peak = 0
    for event in sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: float(e["ts"])):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


def _scaled(spread: Spread, factor: float) -> Spread:
    return Spread(spread.median * factor, spread.low * factor, spread.high * factor)
