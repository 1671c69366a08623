"""The in-distribution splits of finished runs, rebuilt and decoded once for many checkpoints."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from domainbed_plugins.data.generators import cpu_positions, seed_everything
from domainbed_plugins.data.splits import EVAL_BATCH_SIZE, make_dataset
from domainbed_plugins.interface import Testbed

Batch = tuple[Tensor, Tensor]


class SplitBatches:
    """The batches of a split, in the same order each time.

    Parameters
    ----------
    split : Dataset
    n_workers : int
        Processes that decode it.
    keep : bool
        Whether to keep the batches of the first whole pass for those that follow.

    Attributes
    ----------
    samples : int
    """

    def __init__(self, split: Any, n_workers: int, keep: bool) -> None:
        self.samples = len(split)
        self._loader: DataLoader[Any] = DataLoader(split, EVAL_BATCH_SIZE, shuffle=False, num_workers=n_workers)
        self._keep = keep
        self._kept: list[Batch] = []

    def __iter__(self) -> Iterator[Batch]:
        if self._kept:
            yield from self._kept
            return
        passed = []
        for x, y in self._loader:
            if self._keep:
                passed.append((x, y))
            yield x, y
        self._kept = passed


class ValidationData:
    """The splits of one data set at a time, batch by batch, kept in memory as far as they fit.

    Images are read without training's random augmentation, which DomainBed applies to the training environments'
    validation splits too.

    Parameters
    ----------
    testbed : Testbed
    data_dir : str or None
        As DomainBed's ``--data_dir``.
    cache_bytes : int
        How much decoded data to keep.
    n_workers : int
        Processes that decode images; data sets that lie in memory need none.
    augmented : bool
        Whether to read images as training read them instead. What is kept of them is one draw.
    """

    def __init__(
        self,
        testbed: Testbed,
        data_dir: str | None,
        cache_bytes: int,
        n_workers: int,
        *,
        augmented: bool = False,
    ) -> None:
        self._read_as = {} if augmented else {"data_augmentation": False}
        self._testbed = testbed
        self._data_dir = data_dir
        self._cache_bytes = cache_bytes
        self._n_workers = n_workers
        self._dataset: Any = None
        self._seen: dict[str, Any] = {}
        self._splits: tuple[Any, ...] = ()
        self._loaders: dict[str, SplitBatches] = {}
        self._kept_bytes = 0
        self._said: set[str] = set()

    def open(self, args: Mapping[str, Any], hparams: Mapping[str, Any]) -> Any:
        """Make the data set of a run current; one that serves this run already stays, with what is decoded of it.

        Parameters
        ----------
        args, hparams : mapping
            Of the run's record.

        Returns
        -------
        DomainBed data set

        Raises
        ------
        ConfigError
            If it cannot be read.
        """
        if not self._serves_data(args, hparams):
            self._forget()
            # let go of the old one first: both may not fit into memory
            self._dataset = None
            self._dataset, self._seen = self._build(args, {**hparams, **self._read_as})
        if _splits(args) != self._splits:
            self._forget()
            self._splits = _splits(args)
        return self._dataset

    def serves(self, args: Mapping[str, Any], hparams: Mapping[str, Any]) -> bool:
        """Whether the current data set and its splits are those of a run.

        Parameters
        ----------
        args, hparams : mapping
            Of the run's record.

        Returns
        -------
        bool
        """
        return self._serves_data(args, hparams) and _splits(args) == self._splits

    @property
    def drawn_by_seed(self) -> bool:
        """Whether the current data set draws from the generators: runs of other seeds have other images."""
        return "seed" in self._seen

    def loader(self, name: str) -> SplitBatches:
        """Give the batches of a split of the current data set.

        Parameters
        ----------
        name : str
            ``env{i}_in`` of a training environment ``i``, or ``env{i}_out`` of any.

        Returns
        -------
        SplitBatches
        """
        if name in self._loaders:
            return self._loaders[name]
        split, in_memory = self._split(name)
        size = len(split) * sum(torch.as_tensor(part).nbytes for part in split[0])
        fits = self._kept_bytes + size <= self._cache_bytes
        if fits:
            self._kept_bytes += size
        elif name not in self._said:
            self._said.add(name)
            print(
                f"nacme: {name} of {self._seen['dataset']} ({len(split)} samples, {size / 2**30:.1f} GiB) "
                "does not fit into what is left of --cache_gb: it is decoded again in each pass",
                file=sys.stderr,
            )
        self._loaders[name] = SplitBatches(split, 0 if in_memory else self._n_workers, fits)
        return self._loaders[name]

    def _serves_data(self, args: Mapping[str, Any], hparams: Mapping[str, Any]) -> bool:
        asked = {
            **{key: args[key] for key in ("dataset", "test_envs", "seed")},
            **hparams,
            **self._read_as,
        }
        return self._dataset is not None and all(asked.get(key) == value for key, value in self._seen.items())

    def _build(self, args: Mapping[str, Any], hparams: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Build a data set and note what it was built from: runs that agree on that can share it."""
        seen: dict[str, Any] = {"dataset": args["dataset"]}
        test_envs = _WatchedSequence(args["test_envs"], seen)
        seed_everything(args["seed"])
        before = cpu_positions()
        dataset = make_dataset(
            self._testbed,
            {**args, "data_dir": self._data_dir, "test_envs": test_envs},
            _WatchedMapping(hparams, seen),
        )
        if cpu_positions() != before:
            seen["seed"] = args["seed"]
        return dataset, seen

    def _split(self, name: str) -> tuple[Any, bool]:
        """Split an environment as training did; also tell whether it lies in memory."""
        index, kind = name.removeprefix("env").split("_")
        env = self._dataset[int(index)]
        trial_seed, holdout_fraction = self._splits
        seed = self._testbed.misc.seed_hash(trial_seed, int(index))
        out, in_ = self._testbed.misc.split_dataset(env, int(len(env) * holdout_fraction), seed)
        return (out if kind == "out" else in_), isinstance(env, TensorDataset)

    def _forget(self) -> None:
        self._loaders.clear()
        self._kept_bytes = 0


class _WatchedMapping(Mapping[str, Any]):
    """Notes in ``seen`` which of its entries were read."""

    def __init__(self, content: Mapping[str, Any], seen: dict[str, Any]) -> None:
        self._content, self._seen = content, seen

    def __getitem__(self, key: str) -> Any:
        self._seen[key] = self._content.get(key)
        return self._content[key]

    def __iter__(self) -> Iterator[str]:
        self._seen.update(self._content)
        return iter(self._content)

    def __len__(self) -> int:
        self._seen.update(self._content)
        return len(self._content)


class _WatchedSequence(Sequence[int]):
    """Notes in ``seen`` that the test environments were looked at."""

    def __init__(self, content: Sequence[int], seen: dict[str, Any]) -> None:
        self._content, self._seen = content, seen

    def __getitem__(self, index: Any) -> Any:
        self._seen["test_envs"] = self._content
        return self._content[index]

    def __len__(self) -> int:
        self._seen["test_envs"] = self._content
        return len(self._content)


def _splits(args: Mapping[str, Any]) -> tuple[Any, ...]:
    """What decides how environments are split."""
    return args["trial_seed"], args.get("holdout_fraction", 0.2)
