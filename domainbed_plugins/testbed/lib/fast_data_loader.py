"""Endless sampling for training, random permutations for evaluation: as ``domainbed.lib.fast_data_loader``.

At the size of the testbed's images, fetching and collating samples one by one takes longer than training on
them. A ``TensorDataset`` is therefore indexed once a batch; all else goes sample by sample, as usual.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    Sampler,
    TensorDataset,
    WeightedRandomSampler,
)

from nacme.errors import ConfigError


class _Endless(Sampler[list[int]]):
    """Repeats a sampler for ever; each round draws anew."""

    def __init__(self, sampler: Sampler[list[int]]) -> None:
        self.sampler = sampler

    def __iter__(self) -> Iterator[list[int]]:
        while True:
            yield from self.sampler


def _loader(dataset: Any, batches: Sampler[list[int]], num_workers: int, **options: Any) -> DataLoader[Any]:
    if isinstance(dataset, TensorDataset):
        # Without automatic batching the dataset is indexed with the whole list at once.
        return DataLoader(dataset, batch_size=None, sampler=batches, num_workers=num_workers, **options)
    return DataLoader(dataset, batch_sampler=batches, num_workers=num_workers, **options)


class InfiniteDataLoader:
    """Random minibatches without end, drawn with replacement.

    Draws from torch's global generator, and the same samples as DomainBed's loader does from the same seed.

    Parameters
    ----------
    dataset : torch.utils.data.Dataset
        The training split of one environment.
    weights : torch.Tensor or None
        Shape ``[len(dataset)]``: the chance of each sample, up to a factor. None samples uniformly.
    batch_size : int
        Samples in each minibatch.
    num_workers : int
        Processes that fetch; 0 is best for tensors in memory.

    Raises
    ------
    nacme.errors.ConfigError
        If `dataset` is smaller than `batch_size` and there are no weights: DomainBed's sampler then draws
        for ever without completing a batch.
    """

    def __init__(self, dataset: Sized, weights: Tensor | None, batch_size: int, num_workers: int) -> None:
        if weights is None and len(dataset) < batch_size:
            raise ConfigError(
                f"batch_size {batch_size} is larger than a training split of {len(dataset)} samples: "
                "lower batch_size, or holdout_fraction"
            )
        sampler: Sampler[int]
        if weights is None:
            sampler = RandomSampler(dataset, replacement=True)
        else:
            sampler = WeightedRandomSampler(weights.tolist(), num_samples=batch_size, replacement=True)
        batches = BatchSampler(sampler, batch_size, drop_last=True)
        self._iterator = iter(_loader(dataset, _Endless(batches), num_workers))

    def __iter__(self) -> Iterator[list[Tensor]]:
        while True:
            yield next(self._iterator)

    def __len__(self) -> int:
        raise ValueError("an InfiniteDataLoader has no length")


class FastDataLoader:
    """Minibatches that cover the dataset once a pass, in an order drawn anew for each pass.

    Unlike DomainBed's, a pass that is left half way does not shorten the next one.

    Parameters
    ----------
    dataset : torch.utils.data.Dataset
        The split to evaluate.
    batch_size : int
        Samples in each minibatch; the last one may be smaller.
    num_workers : int
        Processes that fetch; 0 is best for tensors in memory.
    """

    def __init__(self, dataset: Sized, batch_size: int, num_workers: int) -> None:
        batches = BatchSampler(RandomSampler(dataset), batch_size, drop_last=False)
        self._length = len(batches)
        # Its own generator: the seed that a DataLoader draws for its workers shall not move the global one.
        self._loader = _loader(
            dataset,
            batches,
            num_workers,
            generator=torch.Generator(),
            persistent_workers=num_workers > 0,
        )

    def __iter__(self) -> Iterator[list[Tensor]]:
        return iter(self._loader)

    def __len__(self) -> int:
        return self._length
