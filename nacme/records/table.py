"""What was read from the runs of a sweep, as plain arrays that fit into one file."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from nacme.candidates import FOLDER
from nacme.records.run import HEAD, RESULTS, Run, read_candidate, read_run

#: What `Facts` tells of: directories without records, runs whose records are all unreadable, lines left out,
#: runs with repeated steps, runs with added values for unknown steps, settings of coverage, and its layers.
FACTS = ("bare", "empty", "skipped", "restarted", "unmatched", "settings", "layers")
Facts = dict[str, list[str]]


@dataclass
class Table:
    """The blocks of many runs, joined.

    Parameters
    ----------
    heads : dict of str to ndarray, shape (blocks,)
        By name of `nacme.records.run.HEAD`.
    lengths : ndarray of int, shape (blocks,)
        Checkpoints in each block.
    columns : dict of str to ndarray, shape (rows,)
        Numbers per checkpoint, block after block; NaN where a block does not have the column.
    facts : dict of str to list of str
        By name of `FACTS`.
    """

    heads: dict[str, npt.NDArray[Any]]
    lengths: npt.NDArray[np.int64]
    columns: dict[str, npt.NDArray[np.float64]]
    facts: Facts

    @classmethod
    def of_runs(cls, runs: Sequence[Run], bare: Sequence[str]) -> Table:
        """Join the blocks of runs; ``bare`` are the directories that are no runs."""
        blocks = [block for run in runs for block in run.blocks]
        columns = {}
        for name in dict.fromkeys(name for block in blocks for name in block.columns):
            values: list[float] = []
            for block in blocks:
                values += block.columns.get(name) or [float("nan")] * len(block)
            columns[name] = np.array(values, float)
        facts = {
            "bare": list(bare),
            "empty": [run.name for run in runs if not run.blocks],
            "skipped": [line for run in runs for line in run.skipped],
            "restarted": [run.name for run in runs if run.restarted],
            "unmatched": [run.name for run in runs if run.unmatched],
            "settings": sorted(set[str]().union(*(run.settings for run in runs))),
            "layers": sorted(set[str]().union(*(run.layers for run in runs))),
        }
        heads = {name: np.array([block.head[i] for block in blocks]) for i, name in enumerate(HEAD)}
        return cls(heads, np.array([len(block) for block in blocks], np.int64), columns, facts)

    @classmethod
    def join(cls, tables: Sequence[Table]) -> Table:
        """Put tables of different runs one below the other."""
        held = [table for table in tables if len(table.lengths)] or list(tables[:1])
        columns = {
            name: np.concatenate([t.columns.get(name, np.full(t.lengths.sum(), np.nan)) for t in held])
            for name in dict.fromkeys(name for t in held for name in t.columns)
        }
        facts = {kind: [text for t in tables for text in t.facts[kind]] for kind in FACTS}
        facts |= {kind: sorted(set(facts[kind])) for kind in ("settings", "layers")}
        heads = {name: np.concatenate([t.heads[name] for t in held]) for name in HEAD}
        return cls(heads, np.concatenate([t.lengths for t in held]), columns, facts)

    def save(self, file: IO[bytes], about: str = "") -> None:
        """Write the table and a text about it, as an uncompressed ``.npz``."""
        arrays: dict[str, Any] = {f"head {name}": values for name, values in self.heads.items()}
        arrays |= {f"column {name}": values for name, values in self.columns.items()}
        np.savez(file, about=about, lengths=self.lengths, facts=json.dumps(self.facts), **arrays)

    @classmethod
    def load(cls, file: str | os.PathLike[str] | IO[bytes], about: str = "") -> Table | None:
        """Read a table; None if the text about it is another one."""
        if not zipfile.is_zipfile(file):
            raise ValueError("it is no zip file")
        with np.load(file, allow_pickle=False) as arrays:
            # as `save` writes them; what is compressed may be a thousand times larger than the file
            if any(member.compress_type != zipfile.ZIP_STORED for member in arrays.zip.infolist()):
                raise ValueError("it is compressed")
            if str(arrays["about"]) != about:
                return None
            named: dict[str, dict[str, npt.NDArray[Any]]] = {"head": {}, "column": {}}
            for key in arrays.files:
                kind, _, name = key.partition(" ")
                if name:
                    named[kind][name] = arrays[key]
            table = cls(named["head"], arrays["lengths"], named["column"], json.loads(str(arrays["facts"])))
        table.check()
        return table

    def check(self) -> None:
        """Raise ValueError unless the parts fit together, as those of a file need not."""
        blocks, facts = len(self.lengths), self.facts
        whole = (
            self.lengths.dtype == np.int64
            and self.lengths.ndim == 1
            and bool((self.lengths >= 0).all())
            and self.heads.keys() == set(HEAD)
            and all(head.shape == (blocks,) and head.dtype.kind in "biufU" for head in self.heads.values())
            and all(
                column.shape == (self.lengths.sum(),) and column.dtype == np.float64
                for column in self.columns.values()
            )
            and (not blocks or {"step", "model", "test_acc", "val_acc"} <= self.columns.keys())
            and isinstance(facts, dict)
            and facts.keys() == set(FACTS)
            and all(isinstance(texts, list) and all(isinstance(t, str) for t in texts) for texts in facts.values())
        )
        if not whole:
            raise ValueError("its parts do not fit together")


def read_runs(sweep: str, names: Iterable[str], known: frozenset[str]) -> Table:
    """Read the runs in directories of a sweep.

    Parameters
    ----------
    sweep : str
        The sweep directory, or a run directory.
    names : iterable of str
        Names of directories in it; ``"."`` for itself.
    known : frozenset of str
        Names of the recorded criteria.

    Returns
    -------
    Table
    """
    runs, bare = [], []
    for name in names:
        directory = os.path.normpath(os.path.join(sweep, name))
        title = os.path.basename(os.path.abspath(directory))
        try:
            files = frozenset(os.listdir(directory))
            if RESULTS in files:
                runs.append(read_run(directory, title, files, known))
            else:
                bare.append(name)
        except OSError as error:  # no permission, or deleted meanwhile
            runs.append(Run(title, skipped=[f"{directory} cannot be read ({error.strerror}); skipped"]))
    return Table.of_runs(runs, bare)


def read_candidates(sweep: str, names: Iterable[str], known: frozenset[str]) -> Table:
    """Read the candidates across the runs of a sweep.

    Parameters
    ----------
    sweep : str
    names : iterable of str
        Of files in its folder of candidates.
    known : frozenset of str
        Names of the recorded criteria.

    Returns
    -------
    Table
    """
    folder = os.path.join(sweep, FOLDER)
    named = [(name, f"{FOLDER}/{os.path.splitext(name)[0]}") for name in names]
    return Table.of_runs([read_candidate(os.path.join(folder, name), title, known) for name, title in named], [])
