"""One training run: DomainBed's loop, step for step and draw for draw, with recording and a state to go on from.

Source: ``domainbed/scripts/train.py``. The order in which splits, streams and the algorithm are made, and in which
the splits are evaluated, decides which random numbers each of them gets; it is kept, so that recording changes no
training number.
"""

from __future__ import annotations

import collections
import contextlib
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from domainbed_plugins.data.generators import drawing_apart, generator_states, set_generator_states
from domainbed_plugins.data.splits import EVAL_BATCH_SIZE, Splits
from domainbed_plugins.data.streams import EvalStream, TrainStream, collate
from domainbed_plugins.interface import Testbed
from domainbed_plugins.machine import loader_workers
from domainbed_plugins.recording.recorder import make_recorder
from domainbed_plugins.runs import files as run_files
from domainbed_plugins.runs import paths, snapshot
from domainbed_plugins.runs.counts import SHAM, CountStore
from domainbed_plugins.runs.keep import tidy
from domainbed_plugins.runs.lock import Lock
from domainbed_plugins.runs.records import read_records
from domainbed_plugins.training import head
from domainbed_plugins.training.averages import Averages, first_step, held_out, sample
from domainbed_plugins.training.options import TrainOptions, comparable
from domainbed_plugins.training.signals import InterruptedRun, noticed
from nacme.errors import NacmeError
from nacme.measurement import accuracy
from nacme.recorder import Recorder
from nacme.system import files


class Training:
    """A run between its first step and its last.

    Parameters
    ----------
    testbed : Testbed
    args : dict
        DomainBed's arguments, by flag name.
    hparams : dict
    splits : Splits
        Made from the seeded generators, directly before.
    options : TrainOptions
    directory : path
        The run's.
    state : dict, optional
        Where to go on from.
    """

    def __init__(
        self,
        testbed: Testbed,
        args: dict[str, Any],
        hparams: dict[str, Any],
        splits: Splits,
        options: TrainOptions,
        directory: Path,
        state: dict[str, Any] | None = None,
    ) -> None:
        self.testbed, self.args, self.hparams, self.options = testbed, args, hparams, options
        self.splits, self.directory = splits, directory
        dataset = splits.dataset
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.n_steps = args["steps"] or dataset.N_STEPS
        self.checkpoint_freq = args["checkpoint_freq"] or dataset.CHECKPOINT_FREQ
        self.step = 0  # the next one
        self.records = 0
        self.line: str | None = None  # the last record
        self.average_records = 0
        self.average_lines: list[str] = []  # what belongs to it of the averages
        self.values: dict[str, list[Any]] = collections.defaultdict(list)
        self.shown: list[str] = []
        self.peak_gb = 0.0

        if state:
            # workers would otherwise draw the augmentations of the first steps again
            torch.manual_seed(testbed.misc.seed_hash("resumed", args["seed"], state["step"]))
        self._make_streams(state["streams"] if state else {})
        self.num_domains = len(dataset) - len(args["test_envs"])
        make = testbed.algorithms.get_algorithm_class(args["algorithm"])
        self.algorithm = make(dataset.input_shape, dataset.num_classes, self.num_domains, hparams)
        self.algorithm.to(self.device)
        if not state:
            head.initialize(self.algorithm, args, hparams, splits, testbed)
        self.recorder = self._make_recorder(self.eval_streams)
        self.averages: Averages | None = None
        if options.average:
            start = first_step(options.average_from, self.n_steps)
            self.averages = Averages(self.algorithm, options.average, start, options.average_decay)
            self.average_seed = testbed.misc.seed_hash("averages", args["seed"])
            further = {*self._measured(), *(f"env{index}_in" for index in args["test_envs"])}
            self.average_loaders = held_out(splits, further, self.workers, self.average_seed)
            self.average_recorder = self._make_recorder(self.average_loaders)
            self.average_recorder.warned = True  # said of the run itself
        self.counts = CountStore(directory / paths.COUNTS, options.settings.as_json())
        if state:
            try:
                self._restore(state)
            except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
                raise NacmeError(
                    f"{directory / paths.STATE} does not fit the run ({type(error).__name__}: {error}); delete "
                    f"{directory} to start anew"
                ) from error

    def _make_recorder(self, loaders: Mapping[str, Any]) -> Recorder:
        return make_recorder(
            self.algorithm,
            self.options,
            loaders.__getitem__,
            [index for index, _, _ in self.splits.train],
            self.args["test_envs"],
            self.device,
            {"testbed": str(self.testbed), "splits_hash": self.splits.hash},
        )

    def _measured(self) -> list[str]:
        splits = self.options.splits()
        return [f"env{index}_{split}" for index, _, _ in self.splits.train for split in splits]

    def _make_streams(self, positions: Mapping[str, Any]) -> None:
        splits, batch_size = self.splits, self.hparams["batch_size"]
        fast = self.options.eval_splits == "fast"
        skipped = {f"env{index}_in" for index, _, _ in splits.train} - set(self._measured()) if fast else set()
        evaluated = {name: split for name, split in splits.by_name.items() if name not in skipped}
        count = len(splits.train) + len(splits.uda) + len(evaluated)
        workers = self.workers = loader_workers(self.options.n_workers, splits.dataset.N_WORKERS, count)
        self.train_streams = {
            f"train{index}": TrainStream(split, weights, batch_size, workers, positions.get(f"train{index}"))
            for index, split, weights in splits.train
        }
        self.uda_streams = {
            f"uda{index}": TrainStream(split, weights, batch_size, workers, positions.get(f"uda{index}"))
            for index, (split, weights) in enumerate(splits.uda)
        }
        self.eval_streams = {
            name: EvalStream(split, EVAL_BATCH_SIZE, workers, positions.get(name))
            for name, split in evaluated.items()
        }

    def run(self, lock: Lock) -> None:
        """Train to the last step.

        Parameters
        ----------
        lock : Lock
            The run's, held; it is told how far the run is.

        Raises
        ------
        InterruptedRun
            After SIGTERM or SIGUSR1; the state has been saved.
        NacmeError
            If a file cannot be written.
        """
        dataset = self.splits.dataset
        # DomainBed counts the epochs of the smallest environment, test environments included
        ins = [split for name, split in self.splits.by_name.items() if name.endswith("_in")]
        steps_per_epoch = min(len(split) / self.hparams["batch_size"] for split in ins)
        begun, began = self.step, time.monotonic()
        with noticed() as caught:
            while self.step < self.n_steps:
                step = self.step
                try:
                    self._update()
                except Exception:
                    if caught:  # a loader's workers were told to end, too
                        raise self._interrupted(caught[0]) from None
                    raise
                self.step = step + 1
                if self.averages:
                    self.averages.update(step)
                if step % self.checkpoint_freq == 0 or step == self.n_steps - 1:
                    self._checkpoint(step, step / steps_per_epoch)
                lock.note(step, self.n_steps, (self.step - begun) / (time.monotonic() - began))
                if self.options.on_step:
                    self.options.on_step(step, self.n_steps)
                if caught and self.step < self.n_steps:
                    run_files.save_state(self.directory, self.state())
                    raise self._interrupted(caught[0])
        self._save_model(paths.last_model(), dataset)
        for kind in self.averages.ready() if self.averages else ():
            with self._averaged(kind):
                self._save_model(paths.last_model(kind), dataset)
        if self.options.keep:
            tidy(self.directory, self.options.keep, finished=True)
        if SHAM in self.recorder.criteria:
            self._write_controls()
        run_files.write_atomically(self.directory / paths.DONE, lambda file: file.write(b"done"))
        (self.directory / paths.STATE).unlink(missing_ok=True)
        self.counts.clear()

    def _write_controls(self) -> None:
        """Write down what needs the counts of all checkpoints, beside the records, which stay as they are."""
        steps = read_records(self.directory).by_step
        values = self.counts.shams(steps, self.options.settings.fill, self.args["seed"])
        lines = "".join(files.to_json({"step": step, SHAM: value}) + "\n" for step, value in values.items())
        if lines:
            path = self.directory / paths.CONTROLS
            run_files.write_atomically(path, lambda file: file.write(lines.encode()))

    def _interrupted(self, number: int) -> InterruptedRun:
        return InterruptedRun(
            f"{self.directory}: ended by {signal.Signals(number).name} before step {self.step} of {self.n_steps}; "
            "start the run again: it continues"
        )

    def _update(self) -> None:
        started = time.time()
        batch = [(x.to(self.device), y.to(self.device)) for x, y in map(next, self.train_streams.values())]
        unlabeled = None
        if self.args["task"] == "domain_adaptation":
            unlabeled = [x.to(self.device) for x, _ in map(next, self.uda_streams.values())]
        step_values = self.algorithm.update(batch, unlabeled)
        self.values["step_time"].append(time.time() - started)
        for key, value in step_values.items():
            self.values[key].append(value)

    def _checkpoint(self, step: int, epoch: float) -> None:
        results: dict[str, Any] = {"step": step, "epoch": epoch}
        results.update({key: np.mean(value) for key, value in self.values.items()})
        results.update(self._evaluate(self.recorder, self.eval_streams))
        self.peak_gb = max(self.peak_gb, torch.cuda.max_memory_allocated() / 1024**3)
        results["mem_gb"] = self.peak_gb
        # a grid may have hundreds of settings, which only the record holds
        hidden = {"nac", *results["nac"]["grid"]}
        row = {key: results[key] for key in sorted(results) if key not in hidden}
        if list(row) != self.shown:
            self.shown = list(row)
            self.testbed.misc.print_row(self.shown, colwidth=12)
        self.testbed.misc.print_row(list(row.values()), colwidth=12)
        results.update({"hparams": self.hparams, "args": self.args})
        self.values.clear()
        if self.args["save_model_every_checkpoint"]:
            self._save_model(paths.step_model(step), self.splits.dataset)
        self.counts.add(step, self.recorder.counts, results)
        self.line = files.to_json(results, sort_keys=True)
        self.average_lines = [
            files.to_json(record, sort_keys=True) for record in self._measure_averages(step, epoch)
        ]
        run_files.save_state(self.directory, self.state())
        run_files.append_record(self.directory, self.line)
        for line in self.average_lines:
            run_files.append_record(self.directory, line, paths.AVERAGES)
        self.records += 1
        self.average_records += len(self.average_lines)
        self.line, self.average_lines = None, []
        self._keep_coverage(results)
        if self.options.keep:
            # only now: the state knows the checkpoint that took a better one's place
            tidy(self.directory, self.options.keep)

    def _evaluate(self, recorder: Recorder, streams: Mapping[str, Iterable[Any]]) -> dict[str, Any]:
        recording = recorder.start()
        measured = recorder.measured()
        results: dict[str, Any] = {}
        for name, stream in streams.items():
            if name in measured:
                results[f"{name}_acc"] = recording.evaluate(name, stream)
            else:
                results[f"{name}_acc"] = accuracy(self.algorithm, stream, self.device)
            # DomainBed's evaluation leaves every module in training mode, whatever mode it was in
            self.algorithm.train()
        return {**results, **recording.finish()}

    def _measure_averages(self, step: int, epoch: float) -> Iterator[dict[str, Any]]:
        """Measure the averages as the run itself is measured, on batches that no stream of the run knows of."""
        for kind in self.averages.ready() if self.averages else ():
            with self._averaged(kind):
                results = {"step": step, "epoch": epoch, "candidate": kind}
                results.update(self._evaluate(self.average_recorder, self.average_loaders))
                if self.args["save_model_every_checkpoint"]:
                    self._save_model(paths.step_model(step, kind), self.splits.dataset)
            yield {**results, "hparams": self.hparams, "args": self.args}

    @contextlib.contextmanager
    def _averaged(self, kind: str) -> Iterator[None]:
        """Let the algorithm have averaged weights; every random number inside is drawn apart from training's."""
        assert self.averages
        splits, batch_size = [split for _, split, _ in self.splits.train], self.hparams["batch_size"]

        def batches() -> Iterator[Tensor]:
            return (x.to(self.device) for x in sample(splits, batch_size, self.average_seed))

        with drawing_apart(self.average_seed), self.averages.installed(kind, batches):
            yield

    def _keep_coverage(self, results: Mapping[str, Any]) -> None:
        """Keep the counts of the checkpoint that ``nac_me`` chooses, for the report's picture of its coverage."""
        path, nac = self.directory / paths.COVERAGE, results["nac"]
        if results["nac_me"] is None:
            return
        if path.exists():
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # what is none is replaced
                if results["nac_me"] <= float(files.read_arrays(path)["nac_me"]):
                    return
        fill = nac["fill"] * nac["num_counted"] if isinstance(nac["fill"], float) else nac["fill"]
        counts = {f"counts_{layer}": value.numpy() for layer, value in self.recorder.counts.items()}
        content = {"step": results["step"], "nac_me": results["nac_me"], "fill": fill, **counts}
        run_files.write_atomically(path, lambda file: np.savez_compressed(file, **content))

    def _save_model(self, name: str, dataset: Any) -> None:
        if self.args["skip_model_save"]:
            return
        content = {
            "args": self.args,
            "model_input_shape": dataset.input_shape,
            "model_num_classes": dataset.num_classes,
            "model_num_domains": self.num_domains,
            "model_hparams": self.hparams,
            "model_dict": self.algorithm.state_dict(),
            "step": self.step - 1,
        }
        run_files.write_atomically(self.directory / name, lambda file: torch.save(content, file))

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on; tensors are the live ones.

        Returns
        -------
        dict
            See `run_files.save_state`.
        """
        streams = {**self.train_streams, **self.uda_streams, **self.eval_streams}
        return {
            "version": 1,
            "step": self.step,
            "records": self.records,
            "line": self.line,
            "settings": comparable(self.args, self.options),
            "algorithm": snapshot.capture(self.algorithm),
            "values": snapshot.capture(dict(self.values)),
            "shown": self.shown,
            "warned": self.recorder.warned,
            "peak_gb": self.peak_gb,
            "streams": {name: stream.position() for name, stream in streams.items()},
            "generators": generator_states(),
            "averages": self.averages
            and {"models": self.averages.state(), "records": self.average_records, "lines": self.average_lines},
        }

    def _restore(self, state: dict[str, Any]) -> None:
        missing = snapshot.restore(self.algorithm, state["algorithm"], self.device)
        if missing:
            # some algorithms make a part of themselves in their first step only
            self._rehearse()
            missing = snapshot.restore(self.algorithm, state["algorithm"], self.device)
        if missing:
            raise NacmeError(
                f"{self.directory}: {self.args['algorithm']} cannot be resumed, for {missing[0]} cannot be made "
                "again; delete the directory to start anew"
            )
        self.step, self.peak_gb, self.shown = state["step"], state["peak_gb"], state["shown"]
        self.records = state["records"] + (state["line"] is not None)
        self.values.update(snapshot.rebuild(state["values"]))
        self.recorder.warned = state["warned"]
        set_generator_states(state["generators"])
        if self.averages:
            self.averages.restore(state["averages"]["models"])
            self.average_records = state["averages"]["records"] + len(state["averages"]["lines"])

    def _rehearse(self) -> None:
        """Make one step on any samples; the state that is restored next undoes it."""

        def first(split: Any) -> Any:
            x, y = collate(split, list(range(min(len(split), self.hparams["batch_size"]))))
            return x.to(self.device), y.to(self.device)

        adapting = self.args["task"] == "domain_adaptation"
        unlabeled = [first(split)[0] for split, _ in self.splits.uda] if adapting else None
        self.algorithm.update([first(split) for _, split, _ in self.splits.train], unlabeled)
