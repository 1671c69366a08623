"""Endless streams of minibatches whose position can be saved, drawn as DomainBed's loaders draw them.

Source: ``domainbed/lib/fast_data_loader.py``. From the same state of torch's generator a stream gives the samples
that DomainBed's loader gives, and leaves the generator in the same state, with and without worker processes.

What decides the samples is the sequence of indices: a sampler draws a seed (or, with weights, a whole minibatch)
from torch's global generator whenever a round begins. A position is therefore the generator's state when the
round began, how many minibatches it has given since, and those that workers were asked for ahead of time. Going
back to it draws indices only and reads no data.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    Sampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

Position = dict[str, Any]


class _Rounds(Sampler[list[int]]):
    """Repeats a sampler for ever, and knows where it is."""

    def __init__(self, batches: Sampler[list[int]], position: Position | None) -> None:
        self.batches = batches
        self.given = 0  # minibatches of this round
        self.began: Tensor | None = None  # the generator's state at that time
        self.ahead: deque[list[int]] = deque()  # given to the workers, not yet come back
        self._again: list[list[int]] = []
        self._round: Iterator[list[int]] | None = None
        if position and position["began"] is not None:
            self._again = [list(batch) for batch in position["ahead"]]
            self._round = self._go_back(position["began"], position["given"])

    def _go_back(self, began: Tensor, given: int) -> Iterator[list[int]]:
        now = torch.get_rng_state()
        torch.set_rng_state(began)
        again = iter(self.batches)
        for _ in range(given):
            next(again)
        torch.set_rng_state(now)
        self.began, self.given = began, given
        return again

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._again:
            self.ahead.append(batch)
            yield batch
        while True:
            if self._round is None:
                self.began, self.given = torch.get_rng_state(), 0
                self._round = iter(self.batches)
            for batch in self._round:
                self.given += 1
                self.ahead.append(batch)
                yield batch
            self._round = None


class _Stream:
    """Minibatches for ever, by workers or in this process."""

    def __init__(
        self, dataset: Any, batches: Sampler[list[int]], num_workers: int, position: Position | None
    ) -> None:
        self._rounds = _Rounds(batches, position)
        self._iterator = _read(dataset, self._rounds, num_workers)

    def _next(self) -> Any:
        batch = next(self._iterator)
        self._rounds.ahead.popleft()
        return batch

    def position(self) -> Position:
        """Where the stream is: tensors and numbers, for the constructor of another."""
        rounds = self._rounds
        return {"began": rounds.began, "given": rounds.given, "ahead": list(rounds.ahead)}


class TrainStream(_Stream):
    """Random minibatches for ever, drawn with replacement; as DomainBed's ``InfiniteDataLoader``.

    Parameters
    ----------
    dataset : torch.utils.data.Dataset
        The training split of one environment.
    weights : Tensor, shape [len(dataset)], or None
        The chance of each sample, up to a factor. None: all alike.
    batch_size : int
    num_workers : int
        Processes that fetch.
    position : dict, optional
        Where to go on, from `position`.
    """

    def __init__(
        self,
        dataset: Any,
        weights: Tensor | None,
        batch_size: int,
        num_workers: int,
        position: Position | None = None,
    ) -> None:
        sampler: Sampler[int]
        if weights is None:
            sampler = RandomSampler(dataset, replacement=True)
        else:
            sampler = WeightedRandomSampler(weights.tolist(), num_samples=batch_size, replacement=True)
        super().__init__(dataset, BatchSampler(sampler, batch_size, drop_last=True), num_workers, position)

    def __next__(self) -> Any:
        return self._next()

    def __iter__(self) -> TrainStream:
        return self


class EvalStream(_Stream):
    """Passes over a data set, each in a new random order; as DomainBed's ``FastDataLoader``.

    Parameters
    ----------
    dataset, batch_size, num_workers, position
        As for `TrainStream`.
    """

    def __init__(self, dataset: Any, batch_size: int, num_workers: int, position: Position | None = None) -> None:
        batches = BatchSampler(RandomSampler(dataset), batch_size, drop_last=False)
        self._length = len(batches)
        super().__init__(dataset, batches, num_workers, position)

    def __iter__(self) -> Iterator[Any]:
        for _ in range(self._length):
            yield self._next()

    def __len__(self) -> int:
        return self._length


def collate(dataset: Any, indices: Sequence[int]) -> Any:
    """Read samples into one minibatch.

    Parameters
    ----------
    dataset : torch.utils.data.Dataset
    indices : sequence of int

    Returns
    -------
    tuple of Tensor
        What ``default_collate`` makes of the samples; of tensors in memory in one go, which is far faster.
    """
    found = in_memory(dataset)
    if found is None:
        return default_collate([dataset[index] for index in indices])
    tensors, keys = found
    return tensors[indices if keys is None else [keys[index] for index in indices]]


class _Batched:
    """A data set that is indexed with a list of samples at a time."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, indices: list[int]) -> Any:
        return collate(self.dataset, indices)


def _read(dataset: Any, rounds: _Rounds, num_workers: int) -> Iterator[Any]:
    if num_workers:
        if in_memory(dataset) is None:
            return iter(DataLoader(dataset, batch_sampler=rounds, num_workers=num_workers))
        return iter(DataLoader(_Batched(dataset), batch_size=None, sampler=rounds, num_workers=num_workers))  # type: ignore[arg-type]
    # a DataLoader draws a seed for its workers, even if it has none
    torch.empty((), dtype=torch.int64).random_()
    return (collate(dataset, indices) for indices in rounds)


def underlying(split: Any) -> tuple[Any, Any]:
    """Look behind a split.

    Parameters
    ----------
    split : torch.utils.data.Subset, or DomainBed's split

    Returns
    -------
    tuple
        The data set behind it and the indices that it takes of that; None and None for anything else.
    """
    if isinstance(split, Subset):
        return split.dataset, split.indices
    return getattr(split, "underlying_dataset", None), getattr(split, "keys", None)


def in_memory(dataset: Any) -> tuple[TensorDataset, Any] | None:
    """The tensors behind a data set and the keys that it takes of them, or None."""
    if isinstance(dataset, TensorDataset):
        return dataset, None
    whole, keys = underlying(dataset)
    return (whole, keys) if isinstance(whole, TensorDataset) and keys is not None else None
