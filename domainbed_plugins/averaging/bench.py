"""Measuring networks that lie in no run's directory: each batch is decoded once and flows through several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from domainbed_plugins.averaging.ensemble import log_mean, probabilities
from domainbed_plugins.backends import find as backends
from domainbed_plugins.data.decoded import ValidationData
from domainbed_plugins.data.generators import drawing_apart
from domainbed_plugins.interface import Testbed
from domainbed_plugins.machine import default_workers, free_memory
from domainbed_plugins.recording.options import RecordOptions
from domainbed_plugins.recording.recorder import make_recorder
from domainbed_plugins.runs.checkpoints import build_algorithm, load_weights
from domainbed_plugins.training.averages import moving_norms, refresh
from nacme.counting import mean
from nacme.errors import ConfigError
from nacme.measurement import Tally, accuracy, is_correct
from nacme.observation import not_empty
from nacme.taps import untouched

#: Networks that share a batch, at most.
MOST_NETWORKS = 8
#: Batches of each training environment that batch-norm statistics of a mean are taken from: every mean needs them.
STATISTICS_BATCHES = 6


class Bench:
    """The splits of one group of runs at a time, and what is measured on them.

    Images are read as training read its validation splits, augmented where it augmented them, so that validation
    accuracies compare with those that training recorded.

    Parameters
    ----------
    data_dir : str or None
        As DomainBed's ``--data_dir``.
    options : RecordOptions
    domainbed : str, optional
        A DomainBed clone.
    memory_gb : float, optional
        Gibibytes for decoded data and networks together. None: half of the free memory.
    n_workers : int, optional
        Processes that decode images. None: by the machine's cores.
    """

    def __init__(
        self,
        data_dir: str | None,
        options: RecordOptions,
        domainbed: str | None,
        memory_gb: float | None,
        n_workers: int | None,
    ) -> None:
        self._data_dir, self._options, self._domainbed = data_dir, options, domainbed
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._memory = free_memory() // 2 if memory_gb is None else int(memory_gb * 2**30)
        self._n_workers = default_workers() if n_workers is None else n_workers
        self._testbeds: dict[str, Testbed] = {}
        self._data: tuple[str, ValidationData] | None = None

    def open(self, args: Mapping[str, Any], hparams: Mapping[str, Any]) -> None:
        """Make the data of a run current.

        Parameters
        ----------
        args, hparams : mapping
            Of the run.

        Raises
        ------
        ConfigError
            If it cannot be read, or its test splits cannot be told from the records.
        """
        if args.get("uda_holdout_fraction"):
            raise ConfigError(
                "runs of domain adaptation keep part of a test env for training; they are not averaged"
            )
        name = args["dataset"]
        if name not in self._testbeds:
            self._testbeds[name] = backends.find(name, self._domainbed)
        self._testbed = self._testbeds[name]
        if self._data is None or self._data[0] != self._testbed.name:
            data = ValidationData(
                self._testbed, self._data_dir, self._memory // 2, self._n_workers, augmented=True
            )
            self._data = self._testbed.name, data
        self._loader = self._data[1].loader
        self._args, self._hparams = args, hparams
        self._dataset = self._data[1].open(args, hparams)
        self._seed = self._testbed.misc.seed_hash("candidates", args["trial_seed"])
        test_envs = args["test_envs"]
        self._train_envs = [env for env in range(len(self._dataset)) if env not in test_envs]
        self._validation = [f"env{env}_out" for env in self._train_envs]
        self._tests = [f"env{env}_{part}" for env in test_envs for part in ("in", "out")]

    @property
    def drawn_by_seed(self) -> bool:
        """Whether the runs' ``seed`` decides which images an environment holds, as in RotatedMNIST."""
        return self._data is not None and self._data[1].drawn_by_seed

    def network(self, hparams: Mapping[str, Any], state: Mapping[str, Tensor], name: str) -> nn.Module:
        """Build a network of the current group.

        Parameters
        ----------
        hparams : mapping
        state : mapping of str to Tensor
        name : str
            Named in errors.

        Returns
        -------
        nn.Module

        Raises
        ------
        CheckpointError
            If it cannot be built.
        """
        dataset, args = self._dataset, self._args
        with drawing_apart(self._seed):
            algorithm = build_algorithm(
                self._testbed,
                args["algorithm"],
                dataset.input_shape,
                dataset.num_classes,
                len(self._train_envs),
                hparams,
            ).to(self._device)
        load_weights(algorithm, state, name)
        return algorithm

    def renew(self, algorithm: nn.Module) -> None:
        """Take batch-norm statistics that training moves anew, as the mean of several networks' says nothing."""
        algorithm.train()
        if norms := moving_norms(algorithm):
            with drawing_apart(self._seed):
                refresh(algorithm, norms, self._sample())

    def _sample(self) -> Iterator[Tensor]:
        loaders = [iter(self._loader(f"env{env}_in")) for env in self._train_envs]
        for _, *batches in zip(range(STATISTICS_BATCHES), *loaders):
            yield torch.cat([x for x, _ in batches]).to(self._device)

    def val_acc(self, algorithm: nn.Module) -> float:
        """Mean accuracy over the validation splits."""
        with drawing_apart(self._seed):
            return mean([accuracy(algorithm, self._loader(name), self._device) for name in self._validation])

    def record(self, algorithm: nn.Module) -> dict[str, Any]:
        """Measure one network by all criteria, on validation and test splits.

        Returns
        -------
        dict
            Keys of a record of DomainBed.
        """
        recorder = make_recorder(
            algorithm,
            self._options,
            self._loader,
            self._train_envs,
            self._args["test_envs"],
            self._device,
            {"testbed": str(self._testbed), "augmented": True},
        )
        recorder.warned = True  # said of the runs themselves
        further = [f"env{env}_{split}" for split in self._options.splits() for env in self._train_envs]
        names = list(dict.fromkeys([*further, *self._validation, *self._tests]))
        with drawing_apart(self._seed):
            recording = recorder.start()
            accuracies = {f"{name}_acc": recording.evaluate(name, self._loader(name)) for name in names}
            return {**accuracies, **recording.finish()}

    def ensemble(self, networks: Iterator[nn.Module]) -> dict[str, Any]:
        """Measure the mean probability of networks that come one by one, as many at a time as memory allows.

        Returns
        -------
        dict
            Accuracies and ``val_loss``; an ensemble has no layer to measure coverage at.
        """
        sums: dict[str, list[Tensor]] = {}
        count, group = 0, [next(networks)]
        room = self._room(group[0])
        while group:
            group += [network for _, network in zip(range(room - len(group)), networks)]
            self._add(group, sums)
            count += len(group)
            group = [network for _, network in zip(range(1), networks)]
        record: dict[str, Any] = {}
        losses = []
        for name, parts in sums.items():
            tally = Tally()
            for total, (_, labels) in zip(parts, self._loader(name), strict=True):
                logits = log_mean(total / count)
                tally.update(logits, labels, is_correct(logits, labels))
            record[f"{name}_acc"] = tally.accuracy()
            if name in self._validation:
                losses.append(tally.mean_loss())
        return {**record, "val_loss": mean(losses), "nac_me": None}

    def _add(self, networks: Sequence[nn.Module], sums: dict[str, list[Tensor]]) -> None:
        """Pass every batch through the networks, and add their probabilities to those of the ones before."""
        with drawing_apart(self._seed), torch.no_grad():
            for network in networks:
                network.eval()
            for name in [*self._validation, *self._tests]:
                parts = sums.setdefault(name, [])
                for index, (x, _) in enumerate(not_empty(self._loader(name))):
                    batch = x.to(self._device)
                    total = torch.stack([_probabilities(network, batch) for network in networks]).sum(0).cpu()
                    if index < len(parts):
                        parts[index] += total
                    else:
                        parts.append(total)

    def _room(self, network: nn.Module) -> int:
        """How many networks like this one may be held at a time."""
        size = sum(tensor.nbytes for tensor in chain(network.parameters(), network.buffers()))
        return max(1, min(MOST_NETWORKS, self._memory // 4 // max(size, 1)))


def _probabilities(network: nn.Module, x: Tensor) -> Tensor:
    with untouched(network):
        return probabilities(getattr(network, "predict", network)(x).double())
