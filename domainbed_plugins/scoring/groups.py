"""Checkpoints measured together: a batch is decoded and moved once, and flows through all their networks."""

from __future__ import annotations

import contextlib
import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from domainbed_plugins.backends import find as backends
from domainbed_plugins.data.decoded import SplitBatches, ValidationData
from domainbed_plugins.machine import default_workers, free_memory
from domainbed_plugins.recording.recorder import make_recorder
from domainbed_plugins.runs.checkpoints import build_algorithm, load_checkpoint, load_weights
from domainbed_plugins.runs.saved import Job, check_step
from nacme.errors import ConfigError
from nacme.observation import not_empty
from nacme.recorder import Recorder

if TYPE_CHECKING:
    from domainbed_plugins.interface import Testbed
    from domainbed_plugins.scoring.options import ScoreOptions

#: Networks that share a batch, at most: sharing by eight saves seven eighths of what there is to save, and an
#: interruption loses a group.
MOST_MODELS = 8


@dataclass(frozen=True)
class Measured:
    """What measuring a checkpoint found.

    Attributes
    ----------
    record : dict
        For ``nac.jsonl``.
    accuracy_gap : float
        Largest difference of a split's accuracy from the one that training recorded.
    counts : dict of str to Tensor, shape [N, M - 1]
        What ``nac_me`` counted, by layer.
    """

    record: dict[str, Any]
    accuracy_gap: float
    counts: dict[str, Tensor]


class GroupScorer:
    """Measures group after group of checkpoints and keeps what the next one can use: data, and networks.

    Parameters
    ----------
    data_dir : str or None
        As DomainBed's ``--data_dir``.
    options : ScoreOptions
    domainbed : str, optional
        A DomainBed clone.
    cache_gb : float, optional
        Gibibytes of decoded data to keep. None: half of the free memory.
    n_workers : int, optional
        Processes that decode images. None: by the machine's cores.
    models : int, optional
        Networks that share a batch, at most. None: by what memory allows.
    """

    def __init__(
        self,
        data_dir: str | None,
        options: ScoreOptions,
        domainbed: str | None,
        cache_gb: float | None,
        n_workers: int | None,
        models: int | None,
    ) -> None:
        self._data_dir = data_dir
        self._options = options
        self._domainbed = domainbed
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        free = free_memory()
        self._cache_bytes = free // 2 if cache_gb is None else int(cache_gb * 2**30)
        self._n_workers = default_workers() if n_workers is None else n_workers
        on_device = torch.cuda.mem_get_info()[0] if self._device.type == "cuda" else free // 2
        # the rest of the memory is for the batch that a network works on
        self._network_bytes = on_device // 2 if models is None else None
        self._most = MOST_MODELS if models is None else models
        self._testbeds: dict[str, Testbed] = {}
        self._data: tuple[Testbed, ValidationData] | None = None
        self._idle: list[tuple[str, nn.Module]] = []

    def measure_next(self, waiting: deque[Job]) -> list[tuple[Job, Measured | Exception]]:
        """Measure the checkpoints at the left of a queue: as many as share data and fit into memory.

        Parameters
        ----------
        waiting : deque of Job
            Loses those that are measured.

        Returns
        -------
        list of (Job, Measured or Exception)
            What each came to, or why it could not be measured.

        Raises
        ------
        ConfigError
            If the data cannot be read.
        """
        found: list[tuple[Job, _Subject | Exception]] = []
        group: list[_Subject] = []
        room = 1
        while waiting and len(group) < room and (not group or self._serves(waiting[0])):
            job = waiting.popleft()
            try:
                group.append(self._begin(job))
            except ConfigError:
                raise
            except Exception as error:  # algorithms of others may raise anything
                found.append((job, error))
                continue
            found.append((job, group[-1]))
            if len(group) == 1:
                room = self._room(group[0])
        try:
            self._pass_over(group)
        except ConfigError:
            raise
        except Exception as error:  # from the data: nobody's fault
            for subject in group:
                subject.error = subject.error or error
        results = [
            (job, subject if isinstance(subject, Exception) else subject.finish()) for job, subject in found
        ]
        self._idle += [(subject.kind, subject.recorder.model) for subject in group]
        return self._retried(results, waiting)

    def _retried(
        self, results: list[tuple[Job, Measured | Exception]], waiting: deque[Job]
    ) -> list[tuple[Job, Measured | Exception]]:
        """Put back what the device had no memory for, to be measured in smaller groups."""
        short = [job for job, result in results if isinstance(result, torch.cuda.OutOfMemoryError)]
        if not short or len(results) == 1:
            return results
        self._most = max(1, len(results) // 2)
        self._idle.clear()
        waiting.extendleft(reversed(short))
        return [(job, result) for job, result in results if not isinstance(result, torch.cuda.OutOfMemoryError)]

    def _serves(self, job: Job) -> bool:
        """Whether a checkpoint is measured on the data that is open."""
        return self._data is not None and self._data[1].serves(job.args, job.hparams)

    def _begin(self, job: Job) -> _Subject:
        """Load a checkpoint and make ready to record it."""
        testbed, data = self._open(job)
        # before the data is read: a corrupt file costs nothing then
        content = load_checkpoint(job.checkpoint)
        check_step(content, job.step, job.checkpoint)
        dataset = data.open(job.args, job.hparams)
        domains = len(dataset) - len(job.args["test_envs"])
        kind = json.dumps([job.args["dataset"], job.args["algorithm"], domains, job.hparams], sort_keys=True)
        algorithm = self._idle_network(kind) or build_algorithm(
            testbed, job.args["algorithm"], dataset.input_shape, dataset.num_classes, domains, job.hparams
        )
        algorithm.to(self._device)
        load_weights(algorithm, content["model_dict"], job.checkpoint)

        splits: dict[str, SplitBatches] = {}

        def loader(name: str) -> SplitBatches:
            return splits.setdefault(name, data.loader(name))

        recorder = make_recorder(
            algorithm,
            self._options,
            loader,
            [env for env in range(len(dataset)) if env not in job.args["test_envs"]],
            job.args["test_envs"],
            self._device,
            {"testbed": str(testbed), "augmented": False},
        )
        recorder.warned = True  # said once for all checkpoints
        seed = testbed.misc.seed_hash(job.args["seed"], job.step)
        return _Subject(job, kind, recorder, splits, seed)

    def _open(self, job: Job) -> tuple[Testbed, ValidationData]:
        name = job.args["dataset"]
        if name not in self._testbeds:
            self._testbeds[name] = backends.find(name, self._domainbed)
        testbed = self._testbeds[name]
        if self._data is None or self._data[0].name != testbed.name:
            self._data = testbed, ValidationData(testbed, self._data_dir, self._cache_bytes, self._n_workers)
        return self._data

    def _idle_network(self, kind: str) -> nn.Module | None:
        """Take an alike network of the group before; let go of all where there is none."""
        for position, (idle, network) in enumerate(self._idle):
            if idle == kind:
                del self._idle[position]
                return network
        self._idle.clear()  # it needs not fit into memory beside the new one
        return None

    def _room(self, first: _Subject) -> int:
        """How many networks like this one may share a batch."""
        if self._network_bytes is None:
            return self._most
        network = first.recorder.model
        weights = sum(tensor.nbytes for tensor in chain(network.parameters(), network.buffers()))
        width = max((m.in_features for m in network.modules() if isinstance(m, nn.Linear)), default=1)
        samples = sum(split.samples for split in first.splits.values())
        each = weights + first.recorder.memory(samples, width)
        return max(1, min(self._most, self._network_bytes // each))

    def _pass_over(self, group: list[_Subject]) -> None:
        """Hand every batch of every split to those checkpoints that are measured on it."""
        splits = {name: split for subject in group for name, split in subject.splits.items()}
        # in one order whatever the group, since the order decides sums' last digits and random numbers
        for name in sorted(splits, key=lambda name: (name.endswith("out"), int(name[3:].partition("_")[0]))):
            readers = [subject for subject in group if name in subject.splits and not subject.error]
            if not readers:
                continue
            with contextlib.ExitStack() as stack:
                updates = [(s, stack.enter_context(s.recording.split(name))) for s in readers]
                for x, y in not_empty(splits[name]):
                    batch = self._moved(x), self._moved(y)
                    for subject, update in updates:
                        if not subject.error:
                            with subject.turn():
                                update(batch)
                    if all(subject.error for subject in readers):
                        break
            for subject in readers:
                subject.compare(name)

    def _moved(self, part: Tensor) -> Tensor:
        """Bring inputs or labels to the device; the host goes on meanwhile, which takes pinned memory."""
        if self._device.type == "cpu":
            return part
        return part.pin_memory().to(self._device, non_blocking=True)


class _Subject:
    """A checkpoint under measurement, which draws random numbers from a stream of its own."""

    def __init__(
        self, job: Job, kind: str, recorder: Recorder, splits: dict[str, SplitBatches], seed: int
    ) -> None:
        self.job = job
        self.kind = kind
        self.recorder = recorder
        self.recording = recorder.start()
        self.splits = splits
        self.error: Exception | None = None
        self._gap = 0.0
        torch.manual_seed(seed)
        self._generators = _generators()

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Let the network work; what goes wrong is its own failure."""
        _set_generators(self._generators)
        try:
            yield
        except ConfigError:
            raise
        except Exception as error:  # algorithms of others may raise anything
            self.error = error
        self._generators = _generators()

    def compare(self, name: str) -> None:
        """Compare a split's accuracy with the one on record."""
        if self.error:
            return
        with self.turn():
            accuracy, recorded = self.recording.accuracy(name), self.job.recorded
            if recorded["step"] == self.job.step and recorded.get(f"{name}_acc") is not None:
                self._gap = max(self._gap, abs(accuracy - recorded[f"{name}_acc"]))

    def finish(self) -> Measured | Exception:
        """Compute what follows from the passes."""
        record: dict[str, Any] = {}
        if not self.error:
            with self.turn():
                record = self.recording.finish()
        return self.error or Measured(record, self._gap, self.recorder.counts)


def _generators() -> list[Tensor]:
    """States of the generators that networks draw from."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])]


def _set_generators(states: list[Tensor]) -> None:
    for state, put in zip(states, (torch.set_rng_state, torch.cuda.set_rng_state)):
        put(state)
