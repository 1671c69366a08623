"""``nacme prune``: deleting what a keep policy would not have kept, in a sweep that exists."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from domainbed_plugins.runs import paths
from domainbed_plugins.runs.keep import Leftover, check_keep, leftovers, read_records, undefined
from nacme.errors import ConfigError, SweepError


def prune(sweep: Path, keep: Sequence[str], *, yes: bool = False) -> list[Leftover]:
    """List the checkpoints of finished runs that nothing kept chooses, and delete them if told so.

    Parameters
    ----------
    sweep : path
        A sweep's directory, or a run's.
    keep : sequence of str
        See `domainbed_plugins.runs.keep`.
    yes : bool
        Delete. Otherwise only say what would be deleted.

    Returns
    -------
    list of Leftover

    Raises
    ------
    SweepError
        If there are no runs.
    NacmeError
        If the policy cannot be followed.
    """
    if not keep:
        raise ConfigError("--keep is missing; write for example --keep best:nac_me --keep last")
    check_keep(keep)
    folders = [sweep, *sorted(sweep.iterdir())] if sweep.is_dir() else []
    runs = [run for run in folders if (run / paths.RESULTS).is_file()]
    if not runs:
        raise SweepError(f"{sweep} holds no runs; give a sweep's directory, or a run's")
    finished = [run for run in runs if (run / paths.DONE).exists()]
    for run in finished:
        for name in undefined(read_records(run), keep):
            raise SweepError(
                f"{run} holds no value of {name}, so that none of its checkpoints would stay; measure them with "
                f"'nacme score' first, or leave best:{name} out"
            )
    found = [leftover for run in finished for leftover in leftovers(run, keep, finished=True)]
    for leftover in found:
        print(leftover.path)
        if yes:
            leftover.path.unlink(missing_ok=True)
    size = sum(leftover.size for leftover in found) / 1e6
    said = "deleted" if yes else "would be deleted; add --yes to delete them"
    print(f"{len(found)} checkpoints, {size:.1f} MB, {said}", file=sys.stderr)
    if len(finished) < len(runs):
        print(f"{len(runs) - len(finished)} runs that are not done were left alone", file=sys.stderr)
    return found
