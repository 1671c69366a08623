"""Reading the runs of a large sweep in several processes.

A worker is this module run as a program: it needs no pickling, and works from a script without the guard that
`multiprocessing` asks for and from a process with threads.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from nacme import children
from nacme.records.table import Table, read_runs


def read_in_parallel(sweep: str, names: Sequence[str], known: frozenset[str], workers: int) -> Table:
    """Read runs as `nacme.records.table.read_runs` does, in several processes, this one among them.

    Parameters
    ----------
    sweep, names, known
        As for `nacme.records.table.read_runs`.
    workers : int
        How many processes.

    Returns
    -------
    Table
        Runs in the order of their names.
    """
    share = -(-len(names) // workers)
    shares = [names[i : i + share] for i in range(0, len(names), share)]
    with tempfile.TemporaryDirectory() as directory:
        started = []
        for number, part in enumerate(shares[1:]):
            task, out = (os.path.join(directory, f"{number}.{suffix}") for suffix in ("json", "npz"))
            with open(task, "w") as file:
                json.dump({"sweep": sweep, "names": part, "known": sorted(known), "out": out}, file)
            command = [*children.interpreter(), "-m", __name__, task]
            quiet = subprocess.DEVNULL
            worker = subprocess.Popen(command, stdin=quiet, stderr=quiet, env=children.environment())
            started.append((worker, part, out))
        tables = [read_runs(sweep, shares[0], known)]
        for worker, part, out in started:
            table = Table.load(out) if worker.wait() == 0 else None
            # A worker may be unable to start, for example where nacme is found only through sys.path.
            tables.append(table or read_runs(sweep, part, known))
    return Table.join(tables)


def main(task_file: str) -> None:
    """Read the runs that a task file names, and write the table where it says."""
    with open(task_file) as file:
        task = json.load(file)
    table = read_runs(task["sweep"], task["names"], frozenset(task["known"]))
    with open(task["out"], "wb") as out:
        table.save(out)


if __name__ == "__main__":
    main(sys.argv[1])
