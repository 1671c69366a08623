"""The runs that ``nacme score`` measures: their saved checkpoints, and the ``nac.jsonl`` where values go."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nacme.errors import ConfigError, SweepError
from nacme.records.run import ADDED, RESULTS


@dataclass(frozen=True)
class Job:
    """One checkpoint to measure.

    Attributes
    ----------
    directory : Path
        The run's.
    checkpoint : Path
    step : int
    args, hparams : dict
        Of the run's records.
    recorded : dict
        The step's own record; empty if there is none.
    """

    directory: Path
    checkpoint: Path
    step: int
    args: dict[str, Any]
    hparams: dict[str, Any]
    recorded: dict[str, Any]


def find_jobs(sweep: Path, failures: list[str]) -> list[Job]:
    """Find the saved checkpoints of a sweep.

    Parameters
    ----------
    sweep : Path
    failures : list of str
        Receives a line for each run whose records cannot be read.

    Returns
    -------
    list of Job

    Raises
    ------
    SweepError
        If there are no runs, or none saved a checkpoint.
    """
    inside = sorted(sweep.iterdir()) if sweep.is_dir() else []
    directories = [d for d in (sweep, *inside) if (d / RESULTS).is_file()]
    if not directories:
        raise SweepError(f"{sweep} holds no runs: neither it nor a directory in it has a {RESULTS}")
    jobs: list[Job] = []
    for directory in directories:
        named = ((re.fullmatch(r"model_step(\d+)\.pkl", path.name), path) for path in directory.iterdir())
        files = {int(match[1]): path for match, path in named if match}
        records = {record["step"]: record for record in read_lines(directory / RESULTS)}
        final = directory / "model.pkl"
        if records and final.is_file():
            files.setdefault(max(records), final)
        if not files:
            continue
        latest = records.get(max(records, default=None), {})
        lacking = [
            key
            for key in ("dataset", "algorithm", "test_envs", "trial_seed", "seed")
            if key not in latest.get("args", ())
        ]
        if lacking or "hparams" not in latest:
            failures.append(f"{directory / RESULTS}: no whole record says args.{(*lacking, 'hparams')[0]}")
            continue
        jobs += [
            Job(directory, path, step, latest["args"], latest["hparams"], records.get(step, latest))
            for step, path in sorted(files.items())
        ]
    if not jobs and not failures:
        raise SweepError(
            f"{sweep} holds no saved checkpoint; train with --save_model_every_checkpoint to have one of each step"
        )
    return jobs


class Ledger:
    """The ``nac.jsonl`` of one run. Each change replaces the file, so that it is whole whenever it is read.

    Parameters
    ----------
    directory : Path
        The run's.
    asked : dict
        The settings, as JSON, that a step must have on record to be done.
    """

    def __init__(self, directory: Path, asked: dict[str, Any]) -> None:
        self._path = directory / ADDED
        self._asked = json.loads(json.dumps(asked))
        self._records = {record["step"]: record for record in read_lines(self._path)}

    def steps(self) -> list[int]:
        """The steps that are written down."""
        return sorted(self._records)

    def measured(self, step: int | None = None) -> dict[str, Any]:
        """What the ``nac`` object of a step says, of any step for None; empty where nothing is measured."""
        steps = self._records if step is None else [step]
        found = (self._records.get(each, {}).get("nac") or {} for each in steps)
        return next((nac for nac in found if nac.get("asked")), {})

    def add(self, step: int, record: dict[str, Any]) -> None:
        """Write a step down.

        Raises
        ------
        ConfigError
            If the file cannot be written.
        """
        self._records[step] = {**record, "nac": {**record["nac"], "asked": self._asked}, "step": step}
        self._write()

    def update(self, values: Mapping[int, Mapping[str, Any]]) -> None:
        """Add values to steps that are written down already.

        Parameters
        ----------
        values : mapping of int to mapping
            By step, values by key.

        Raises
        ------
        ConfigError
            If the file cannot be written.
        """
        for step, added in values.items():
            self._records[step] = {**self._records[step], **added}
        if values:
            self._write()

    def _write(self) -> None:
        lines = [json.dumps(self._records[key], sort_keys=True) + "\n" for key in sorted(self._records)]
        new = self._path.with_name(f"{ADDED}.tmp")
        try:
            new.write_text("".join(lines))
            os.replace(new, self._path)
        except OSError as error:
            raise ConfigError(
                f"{self._path} cannot be written: {error.strerror}; score a copy of the sweep"
            ) from error


def read_lines(path: Path) -> Iterable[dict[str, Any]]:
    """Yield the whole records of a ``.jsonl`` file that have a step; none if there is no file."""
    if not path.is_file():
        return
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line)
            yield {**record, "step": int(record["step"])}
        except (ValueError, TypeError, KeyError):
            continue  # cut off by a kill
