"""The training samples that detectors are fitted on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from domainbed_plugins.data.splits import EVAL_BATCH_SIZE

Batch = tuple[Tensor, Tensor]


def balanced(loaders: Sequence[Iterable[Batch]], count: int, rng: np.random.Generator) -> list[Batch]:
    """Draw training samples, as many of each class as there are, in an order that mixes classes.

    Parameters
    ----------
    loaders : sequence of iterable of (Tensor, Tensor)
        The splits to draw from.
    count : int
        How many at most.
    rng : numpy.random.Generator

    Returns
    -------
    list of (Tensor, Tensor)
        In batches. A class with fewer samples than its share gives them all, and the others more.
    """
    labels = torch.cat([y for loader in loaders for _, y in loader]).tolist()
    seen: Counter[int] = Counter()
    ranks: dict[int, tuple[int, int]] = {}
    for index in rng.permutation(len(labels)).tolist():
        ranks[index] = (seen[labels[index]], len(ranks))
        seen[labels[index]] += 1
    # every class's first sample, then every class's second, ...
    chosen = sorted(ranks, key=lambda index: ranks[index])[:count]
    wanted = set(chosen)
    found: dict[int, Batch] = {}
    position = 0
    for loader in loaders:
        for x, y in loader:
            for i in range(len(x)):
                if position + i in wanted:
                    found[position + i] = x[i], y[i]
            position += len(x)
    pairs = [found[index] for index in chosen]
    return [
        (torch.stack([x for x, _ in some]), torch.stack([y for _, y in some]))
        for some in (pairs[i : i + EVAL_BATCH_SIZE] for i in range(0, len(pairs), EVAL_BATCH_SIZE))
    ]
