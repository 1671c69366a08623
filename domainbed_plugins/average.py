"""Averaged candidates from the saved checkpoints of a sweep: ``nacme average``.

Each candidate is one file in the sweep's folder ``candidates``, where DomainBed does not look: its record, its
members and their weights. The weights themselves are put together again whenever they are wanted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domainbed_plugins.recording.flags import add_coverage_flags, record_options
from domainbed_plugins.recording.options import RecordOptions
from nacme.candidates import FOLDER
from nacme.errors import ConfigError, NacmeError, NacmeWarning, SweepError

#: What can be made. The first two take one network of each run of a group, the others the checkpoints of one run.
KINDS = ("ensemble", "soup", "average", "swad")


@dataclass(frozen=True)
class AverageOptions:
    """What is made of a sweep's checkpoints.

    Attributes
    ----------
    record : RecordOptions
        How a candidate is measured.
    kinds : sequence of str
        Of `KINDS`.
    members : sequence of str
        Of `domainbed_plugins.averaging.members.MEMBERS`.
    order : str
        The criterion by which a greedy soup takes its members, in falling order.
    start : float
        The part of a run's steps after which ``average`` takes its checkpoints.
    """

    record: RecordOptions
    kinds: Sequence[str] = ("ensemble", "soup")
    members: Sequence[str] = ("best",)
    order: str = "val_acc"
    start: float = 0.4


@dataclass
class Outcome:
    """What became of the candidates.

    Attributes
    ----------
    made, skipped : int
        Measured now, and found done.
    failures : list of str
        One line for each that could not be made, and each run that has no part.
    """

    made: int
    skipped: int
    failures: list[str]


def parser() -> argparse.ArgumentParser:
    """Build the parser.

    Returns
    -------
    argparse.ArgumentParser
    """
    result = argparse.ArgumentParser(
        prog="nacme average",
        description="Make candidates from the saved checkpoints of a sweep: ensembles and soups of the runs of a "
        "data set, algorithm, test envs and trial, averages along each run. Nothing but validation data decides. "
        "Candidates made already in the same way are skipped.",
    )
    result.add_argument("sweep", metavar="SWEEP", type=Path)
    result.add_argument("--data_dir", help="the data, as for training")
    making = result.add_argument_group("candidates")
    making.add_argument(
        "--kinds",
        nargs="+",
        choices=KINDS,
        default=["ensemble", "soup"],
        help="ensemble: mean probability of the runs' members; soup: mean weights, uniform and greedy; average: "
        "uniform mean of each run's saved checkpoints; swad: of those in its loss valley. Default: ensemble soup",
    )
    making.add_argument(
        "--members",
        nargs="+",
        choices=["best", "last", "sma", "ema"],
        default=["best"],
        help="of each run: its best-validated checkpoint where it was kept, else the last; its last; its average",
    )
    making.add_argument("--order", default="val_acc", metavar="NAME", help="the criterion a greedy soup goes by")
    making.add_argument(
        "--from", dest="start", type=float, default=0.4, metavar="PART", help="of the steps, for average"
    )
    add_coverage_flags(result)
    running = result.add_argument_group("running")
    running.add_argument("--memory_gb", type=float, help="for data and networks; default: half of what is free")
    running.add_argument("--n_workers", type=int, help="processes that decode images; default: by the cores")
    running.add_argument("--domainbed", metavar="PATH", help="a DomainBed clone; default: DOMAINBED_ROOT")
    result.add_argument("--format", choices=["table", "csv", "json"], default="table", help="of the gains printed")
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Parse flags, make candidates, and print what each kind gains.

    Parameters
    ----------
    argv : sequence of str, optional
        None: the process's arguments.

    Raises
    ------
    NacmeError
        For a user's mistake, or if a candidate could not be made.
    """
    flags = parser().parse_args(argv)
    record = record_options(flags)
    record.load_criteria()
    options = AverageOptions(record, flags.kinds, flags.members, flags.order, flags.start)
    outcome = average(
        flags.sweep,
        flags.data_dir,
        options,
        domainbed=flags.domainbed,
        memory_gb=flags.memory_gb,
        n_workers=flags.n_workers,
    )
    print(f"nacme: {outcome.made} candidates made, {outcome.skipped} done before", file=sys.stderr)
    for failure in outcome.failures:
        print(f"nacme: {failure}", file=sys.stderr)
    if not outcome.made + outcome.skipped:
        raise SweepError("no candidate could be made; see above")

    from nacme.output import write_frame
    from nacme.records.load import load_sweep
    from nacme.study.quality import candidate_gains

    write_frame(candidate_gains(load_sweep(flags.sweep)), flags.format)


def average(
    sweep: str | os.PathLike[str],
    data_dir: str | None,
    options: AverageOptions,
    *,
    domainbed: str | None = None,
    memory_gb: float | None = None,
    n_workers: int | None = None,
) -> Outcome:
    """Make and measure the candidates of a sweep.

    Parameters
    ----------
    sweep : path-like
        A sweep directory, of runs that any DomainBed trained.
    data_dir : str or None
        As DomainBed's ``--data_dir``.
    options : AverageOptions
    domainbed, memory_gb, n_workers
        See `domainbed_plugins.averaging.bench.Bench`.

    Returns
    -------
    Outcome

    Raises
    ------
    NacmeError
        If there is nothing to average, or the data cannot be read. What is wrong with one candidate stands in the
        outcome.
    """
    from tqdm import tqdm

    from domainbed_plugins.averaging.bench import Bench
    from domainbed_plugins.averaging.make import Candidate, make
    from nacme.records.load import load_sweep

    if data_dir is not None and not Path(data_dir).is_dir():
        raise ConfigError(f"--data_dir {data_dir} is not a directory; give the folder that training read")
    if not 0 <= options.start < 1:
        raise ConfigError(f"--from {options.start}: a part of the steps, from 0 to below 1")
    outcome = Outcome(0, 0, [])
    folder = Path(sweep) / FOLDER
    wanted = list(_candidates(load_sweep(sweep), options, outcome.failures))
    waiting: list[tuple[Path, Candidate, dict[str, Any]]] = []
    for candidate in wanted:
        path, asked = folder / f"{_name(candidate)}.json", _asked(candidate, options)
        if _holds(path, asked):
            outcome.skipped += 1
        else:
            waiting.append((path, candidate, asked))
    bench = Bench(data_dir, options.record, domainbed, memory_gb, n_workers)
    apart = False
    for path, candidate, asked in tqdm(waiting, desc="average", unit="candidate", disable=None):
        try:
            record = make(candidate, bench)
        except ConfigError:
            raise
        except Exception as error:  # algorithms of others may raise anything
            first = str(error).partition("\n")[0]
            said = str(error) if isinstance(error, NacmeError) else f"{type(error).__name__}: {first}"
            outcome.failures.append(f"{candidate.name} of {candidate.group}: {said}")
            continue
        apart |= candidate.kind == "soup" and record["hparams"].get("head_init", "stock") == "stock"
        _write(path, {**record, "asked": asked})
        outcome.made += 1
    if apart:
        warnings.warn(
            "the classifiers of these runs started at different places, as DomainBed draws them, so that the mean "
            "of their weights may be far from any of them; train with --head_init shared or linear_probe",
            NacmeWarning,
            stacklevel=2,
        )
    return outcome


def _candidates(df: Any, options: AverageOptions, failures: list[str]) -> Iterator[Any]:
    """List what is to be made, candidates of the same data one after another."""
    from domainbed_plugins.averaging.make import Candidate
    from domainbed_plugins.averaging.members import along_runs, find_groups

    across = [kind for kind in options.kinds if kind in ("ensemble", "soup")]
    found = []
    for members in options.members if across else ():
        for group in find_groups(df, members, options.order, failures):
            for kind in across:
                variants = ("uniform", "greedy") if kind == "soup" else (None,)
                found += [Candidate(kind, variant, members, group) for variant in variants]
    for kind in ("average", "swad"):
        if kind in options.kinds:
            groups = along_runs(df, options.start, failures, swad=kind == "swad")
            found += [Candidate(kind, None, "best", group) for group in groups]
    yield from sorted(found, key=lambda candidate: tuple(map(str, candidate.group.key)))


def _name(candidate: Any) -> str:
    digest = hashlib.md5(json.dumps([str(part) for part in candidate.group.key]).encode()).hexdigest()[:12]
    return f"{candidate.name.replace(':', '-')}-{digest}"


def _asked(candidate: Any, options: AverageOptions) -> dict[str, Any]:
    """Say in JSON what a candidate is made of, and how it is measured; one that has it on record is done."""
    members = [[m.run, m.step, m.candidate] for m in candidate.group.members]
    asked = {"members": members, "record": options.record.as_json(), "order": options.order}
    result: dict[str, Any] = json.loads(json.dumps(asked))
    return result


def _holds(path: Path, asked: Mapping[str, Any]) -> bool:
    try:
        return bool(json.loads(path.read_text())["asked"] == asked)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write(path: Path, record: Mapping[str, Any]) -> None:
    from domainbed_plugins.runs import files as run_files

    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{path.parent} cannot be made: {error.strerror}; average a copy of the sweep"
        ) from error
    line = json.dumps(record, sort_keys=True, allow_nan=False) + "\n"
    run_files.write_atomically(path, lambda file: file.write(line.encode()))
