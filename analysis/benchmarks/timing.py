"""Timing of passes side by side: alternating order, warm-up, ratios pair by pair."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Run = Callable[[], object]


@dataclass(frozen=True)
class Spread:
    """A ratio or a duration over the repeats: its median, smallest and largest value."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Summarize values, at least one."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Times:
    """What each pass took in each round, in seconds.

    Attributes
    ----------
    wall : dict of str to list of float
        By the clock; on CUDA between two events on the stream.
    processor : dict of str to list of float
        Time that this process spent on the CPU, all threads together: other work on the machine does not count.
        Empty on CUDA.
    """

    wall: dict[str, list[float]]
    processor: dict[str, list[float]]

    def ratio(self, above: tuple[str, ...], below: tuple[str, ...], clock: str) -> Spread | None:
        """Divide the time of some passes together by that of others, round by round; None without that clock."""
        taken = getattr(self, clock)
        if not taken:
            return None
        rounds = range(len(next(iter(taken.values()))))
        return Spread.of([sum(taken[n][i] for n in above) / sum(taken[n][i] for n in below) for i in rounds])

    def seconds(self, name: str, clock: str) -> Spread | None:
        """Duration of one pass; None without that clock."""
        taken = getattr(self, clock)
        return Spread.of(taken[name]) if taken else None


def side_by_side(runs: Mapping[str, Run], device: torch.device, repeats: int, warm_up: int = 1) -> Times:
    """Time passes in rounds, each round in the other direction than the one before.

    Parameters
    ----------
    runs : mapping of str to callable
    device : torch.device
    repeats : int
        Rounds that count.
    warm_up : int
        Rounds before them that do not.

    Returns
    -------
    Times
    """
    wall: dict[str, list[float]] = {name: [] for name in runs}
    processor: dict[str, list[float]] = {name: [] for name in runs} if device.type == "cpu" else {}
    names = list(runs)
    for number in range(-warm_up, repeats):
        for name in names if number % 2 else reversed(names):
            elapsed, spent = _once(runs[name], device)
            if number >= 0:
                wall[name].append(elapsed)
                if processor:
                    processor[name].append(spent)
    return Times(wall, processor)


def _once(run: Run, device: torch.device) -> tuple[float, float]:
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        run()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1e3, 0.0
    clock, processor = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - clock, time.process_time() - processor
