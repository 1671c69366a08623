"""The figures as a page of Markdown, with the targets and whether each is met."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from analysis.benchmarks.kernel import KernelFigures
from analysis.benchmarks.passes import PassFigures
from analysis.benchmarks.timing import Spread, Times

#: Largest ratio of `measure` with NAC to the accuracy pass, penultimate layer, first number of bins.
COST = {"MNIST_CNN": 1.15, "ResNet-18": 1.05, "ResNet-50": 1.03}
ALL_CRITERIA = {"ResNet-18": 1.15}
#: Smallest ratio of the accuracy pass and the authors' together to ours.
SPEED = {"penultimate": 2.0, "four stages": 1.8}
KERNEL = {50: 10.0, 1000: 100.0}
IMPORT, HELP_SECONDS = 1.3, 0.5
FIRST_USE = 1.2


@dataclass(frozen=True)
class Results:
    """All that one run of the benchmark found.

    Attributes
    ----------
    setting : dict
        Date, machine, versions and how it was run.
    passes : dict of str to list of PassFigures
        By device.
    kernels : dict of str to list of KernelFigures
        By device.
    startup : Times
    """

    setting: dict[str, Any]
    passes: dict[str, list[PassFigures]]
    kernels: dict[str, list[KernelFigures]]
    startup: Times


def markdown(results: Results) -> str:
    """Write the page."""
    lines = ["# Benchmarks", ""]
    lines += [f"- {name}: {value}" for name, value in results.setting.items() if value is not None]
    lines += [
        "",
        "Ratios are taken round by round: the median, and in brackets the smallest and the largest. On the CPU "
        "they are ratios of processor time (all threads of the process), which other work on the machine does "
        "not stretch as it stretches the clock; the clock's ratios stand in a table of their own. On CUDA times "
        "lie between two events on the stream.",
    ]
    lines += ["", "## Targets", "", "| target | device | measured | met |", "| --- | --- | --- | --- |"]
    lines += [f"| {name} | {device} | {value} | {_yes(met)} |" for name, device, value, met in targets(results)]
    for device, figures in results.passes.items():
        clocks = ("processor", "wall") if device == "cpu" else ("wall",)
        for clock in clocks:
            kind = {"cpu": {"processor": "processor time", "wall": "by the clock"}, "cuda": {"wall": "events"}}
            lines += ["", f"## Passes on {device.upper()}, {kind[device][clock]}", "", *_passes(figures, clock)]
    for device, kernels in results.kernels.items():
        lines += ["", f"## Counting kernel on {device.upper()}, B=64, N=2048", "", *_kernels(kernels)]
    return "\n".join([*lines, "", "## Starting", "", *_startup(results.startup), ""])


def targets(results: Results) -> Iterator[tuple[str, str, str, bool]]:
    """Compare medians with what is wanted: target, device, measured value, whether it is met."""
    for device, figures in results.passes.items():
        clock = "processor" if device == "cpu" else "wall"
        first = min((f.bins for f in figures), default=0)
        for f in figures:
            if f.layers != "penultimate" or f.bins != first:
                continue
            for name, label, limits in (
                ("nac", "NAC", COST),
                ("all_criteria", "all default criteria", ALL_CRITERIA),
            ):
                ratio = f.times.ratio((name,), ("accuracy",), clock) if f.model in limits else None
                if ratio is not None:
                    limit = limits[f.model]
                    title = f"{f.model}: {label} at most {limit} times the accuracy pass"
                    yield title, device, _spread(ratio), ratio.median <= limit
        for layers, limit in SPEED.items():
            for name, whose in (("authors", "recipe"), ("authors_code", "code")):
                ratios = [
                    (f.times.ratio(("accuracy", name), ("nac",), clock), f)
                    for f in figures
                    if f.layers == layers and name in f.times.wall
                ]
                known = [(ratio, f) for ratio, f in ratios if ratio is not None]
                if known:
                    ratio, f = min(known, key=lambda pair: pair[0].median)
                    title = f"{layers}: at least {limit} times faster than accuracy and the authors' {whose}"
                    least = f"{_spread(ratio)}, least of {len(known)} ({f.model}, M={f.bins})"
                    yield title, device, least, ratio.median >= limit
    for device, kernels in results.kernels.items():
        for k in kernels:
            title = f"counting at M={k.bins} at least {KERNEL[k.bins]:g} times faster than the comparison"
            yield title, device, _spread(k.times_faster, 1), k.times_faster.median >= KERNEL[k.bins]
            title = f"counting at M={k.bins} takes less than 4BN + 8NM bytes + 1 MB"
            measured = f"{_megabytes(k.extra_bytes)} of {_megabytes(k.allowed_bytes)}"
            yield title, device, measured, k.extra_bytes < k.allowed_bytes
    ratio = results.startup.ratio(("import nacme",), ("import torch",), "processor")
    seconds = results.startup.seconds("nacme --help", "processor")
    assert ratio is not None
    assert seconds is not None
    yield f"`import nacme` below {IMPORT} times `import torch`", "cpu", _spread(ratio), ratio.median < IMPORT
    plain, first = "import torch, a plain pass", "import torch, the first nacme.measure"
    ratio = results.startup.ratio((first,), (plain,), "processor")
    assert ratio is not None
    said = f"{first}: at most {FIRST_USE} times {plain}"
    yield said, "cpu", _spread(ratio), ratio.median <= FIRST_USE
    title = f"`nacme --help` below {HELP_SECONDS} s of processor time"
    yield title, "cpu", f"{_spread(seconds)} s", seconds.median < HELP_SECONDS


def _passes(figures: list[PassFigures], clock: str) -> Iterator[str]:
    yield (
        "| model | layers | M | samples | accuracy, s | NAC / accuracy | all criteria / accuracy | "
        "(accuracy + authors' recipe) / NAC | (accuracy + authors' code) / NAC | NAC-ME differs by |"
    )
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for f in figures:
        seconds = f.times.seconds("accuracy", clock)
        assert seconds is not None
        cells = [f.model, f.layers, f.bins, f.samples, f"{seconds.median:.3f}"]
        for above, below in (
            (("nac",), ("accuracy",)),
            (("all_criteria",), ("accuracy",)),
            (("accuracy", "authors"), ("nac",)),
            (("accuracy", "authors_code"), ("nac",)),
        ):
            known = all(name in f.times.wall for name in above)
            ratio = f.times.ratio(above, below, clock) if known else None
            cells.append("" if ratio is None else _spread(ratio))
        yield _row([*cells, f"{f.difference:.0e}"])


def _kernels(kernels: list[KernelFigures]) -> Iterator[str]:
    yield "| M | ours, ms | authors' comparison, ms | times faster | our peak | authors' peak | allowed |"
    yield "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for k in kernels:
        yield _row(
            [
                k.bins,
                _spread(k.milliseconds),
                _spread(k.authors_milliseconds, 1),
                _spread(k.times_faster, 1),
                *(_megabytes(size) for size in (k.extra_bytes, k.authors_extra_bytes, k.allowed_bytes)),
            ]
        )


def _startup(times: Times) -> Iterator[str]:
    yield "| command | processor time, s | by the clock, s |"
    yield "| --- | ---: | ---: |"
    for name in times.wall:
        processor, wall = times.seconds(name, "processor"), times.seconds(name, "wall")
        assert processor is not None
        assert wall is not None
        yield _row([f"`{name}`", _spread(processor), _spread(wall)])


def _row(cells: list[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _spread(spread: Spread, digits: int = 3) -> str:
    return f"{spread.median:.{digits}f} ({spread.low:.{digits}f} to {spread.high:.{digits}f})"


def _megabytes(size: int) -> str:
    return f"{size / 2**20:.2f} MB"


def _yes(met: bool) -> str:
    return "yes" if met else "**no**"
