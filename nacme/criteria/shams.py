"""Shams: what coverage would be without what it claims to measure.

A finding about coverage has to beat them. ``sham_count`` keeps of a checkpoint only how many samples were counted;
`permuted_coverage` also keeps the shape of a run's state distributions, but gives each checkpoint another one's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Counts:
    """What one checkpoint's ``nac_me`` was computed from.

    Attributes
    ----------
    by_layer : mapping of str to ndarray, shape [N, M - 1]
        States per neuron and bin.
    counted : int
        Samples that were counted.
    """

    by_layer: Mapping[str, npt.NDArray[np.integer]]
    counted: int


def permuted_coverage(counts: Sequence[Counts], fill: int | float, seed: int) -> list[float]:
    """NAC-ME of another checkpoint's state distribution, with each checkpoint's own number of counted samples.

    Parameters
    ----------
    counts : sequence of Counts
        Of a run's checkpoints, in order.
    fill : int or float
        ``O``, as a count or as a fraction of the counted samples.
    seed : int
        Of the permutation.

    Returns
    -------
    list of float
        One a checkpoint. NaN where the other checkpoint counted no sample, and throughout for a single one.

    Notes
    -----
    The permutation is a random cycle through all checkpoints, so none keeps its own distribution (Sattolo, 1986).
    Another's counts are multiplied by the ratio of counted samples. The mean is over ``M``, though there are
    ``M - 1`` bins, as everywhere.
    """
    return [
        _coverage(counts[donor], here.counted, fill) if donor != index else float("nan")
        for index, (here, donor) in enumerate(zip(counts, cycle(len(counts), seed)))
    ]


def cycle(count: int, seed: int) -> list[int]:
    """Draw a permutation that is one cycle: no fixed points, from two elements on.

    Parameters
    ----------
    count : int
    seed : int

    Returns
    -------
    list of int
        Each of ``range(count)`` once.
    """
    rng = np.random.default_rng(seed)
    order = list(range(count))
    for last in range(count - 1, 0, -1):
        other = int(rng.integers(last))
        order[last], order[other] = order[other], order[last]
    return order


def _coverage(donor: Counts, counted: int, fill: int | float) -> float:
    if donor.counted == 0:
        return float("nan")
    if counted == 0:
        return 0.0
    full = fill * counted if isinstance(fill, float) else fill
    layers = [
        np.minimum(states * (counted / donor.counted) / full, 1).sum(axis=1).mean() / (states.shape[1] + 1)
        for states in donor.by_layer.values()
    ]
    return float(np.mean(layers))
