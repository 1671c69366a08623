"""Passes over one data set by one network: plain accuracy, ours, and the authors' recipe."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch

from analysis.benchmarks.recipes import (
    authors_code_pass,
    authors_pass,
    layer_sizes,
)
from analysis.benchmarks.timing import Run, Times, side_by_side
from analysis.benchmarks.workloads import Workload
from nacme import Recorder, measure
from nacme.errors import NacmeWarning

#: The authors' scale; a fill that suits the few samples here. Neither changes how long a pass takes.
ALPHA, FILL = 0.1, 5
BINS = (50, 500, 1000)
ENVS = 3


@dataclass(frozen=True)
class PassFigures:
    """One network, choice of layers and number of bins.

    Attributes
    ----------
    model : str
    layers : {"penultimate", "four stages"}
    bins : int
    samples : int
    times : Times
        Of ``accuracy``, ``nac``, ``authors``, and where measured ``authors_code`` and ``all_criteria``.
    difference : float
        The largest between our NAC-ME of a layer and the authors', by whichever of their two passes.
    """

    model: str
    layers: str
    bins: int
    samples: int
    times: Times
    difference: float


def measure_passes(
    workload: Workload, device: torch.device, repeats: int, all_bins: tuple[int, ...], tools: dict[str, Any]
) -> list[PassFigures]:
    """Time the passes of one network, at the penultimate layer and at four stages.

    Parameters
    ----------
    workload : Workload
    device : torch.device
    repeats : int
        Rounds with the first number of bins; half as many, and no fewer than 2, with the others.
    all_bins : tuple of int
    tools : dict
        ``accuracy``: DomainBed's function. ``authors``: their module of coverage, or None.

    Returns
    -------
    list of PassFigures
    """
    algorithm = workload.build(device)
    data = workload.data(algorithm, device)
    found = []
    for layers, names in (("penultimate", (workload.penultimate,)), ("four stages", workload.stages)):
        sizes = layer_sizes(algorithm, names, data[0][0])
        for bins in all_bins:
            latest: dict[str, Any] = {}

            def ours(bins: int = bins, layers: str = layers, latest: dict[str, Any] = latest) -> None:
                wanted = None if layers == "penultimate" else workload.stages
                latest["nac"] = measure(algorithm, data, wanted, ALPHA, bins, FILL)

            def recipe(bins: int = bins, sizes: dict[str, int] = sizes, latest: dict[str, Any] = latest) -> None:
                latest["authors"] = authors_pass(algorithm, data, sizes, bins, FILL, ALPHA, device)

            def code(bins: int = bins, sizes: dict[str, int] = sizes, latest: dict[str, Any] = latest) -> None:
                latest["authors_code"] = authors_code_pass(
                    tools["authors"], algorithm, data, sizes, bins, FILL, ALPHA, device
                )

            runs: dict[str, Run] = {
                "accuracy": lambda: tools["accuracy"](algorithm, data, None, device),
                "nac": ours,
                "authors": recipe,
            }
            if tools["authors"] is not None:
                runs["authors_code"] = code
            if layers == "penultimate" and bins == all_bins[0]:
                envs = {f"env{env}_out": data[env::ENVS] for env in range(ENVS)}
                runs["all_criteria"] = lambda envs=envs: Recorder(algorithm, envs).record()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NacmeWarning)
                times = side_by_side(runs, device, repeats if bins == all_bins[0] else max(2, repeats // 2))
            # one layer has one name here and another there; several have the same, in the same order
            mine = list(latest["nac"].per_layer.values())
            theirs = [list(latest[name].values()) for name in ("authors", "authors_code") if name in latest]
            difference = max(abs(a - b) for values in theirs for a, b in zip(mine, values, strict=True))
            samples = sum(len(x) for x, _ in data)
            found.append(PassFigures(workload.name, layers, bins, samples, times, difference))
    return found
