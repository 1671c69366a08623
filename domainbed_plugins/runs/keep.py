"""Which checkpoints stay on disk: those that a criterion may choose, and the last.

What a criterion chooses in a run is what `nacme.select` chooses with ``per="run"``, and among several runs it
chooses one of those. Averages along the run are chosen among themselves, by kind. A criterion is of use here only
if later checkpoints do not change the value of earlier ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domainbed_plugins.runs import paths
from nacme.criteria.registry import get_criterion
from nacme.errors import ConfigError
from nacme.records.lines import Faults, read_lines

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
        held_out: list[float] = []
        while f"env{len(held_out)}_out_acc" in record:
            held_out.append(record[f"env{len(held_out)}_out_acc"])
        trained = [acc for env, acc in enumerate(held_out) if env not in record["args"]["test_envs"]]
        value = sum(trained) / len(trained)
    else:
        value = record.get(name)
    return value if value is not None and math.isfinite(value) else None


def read_averages(run: Path) -> dict[str, list[dict[str, Any]]]:
    """Read the records of a run's averages in order, by kind; none if there are no averages.

    Parameters
    ----------
    run : path

    Returns
    -------
    dict of str to list of dict
    """
    path = run / paths.AVERAGES
    found: dict[str, list[dict[str, Any]]] = {}
    for _, record in read_lines(str(path), Faults()) if path.exists() else ():
        found.setdefault(record["candidate"], []).append(record)
    return found


def read_records(run: Path) -> list[dict[str, Any]]:
    """Read a run's records in order, each with what ``nacme score`` added.

    Parameters
    ----------
    run : path

    Returns
    -------
    list of dict
    """
    records, added = (
        {record["step"]: record for record in map(json.loads, path.read_text().splitlines())}
        if path.exists()
        else {}
        for path in (run / paths.RESULTS, run / "nac.jsonl")
    )
    return [{**added.get(step, {}), **records[step]} for step in sorted(records)]


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
    """
    if "all" in keep:
        return []
    present = sorted(run.iterdir())
    superseded = []
    for candidate, records in {"raw": read_records(run), **read_averages(run)}.items():
        if not records:
            continue
        wanted, last = kept_steps(records, keep), records[-1]["step"]
        model = run / paths.last_model(candidate)
        for file in present:
            step = paths.step_of(file.name, candidate)
            double = finished and step == last and model.exists()
            if step is not None and (step not in wanted or double):
                superseded.append(file)
        if finished and last not in wanted and model.exists():
            superseded.append(model)
    return [Leftover(file, file.stat().st_size) for file in superseded]


def tidy(run: Path, keep: Sequence[str], *, finished: bool = False) -> None:
    """Delete the checkpoints of a run that nothing kept chooses.

    Parameters
    ----------
    run, keep, finished
        As for `leftovers`.
    """
    for leftover in leftovers(run, keep, finished=finished):
        leftover.path.unlink(missing_ok=True)
