"""Which checkpoints stay on disk: those that a criterion may choose, and the last; the rest is deleted.

What a criterion chooses in a run is what `nacme.select` chooses with ``per="run"``, and among several runs it
chooses one of those. Averages along the run are chosen among themselves, by kind. A criterion is of use here only
if later checkpoints do not change the value of earlier ones.
"""

from __future__ import annotations

import math
import os
import stat
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domainbed_plugins.runs import paths
from domainbed_plugins.runs.records import find_runs, read_records
from domainbed_plugins.runs.saved import check_step, saved_models
from nacme.criteria.registry import get_criterion
from nacme.errors import ConfigError, NacmeError, SweepError
from nacme.output import say
from nacme.records.lines import Faults, read_lines
from nacme.records.run import final_step
from nacme.system.text import printable

_BEST = "best:"


@dataclass(frozen=True)
class Leftover:
    """A checkpoint that no kept criterion chooses.

    Attributes
    ----------
    path : path
    size : int
        In bytes.
    """

    path: Path
    size: int


def check_keep(keep: Sequence[str], *, skip_model_save: bool = False) -> None:
    """Refuse a keep policy that cannot be followed.

    Parameters
    ----------
    keep : sequence of str
        ``"all"``, ``"last"`` and ``"best:CRITERION"``.
    skip_model_save : bool
        Whether nothing is saved at all.

    Raises
    ------
    CriterionError
        For an unknown criterion.
    ConfigError
        For anything else.
    """
    if keep and skip_model_save:
        raise ConfigError("--keep needs saved checkpoints; leave out --skip_model_save")
    for what in keep:
        if what in ("all", "last"):
            continue
        if not what.startswith(_BEST):
            raise ConfigError(f"--keep {what!r} is unknown; use best:CRITERION (as in best:nac_me), last or all")
        name = what[len(_BEST) :]
        criterion = get_criterion(name)
        if name not in ("val_acc", "last") and not criterion.is_recorded:
            raise ConfigError(
                f"--keep {what!r}: {name} depends on other checkpoints or on test labels, so that none can be "
                "dropped early; keep all"
            )


def kept_steps(records: Iterable[Mapping[str, Any]], keep: Sequence[str]) -> set[int]:
    """Choose among a run's checkpoints.

    Parameters
    ----------
    records : iterable of mapping
        The run's, in order.
    keep : sequence of str

    Returns
    -------
    set of int
        Their steps.
    """
    records = list(records)
    chosen = {records[-1]["step"]} if records and "last" in keep else set()
    for what in keep:
        if not what.startswith(_BEST):
            continue
        name = what[len(_BEST) :]
        sign = 1 if get_criterion(name).higher_is_better else -1
        values = [(_value(record, name), record["step"]) for record in records]
        # ties go to the earliest step, as in nacme.select
        scores = [(sign * value, -step) for value, step in values if value is not None]
        if scores:
            chosen.add(-max(scores)[1])
    return chosen


def _value(record: Mapping[str, Any], name: str) -> float | None:
    value: float | None
    if name == "last":
        value = record["step"]
    elif name == "val_acc":
        held_out: list[float | None] = []
        while f"env{len(held_out)}_out_acc" in record:
            held_out.append(record[f"env{len(held_out)}_out_acc"])
        trained = [acc for env, acc in enumerate(held_out) if env not in record["args"]["test_envs"]]
        known = [acc for acc in trained if acc is not None]  # undefined in a run that has diverged
        value = sum(known) / len(known) if len(known) == len(trained) else None
    else:
        value = record.get(name)
    return value if value is not None and math.isfinite(value) else None


def read_averages(run: Path, faults: Faults) -> dict[str, list[dict[str, Any]]]:
    """Read the records of a run's averages in order, by kind; none if there are no averages.

    Parameters
    ----------
    run : path
    faults : Faults
        Receives what cannot be read.

    Returns
    -------
    dict of str to list of dict
    """
    path = run / paths.AVERAGES
    found: dict[str, list[dict[str, Any]]] = {}
    for number, record in read_lines(str(path), faults) if os.path.lexists(path) else ():
        if not isinstance(record.get("candidate"), str):
            faults.add(str(path), number, "no record of an average; skipped")
            continue
        found.setdefault(record["candidate"], []).append(record)
    return found


def undefined(records: Iterable[Mapping[str, Any]], keep: Sequence[str]) -> list[str]:
    """Name the criteria that are undefined at every checkpoint of a run, so that they choose none."""
    names = [what[len(_BEST) :] for what in keep if what.startswith(_BEST)]
    records = list(records)
    return [name for name in names if all(_value(record, name) is None for record in records)]


def leftovers(run: Path, keep: Sequence[str], *, finished: bool) -> list[Leftover]:
    """List the checkpoints of a run that nothing kept chooses.

    Parameters
    ----------
    run : path
        Its directory.
    keep : sequence of str
    finished : bool
        Whether ``model.pkl`` is the last checkpoint; ``model_step*.pkl`` of the same step is then one too many.

    Returns
    -------
    list of Leftover

    Raises
    ------
    SweepError
        If a record cannot be read, or records and models do not agree, so that the choice would be a guess.
    """
    if "all" in keep:
        return []
    records, faults = read_records(run), Faults()
    averages = read_averages(run, faults)
    if said := [*records.faults, *faults.texts()]:
        raise SweepError(f"{said[0]}: what is best in {run} cannot be told; left alone")
    saved_models(run, records)  # refuses what does not agree
    present = sorted(run.iterdir())
    superseded = []
    for candidate, rows in {"raw": list(records.by_step.values()), **averages}.items():
        if not rows:
            continue
        wanted, last = kept_steps(rows, keep), rows[-1]["step"]
        model = run / paths.last_model(candidate)
        for file in present:
            step = paths.step_of(file.name, candidate)
            double = finished and step == last and model.exists()
            if step is not None and (step not in wanted or double):
                superseded.append(file)
        if finished and last not in wanted and model.exists():
            superseded.append(model)
    # links are somebody's own doing
    found = [(file, os.lstat(file)) for file in superseded]
    return [Leftover(file, state.st_size) for file, state in found if stat.S_ISREG(state.st_mode)]


def tidy(run: Path, keep: Sequence[str], *, finished: bool = False) -> None:
    """Delete the checkpoints of a run that nothing kept chooses.

    Parameters
    ----------
    run, keep, finished
        As for `leftovers`.
    """
    for leftover in leftovers(run, keep, finished=finished):
        leftover.path.unlink(missing_ok=True)


def prune(sweep: Path, keep: Sequence[str], *, yes: bool = False) -> list[Leftover]:
    """List the checkpoints of finished runs that nothing kept chooses, and delete them if told so.

    Parameters
    ----------
    sweep : path
        A sweep's directory, or a run's.
    keep : sequence of str
    yes : bool
        Delete. Otherwise only say what would be deleted.

    Returns
    -------
    list of Leftover

    Raises
    ------
    SweepError
        If there are no runs, or a criterion has no value in one of them. A run whose records and models do not
        agree, or cannot be read, is named and left alone.
    NacmeError
        If the policy cannot be followed.
    """
    if not keep:
        raise ConfigError("--keep is missing; write for example --keep best:nac_me --keep last")
    check_keep(keep)
    skipped: list[str] = []
    runs = find_runs(sweep, skipped)
    if not runs and not skipped:
        raise SweepError(f"{sweep} holds no runs; give a sweep's directory, or a run's")
    finished = [run for run in runs if os.path.exists(run / paths.DONE)]
    for run in finished:
        records = read_records(run)
        for name in () if records.faults else undefined(records.by_step.values(), keep):
            raise SweepError(
                f"{run} holds no value of {name}, so that none of its checkpoints would stay; measure them with "
                f"'nacme score' first, or leave best:{name} out"
            )
    found: list[Leftover] = []
    for run in finished:
        try:
            superseded = leftovers(run, keep, finished=True)
            _check_final(run, superseded)
            found += superseded
        except SweepError as error:
            skipped.append(str(error))
    for leftover in found:
        print(printable(leftover.path))
        if yes:
            leftover.path.unlink(missing_ok=True)
    for line in skipped:
        say(f"{line}")
    size = sum(leftover.size for leftover in found) / 1e6
    said = "deleted" if yes else "would be deleted; add --yes to delete them"
    print(f"{len(found)} checkpoints, {size:.1f} MB, {said}", file=sys.stderr)
    if len(finished) < len(runs):
        print(f"{len(runs) - len(finished)} runs that are not done were left alone", file=sys.stderr)
    return found


def _check_final(run: Path, superseded: Sequence[Leftover]) -> None:
    """Refuse to delete anything of a run whose last model says that later records are lost.

    Raises
    ------
    SweepError
    """
    records, model = read_records(run), run / paths.MODEL
    if not superseded or records.last is None or not os.path.exists(model) or final_step(records.last) is not None:
        return
    from domainbed_plugins.runs.checkpoints import load_checkpoint

    try:
        check_step(load_checkpoint(model), records.last["step"], model)
    except NacmeError as error:
        raise SweepError(f"{error}; {run} is left alone") from error
