"""Seeds, splits and printing: same names and same numbers as ``domainbed.lib.misc``."""

from __future__ import annotations

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

Minibatch = tuple[Tensor, Tensor]


def seed_hash(*args: object) -> int:
    """Turn any arguments into a seed: the MD5 of their printed tuple, modulo 2^31.

    Parameters
    ----------
    *args
        Whatever tells one stream of random numbers from another, e.g. ``(trial_seed, env)``.

    Returns
    -------
    int
        In ``[0, 2**31)``. The same as ``domainbed.lib.misc.seed_hash`` gives.
    """
    return int(hashlib.md5(str(args).encode()).hexdigest(), 16) % 2**31


def split_dataset(dataset: Any, n: int, seed: int = 0) -> tuple[Dataset[Any], Dataset[Any]]:
    """Split a dataset at random in two.

    Parameters
    ----------
    dataset : torch.utils.data.Dataset
        Anything with a length. A ``TensorDataset`` gives two ``TensorDataset``, which the loaders read in
        whole batches; all else gives two ``Subset``.
    n : int
        Size of the first part.
    seed : int
        Of the shuffle. The same seed gives the parts that ``domainbed.lib.misc.split_dataset`` gives.

    Returns
    -------
    tuple of torch.utils.data.Dataset
        The first `n` of the shuffled samples, and the rest.

    Raises
    ------
    ValueError
        If `n` is larger than the dataset.
    """
    if not 0 <= n <= len(dataset):
        raise ValueError(f"n={n} samples cannot be split off a dataset of {len(dataset)}")
    keys = list(range(len(dataset)))
    np.random.RandomState(seed).shuffle(keys)
    first, rest = keys[:n], keys[n:]
    if isinstance(dataset, TensorDataset):
        return TensorDataset(*dataset[first]), TensorDataset(*dataset[rest])
    return Subset(dataset, first), Subset(dataset, rest)


def make_weights_for_balanced_classes(dataset: Iterable[tuple[Any, Any]]) -> Tensor:
    """Weigh each sample so that every class present has the same total weight.

    Parameters
    ----------
    dataset : iterable of (x, y)
        A labelled dataset.

    Returns
    -------
    torch.Tensor
        Shape ``[len(dataset)]``, sums to one.
    """
    labels = [int(y) for _, y in dataset]
    counts = Counter(labels)
    return torch.tensor([1 / (counts[y] * len(counts)) for y in labels])


def random_pairs_of_minibatches(minibatches: Sequence[Minibatch]) -> list[tuple[Minibatch, Minibatch]]:
    """Pair each domain's minibatch with that of another, along a random ring.

    Parameters
    ----------
    minibatches : sequence of (x, y)
        One minibatch for each domain. The ring is drawn from torch's global generator, as DomainBed does.

    Returns
    -------
    list of ((x_i, y_i), (x_j, y_j))
        As many pairs as minibatches; both of a pair are cut to the shorter of the two.
    """
    ring = torch.randperm(len(minibatches)).tolist()
    pairs = []
    for i, j in zip(ring, ring[1:] + ring[:1]):
        (xi, yi), (xj, yj) = minibatches[i], minibatches[j]
        size = min(len(xi), len(xj))
        pairs.append(((xi[:size], yi[:size]), (xj[:size], yj[:size])))
    return pairs


def print_row(row: Iterable[object], colwidth: int = 10, latex: bool = False) -> None:
    r"""Print one line of a table, each cell cut and padded to the same width.

    Parameters
    ----------
    row : iterable
        The cells. Floats are shown with ten decimals before they are cut.
    colwidth : int
        Characters in each cell.
    latex : bool
        Separate by ``&`` and end with ``\\``.
    """
    cells = [f"{x:.10f}" if isinstance(x, (float, np.floating)) else str(x) for x in row]
    separator, end = (" & ", "\\\\") if latex else ("  ", "")
    print(separator.join(cell.ljust(colwidth)[:colwidth] for cell in cells), end)


class Tee:
    """A stream that writes to the standard output of its birth and to a file, and flushes both each time.

    Parameters
    ----------
    fname : str or os.PathLike
        The file.
    mode : str
        How to open it; the default continues an existing one.
    """

    def __init__(self, fname: str | os.PathLike[str], mode: str = "a") -> None:
        self.stdout = sys.stdout
        self.file = open(fname, mode)  # noqa: SIM115 - lives as long as the process prints

    def write(self, message: str) -> None:
        """Write `message` to both."""
        self.stdout.write(message)
        self.file.write(message)
        self.flush()

    def flush(self) -> None:
        """Flush both."""
        self.stdout.flush()
        self.file.flush()
