"""Reading the records of one run: from lines of JSON to columns of numbers."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

RESULTS = "results.jsonl"
ADDED = "nac.jsonl"
DETECTED = "ood.jsonl"

#: What is the same for all checkpoints of a block, in this order; ``args`` is a digest of the run's arguments.
HEAD = (
    "run",
    "dataset",
    "algorithm",
    "test_env",
    "test_envs",
    "n_test_envs",
    "n_envs",
    "trial_seed",
    "hparams_seed",
    "seed",
    "done",
    "args",
)
#: Values of the column ``model``: where the checkpoint's model is saved.
NO_MODEL, STEP_MODEL, LAST_MODEL = 0, 1, 2

#: What the ``nac`` object says of how coverage was measured; values measured differently do not compare.
_SETTINGS = ("alpha", "bins", "fill", "split", "spacing", "correct_only")
#: What else becomes a column.
FROM_NAC = ("occupied_bins", "degenerate", "full_bins")
#: What the ``ood`` object's entries, such as ``covariate_nacue``, have a key of each.
_FROM_OOD = ("auroc", "aupr", "fpr95")
_NAN = float("nan")


@dataclass
class Block:
    """The checkpoints of one run as seen from one test env.

    Parameters
    ----------
    head : tuple
        Values of `HEAD`.
    columns : dict of str to list of float
        By name, one number per checkpoint: ``step``, ``model``, ``test_acc``, ``test_out_acc``,
        ``val_acc``, ``val_acc_worst`` and the recorded criteria.
    """

    head: tuple[Any, ...]
    columns: dict[str, list[float]]

    def __len__(self) -> int:
        return len(self.columns["step"])


@dataclass
class Run:
    """What one run directory gave."""

    name: str
    blocks: list[Block] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # lines that are not whole records, and why
    restarted: bool = False
    unmatched: int = 0  # lines of nac.jsonl whose step results.jsonl does not have
    settings: set[str] = field(default_factory=set)


def read_run(directory: str, name: str, files: frozenset[str], known: frozenset[str]) -> Run:
    """Read the records of one run.

    Parameters
    ----------
    directory : str
        Path of the run directory.
    name : str
        Its name.
    files : frozenset of str
        Names of the files in it.
    known : frozenset of str
        Names of the recorded criteria; keys that a record's own ``nac.grid`` names count as well.

    Returns
    -------
    Run
    """
    run = Run(name)
    records: dict[int, tuple[int, dict[str, Any]]] = {}
    for number, record in _lines(os.path.join(directory, RESULTS), run):
        step = record["step"]
        run.restarted |= step in records
        records[step] = number, record
    if ADDED in files:
        added = {record["step"]: record for _, record in _lines(os.path.join(directory, ADDED), run)}
        run.unmatched = len(added.keys() - records.keys())
        for step, (number, record) in records.items():
            records[step] = number, {**added.get(step, {}), **record}
    if DETECTED in files:
        for _, detected in _lines(os.path.join(directory, DETECTED), run):
            if detected["step"] in records:
                number, record = records[detected["step"]]
                records[detected["step"]] = number, {**detected, **record}
    last = max(records, default=None)
    layout: _Layout | None = None
    for step in sorted(records):
        number, record = records[step]
        model = STEP_MODEL if f"model_step{step}.pkl" in files else NO_MODEL
        if not model and step == last and "model.pkl" in files:
            model = LAST_MODEL
        try:
            if layout is None or not layout.fits(record):
                layout = _Layout(name, record, "done" in files)
            layout.add(record, model, known, run)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            fault = f"key {error} is missing" if isinstance(error, KeyError) else str(error)
            where = f"{os.path.join(directory, RESULTS)}, line {number}"
            run.skipped.append(f"{where}: not a DomainBed record ({fault}); skipped")
    return run


def _lines(path: str, run: Run) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, record) of one file; lines that are not a record with a step are noted in ``run``."""
    with open(path, "rb") as file:
        lines = file.read().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = _parse(line)
            record["step"] = int(record["step"])
        except (ValueError, TypeError, KeyError):
            # A line that is whole ends in a newline, so something would follow it in the split.
            fault = "truncated" if number == len(lines) else "corrupt"
            run.skipped.append(f"{path}, line {number}: {fault} record; skipped, the rest is kept")
            continue
        yield number, record


def _parse(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except ValueError:  # Python writes NaN and Infinity, which strict JSON does not know
        return json.loads(line)


class _Layout:
    """Where to find the numbers in the records of a run, worked out once for records of equal ``args``."""

    def __init__(self, name: str, record: dict[str, Any], done: bool) -> None:
        args = record["args"]
        self._args = args
        test_envs = sorted(int(t) for t in args["test_envs"])
        self._n_envs = 0
        while f"env{self._n_envs}_out_acc" in record:
            self._n_envs += 1
        self._val_keys = [f"env{i}_out_acc" for i in range(self._n_envs) if i not in test_envs]
        self._test_keys = [(f"env{t}_in_acc", f"env{t}_out_acc") for t in test_envs]
        joined = ",".join(map(str, test_envs))
        names = [str(args[key]) for key in ("dataset", "algorithm")]
        seeds = [int(args[key]) for key in ("trial_seed", "hparams_seed", "seed")]
        # where a run was written does not make it another run
        asked = orjson.dumps({**args, "output_dir": None}, option=orjson.OPT_SORT_KEYS)
        tail = (len(test_envs), self._n_envs, *seeds, done, hashlib.blake2b(asked, digest_size=16).hexdigest())
        self._heads = [(name, *names, t, joined, *tail) for t in test_envs]
        self._blocks: list[Block] = []

    def fits(self, record: dict[str, Any]) -> bool:
        """Whether a record has the same args and number of envs."""
        return record["args"] == self._args and f"env{self._n_envs}_out_acc" not in record

    def add(self, record: dict[str, Any], model: int, known: frozenset[str], run: Run) -> None:
        """Append one checkpoint; raise, and append nothing, if the record lacks something."""
        val_accs = [_number(record[key]) for key in self._val_keys]
        numbers = {
            "step": record["step"],
            "model": model,
            "val_acc": (mean := sum(val_accs) / len(val_accs) if val_accs else _NAN),
            # a comparison with NaN is false, so that min would depend on the order of the envs
            "val_acc_worst": _NAN if math.isnan(mean) else min(val_accs),
        }
        keys = known
        if nac := record.get("nac"):
            if grid := nac.get("grid"):
                keys = known.union(grid)
            for key in FROM_NAC:
                if key in nac:
                    numbers[key] = _number(nac[key])
            run.settings.add(", ".join([f"{key} {nac[key]}" for key in _SETTINGS if key in nac]))
        if ood := record.get("ood"):
            keys = keys.union(f"{metric}_{entry}" for entry in ood for metric in _FROM_OOD)
        for key in keys:
            if key in record:
                numbers[key] = _number(record[key])
        tests = [(_number(record[in_acc]), _number(record[out_acc])) for in_acc, out_acc in self._test_keys]
        if not self._blocks:
            self._blocks = [Block(head, {}) for head in self._heads]
            run.blocks += self._blocks
        for block, (test_acc, test_out_acc) in zip(self._blocks, tests):
            numbers["test_acc"], numbers["test_out_acc"] = test_acc, test_out_acc
            columns = block.columns
            held = len(columns.get("step", ()))
            for key, value in numbers.items():
                if key in columns:
                    columns[key].append(value)
                else:
                    columns[key] = [_NAN] * held + [value]
            if len(columns) > len(numbers):
                for key in columns.keys() - numbers.keys():
                    columns[key].append(_NAN)


def _number(value: float | None) -> float:
    return _NAN if value is None else float(value)
