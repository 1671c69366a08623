"""The record of a run of anybody's training loop, in the files that DomainBed's runs have."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from domainbed_plugins.runs import paths
from domainbed_plugins.runs.files import append_record, rewind_records, write_atomically
from domainbed_plugins.runs.keep import check_keep, tidy
from nacme.errors import ConfigError, SweepError
from nacme.measurement import accuracy
from nacme.recorder import Recorder
from nacme.records.lines import Faults, read_lines
from nacme.settings import CoverageSettings
from nacme.system import files


class RunLog:
    """Measure the checkpoints of a training loop and write them as a run that nacme reads.

    Parameters
    ----------
    directory : path
        Of this run, which is made if there is none. A sweep is a directory of such directories.
    dataset : str
        Name of the data.
    test_env : str or sequence of str
        The held-out environment, or several, by name. Nothing but test accuracy is measured on them.
    keep : str or sequence of str
        Which models stay on disk: ``"all"``, ``"last"``, ``"best:CRITERION"``; none for ``()``.
    algorithm : str
        Name of the way of training.
    hparams : mapping, optional
        What the run was trained with, for the record.
    hparams_seed, trial_seed : int
        Number of the draw of hyper-parameters, and of the repetition.
    resume : bool
        Whether a checkpoint may go back to a step on record: its record and all later ones are replaced then, as
        a loop needs that continues from a saved state.
    settings, layers, criteria
        As for `nacme.Recorder`.

    Raises
    ------
    NacmeError
        If a name of the criterion to keep by is unknown, or the directory holds another run.

    Notes
    -----
    Environments are numbered in the order of their names, so that the runs of a sweep agree if each names all of
    them; the names are on record under ``args.env_names``. A model is on disk before its record is, as
    ``model_step{step}.pkl`` with its state under ``model_dict``.

    Examples
    --------
    >>> import tempfile
    >>> model = nn.Linear(4, 3)
    >>> loader = [(torch.randn(8, 4), torch.randint(3, (8,)))]
    >>> settings = CoverageSettings(alpha=10.0, fill=0.1)
    >>> with tempfile.TemporaryDirectory() as runs:
    ...     log = RunLog(f"{runs}/a", dataset="mine", test_env="B", keep="best:nac_me", settings=settings)
    ...     record = log.checkpoint(0, model, val={"A": loader, "C": loader}, test=loader)
    ...     log.finish()
    >>> record["args"]["env_names"], record["args"]["test_envs"]
    (['A', 'B', 'C'], [1])
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        dataset: str,
        test_env: str | Sequence[str],
        keep: str | Sequence[str] = "all",
        algorithm: str = "ERM",
        hparams: Mapping[str, Any] | None = None,
        hparams_seed: int = 0,
        trial_seed: int = 0,
        resume: bool = False,
        settings: CoverageSettings | None = None,
        layers: Sequence[str] | None = None,
        criteria: Sequence[str] | None = None,
    ) -> None:
        self.directory = Path(directory)
        self.test_envs = [test_env] if isinstance(test_env, str) else list(test_env)
        if not self.test_envs:
            raise ConfigError("test_env names no environment; name the one that training never sees")
        self.keep = [keep] if isinstance(keep, str) else list(keep)
        check_keep(self.keep)
        self.resume = resume
        self._about = {
            "dataset": dataset,
            "algorithm": algorithm,
            "hparams_seed": hparams_seed,
            "trial_seed": trial_seed,
            "seed": trial_seed,
        }
        self._hparams = dict(hparams or {})
        self._options: dict[str, Any] = {"settings": settings, "layers": layers, "criteria": criteria}
        self._recorder: Recorder | None = None

    def checkpoint(
        self,
        step: int,
        model: nn.Module,
        *,
        val: Mapping[str, Iterable[Any]],
        test: Iterable[Any] | Mapping[str, Iterable[Any]] | None = None,
    ) -> dict[str, Any]:
        """Measure the model as it is now, save it and append its record.

        Parameters
        ----------
        step : int
            Greater than that of the last checkpoint.
        model : nn.Module
            See `nacme.measure`.
        val : mapping of str to iterable
            The validation loader of each training environment, by name.
        test : iterable, or mapping of str to iterable, optional
            The test environment's loader; of several, by name. None: test accuracy stays unknown.

        Returns
        -------
        dict
            The record.

        Raises
        ------
        ConfigError
            If an environment is both validated and tested on, the step is on record already, or the directory
            holds another run.
        NacmeError
            If the model or the loaders cannot be measured, or the record cannot be written.
        """
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise ConfigError(f"step={step!r} must be a whole number, 0 or more")
        tests = self._tests(test)
        if not isinstance(val, Mapping) or not val:
            raise ConfigError('val must be the validation loaders by environment, as in val={"A": loader}')
        if seen := sorted(val.keys() & set(self.test_envs)):
            raise ConfigError(
                f"{seen[0]!r} is the test environment; it must not be among val, which choices look at"
            )
        names = sorted({*val, *self.test_envs})
        args = {
            **self._about,
            "test_envs": sorted(map(names.index, self.test_envs)),
            "env_names": names,
        }
        before = self._records_before(step, args)
        with torch.random.fork_rng(devices=[]):
            record = {
                "step": step,
                "args": args,
                "hparams": self._hparams,
                **self._measured(model, names, val, tests),
            }
        line = files.to_json(record)
        self.directory.mkdir(parents=True, exist_ok=True)
        if self.keep:
            content = {
                "model_dict": model.state_dict(),
                "model_hparams": self._hparams,
                "args": args,
                "step": step,
            }
            path = self.directory / paths.step_model(step)
            write_atomically(path, lambda file: torch.save(content, file))
        if before is not None:
            rewind_records(self.directory, before, [])
        (self.directory / paths.DONE).unlink(missing_ok=True)  # it goes on, after all
        append_record(self.directory, line)
        if self.keep:
            tidy(self.directory, self.keep)
        return record

    def finish(self) -> None:
        """Mark the run as done."""
        write_atomically(self.directory / paths.DONE, lambda file: file.write(b"done"))

    def _tests(self, test: Iterable[Any] | Mapping[str, Iterable[Any]] | None) -> dict[str, Iterable[Any]]:
        if test is None:
            return {}
        if not isinstance(test, Mapping):
            if len(self.test_envs) > 1:
                raise ConfigError(f"there are {len(self.test_envs)} test environments; give their loaders by name")
            return {self.test_envs[0]: test}
        if unknown := sorted(test.keys() - set(self.test_envs)):
            raise ConfigError(f"test has a loader for {unknown[0]!r}, which is none of test_env={self.test_envs}")
        return dict(test)

    def _measured(
        self,
        model: nn.Module,
        names: Sequence[str],
        val: Mapping[str, Iterable[Any]],
        tests: Mapping[str, Iterable[Any]],
    ) -> dict[str, Any]:
        """Accuracies under DomainBed's keys, then what the recorder gives."""
        if self._recorder is None:
            self._recorder = Recorder(model, val, **self._options)
        recorder = self._recorder
        recorder.model = model
        recorder.loaders = recorder.coverage_loaders = dict(val)
        recording = recorder.start()
        accuracies: dict[str, float | None] = {}
        for number, name in enumerate(names):
            accuracies[f"env{number}_in_acc"] = accuracies[f"env{number}_out_acc"] = None
            if name in val:
                accuracies[f"env{number}_out_acc"] = recording.evaluate(name, val[name])
            elif name in tests:
                # as DomainBed has it, the larger split of a test environment is what it is tested on
                accuracies[f"env{number}_in_acc"] = accuracy(model, tests[name])
        return {**accuracies, **recording.finish()}

    def _records_before(self, step: int, args: Mapping[str, Any]) -> int | None:
        """Count the records that stay before this one; None: there is no file yet."""
        path = self.directory / paths.RESULTS
        if not os.path.lexists(path):
            return None
        # what follows the last newline is torn, as a crash in the middle of writing leaves it
        whole, faults = files.read_bytes(path).count(b"\n"), Faults()
        records = [record for number, record in read_lines(str(path), faults) if number <= whole]
        if said := [text for text in faults.texts() if "truncated record" not in text]:
            raise SweepError(f"{said[0]}; mend or remove that line first")
        if records and records[0].get("args") != args:
            raise ConfigError(f"{self.directory} holds another run ({_differing(records[0], args)}); give another")
        if records and records[-1]["step"] >= step and not self.resume:
            raise ConfigError(
                f"{self.directory} holds step {records[-1]['step']} already, so that step {step} is no next one; "
                "give another directory, or resume=True to replace what is on record from here on"
            )
        return len([record for record in records if record["step"] < step])


def _differing(record: Mapping[str, Any], args: Mapping[str, Any]) -> str:
    held = record.get("args")
    if not isinstance(held, dict):
        return "its records have no args"
    key = next(key for key in [*args, *held] if args.get(key) != held.get(key))
    return f"{key} {held.get(key)!r}, not {args.get(key)!r}"
