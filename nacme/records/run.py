"""Reading the records of one run: from lines of JSON to columns of numbers."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from nacme.candidates import RAW
from nacme.criteria.registry import VARIANT_PREFIX
from nacme.records.lines import Faults, read_lines

RESULTS = "results.jsonl"
ADDED = "nac.jsonl"
AVERAGES = "averages.jsonl"
DETECTED = "ood.jsonl"
#: What training writes when a run ends, by step, since it needs all checkpoints.
CONTROLS = "controls.jsonl"

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
    "candidate",
)
#: Values of the column ``model``: where the checkpoint's model is saved; ``ITSELF``: in the record's own file.
NO_MODEL, STEP_MODEL, LAST_MODEL, ITSELF = 0, 1, 2, 3

#: What the ``nac`` object says of how coverage was measured; values measured differently do not compare.
_SETTINGS = ("alpha", "bins", "fill", "split", "spacing", "correct_only")
#: What else becomes a column.
FROM_NAC = ("occupied_bins", "degenerate", "full_bins")
#: What the ``ood`` object's entries, such as ``covariate_nacue``, have a key of each.
_FROM_OOD = ("auroc", "aupr", "fpr95")
#: A longer name is no data set's or algorithm's; a table would hold its length once for every row.
_LONGEST_NAME = 255
#: Seeds and environments are columns of 64-bit integers.
_MOST = 2**63
#: By how much rounding may carry a mean of zeros and ones out of [0, 1].
_ROUNDING = 1e-6
_NAN = float("nan")
_KIND = re.compile(r"[a-z]+(:[a-z0-9_]+)*")
_FAULTS = (KeyError, TypeError, ValueError, AttributeError, RecursionError)
#: Numbers by column that all test envs share, and the test accuracies of each.
_Numbers = tuple[dict[str, float], list[tuple[float, float]]]


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
    """What one run directory gave.

    Attributes
    ----------
    records : dict of int to dict
        If asked for, by step, in order: the records that became rows, each with what ``nac.jsonl`` and
        ``ood.jsonl`` add.
    """

    name: str
    blocks: list[Block] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # what could not be read, and why
    restarted: bool = False
    unmatched: int = 0  # lines of nac.jsonl whose step results.jsonl does not have
    settings: set[str] = field(default_factory=set)
    records: dict[int, dict[str, Any]] = field(default_factory=dict)
    layers: set[str] = field(default_factory=set)  # "DATASET ALGORITHM: LAYERS", where coverage was measured


def read_run(
    directory: str, name: str, files: frozenset[str], known: frozenset[str], *, keep: bool = False
) -> Run:
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
    keep : bool
        Whether to give the records, too.

    Returns
    -------
    Run
    """
    run, faults = Run(name), Faults()
    results = os.path.join(directory, RESULTS)
    records: dict[int, tuple[int, dict[str, Any]]] = {}
    for number, record in read_lines(results, faults):
        run.restarted |= record["step"] in records
        records[record["step"]] = number, record
    further: dict[str, dict[int, tuple[int, dict[str, Any]]]] = {}
    for file in (CONTROLS, ADDED, DETECTED):
        if file in files:
            path = os.path.join(directory, file)
            further[path] = {record["step"]: (number, record) for number, record in read_lines(path, faults)}
            run.unmatched += file == ADDED and len(further[path].keys() - records.keys())
    last = max(records, default=-1)
    if "model.pkl" in files and last >= 0 and (end := final_step(records[last][1])) not in (None, last):
        faults.add(
            os.path.join(directory, "model.pkl"),
            None,
            f"is of step {end}, but the records end at step {last}; it is taken for none of them",
        )
        last = -1
    layout: _Layout | None = None
    for step in sorted(records):
        number, record = records[step]
        found = {path: lines[step] for path, lines in further.items() if step in lines}
        model = STEP_MODEL if f"model_step{step}.pkl" in files else NO_MODEL
        if not model and step == last and "model.pkl" in files:
            model = LAST_MODEL
        try:
            if layout is None or not layout.fits(record):
                layout = _Layout(name, record, "done" in files)
            try:
                whole = _merged([added for _, added in found.values()], record)
                numbers = layout.read(whole, known)
            except _FAULTS:
                whole, numbers = _without_faults(found, record, layout, known, faults)
        except _FAULTS as error:
            faults.add(results, number, f"not a DomainBed record ({_said(error)}); skipped")
            continue
        layout.add(numbers, whole, model, run)
        if keep:
            run.records[step] = whole
    if AVERAGES in files:
        _read_averages(os.path.join(directory, AVERAGES), files, known, run, faults)
    run.skipped = faults.texts()
    return run


def _read_averages(path: str, files: frozenset[str], known: frozenset[str], run: Run, faults: Faults) -> None:
    """Add the averages along a run, kind by kind."""
    found: dict[str, dict[int, tuple[int, dict[str, Any]]]] = {}
    for number, record in read_lines(path, faults):
        kind = record.get("candidate")
        if not isinstance(kind, str) or not _KIND.fullmatch(kind) or kind == RAW:
            faults.add(path, number, f"not a record of an average (candidate is {_shown(kind)}); skipped")
            continue
        found.setdefault(kind, {})[record["step"]] = number, record
    for kind, records in sorted(found.items()):
        layout: _Layout | None = None
        for step in sorted(records):
            number, record = records[step]
            model = STEP_MODEL if f"model_step{step}_{kind}.pkl" in files else NO_MODEL
            if not model and step == max(records) and f"model_{kind}.pkl" in files:
                model = LAST_MODEL
            try:
                if layout is None or not layout.fits(record):
                    layout = _Layout(run.name, record, "done" in files, kind)
                layout.add(layout.read(record, known), record, model, run)
            except _FAULTS as error:
                faults.add(path, number, f"not a record of an average ({_said(error)}); skipped")


def read_candidate(path: str, name: str, known: frozenset[str]) -> Run:
    """Read the record of a candidate across runs: a file that holds one record.

    Parameters
    ----------
    path : str
    name : str
        For the column ``run``.
    known : frozenset of str
        As for `read_run`.

    Returns
    -------
    Run
    """
    run, faults = Run(name), Faults()
    for number, record in read_lines(path, faults):
        try:
            kind = record["candidate"]
            if not isinstance(kind, str) or not _KIND.fullmatch(kind):
                raise ValueError(f"candidate is {_shown(kind)}")
            layout = _Layout(name, record, done=True, candidate=kind)
            layout.add(layout.read(record, known), record, ITSELF, run)
        except _FAULTS as error:
            faults.add(path, number, f"not a candidate of nacme ({_said(error)}); skipped")
    run.skipped = faults.texts()
    return run


def final_step(record: Mapping[str, Any]) -> int | None:
    """Tell the last step of a finished run, hence of its ``model.pkl``, by one of its records; None: unknown."""
    args = record.get("args")
    steps = args.get("steps") if isinstance(args, dict) else None
    return steps - 1 if isinstance(steps, int) and not isinstance(steps, bool) and steps > 0 else None


def _without_faults(
    found: Mapping[str, tuple[int, dict[str, Any]]],
    record: dict[str, Any],
    layout: _Layout,
    known: frozenset[str],
    faults: Faults,
) -> tuple[dict[str, Any], _Numbers]:
    """Put beside a record what can be read of the lines for its step in further files, and name the rest."""
    numbers = layout.read(record, known)
    for path, (number, added) in found.items():
        try:
            whole = _merged([added], record)
            numbers = layout.read(whole, known)
            record = whole
        except _FAULTS as error:
            faults.add(path, number, f"not a record of nacme ({_said(error)}); skipped")
    return record, numbers


def _said(error: Exception) -> str:
    return f"key {error} is missing" if isinstance(error, KeyError) else str(error)


def _merged(further: Sequence[Mapping[str, Any]], record: dict[str, Any]) -> dict[str, Any]:
    """Put what was measured afterwards beside what training recorded, which counts where both have a key."""
    for added in further:
        merged = {**added, **record}
        later, now = added.get("nac"), record.get("nac")
        if isinstance(later, dict) and isinstance(now, dict) and (grid := later.get("grid")):
            merged["nac"] = {**now, "grid": {**_by_key(grid), **_by_key(now.get("grid"))}}
        record = merged
    return record


def _by_key(grid: object) -> dict[str, Any]:
    """Give the settings of a grid; no other key of a record may come from there."""
    if not isinstance(grid, (dict, list, type(None))):
        raise ValueError("nac.grid names no settings")
    settings = grid if isinstance(grid, dict) else {key: {} for key in grid or () if isinstance(key, str)}
    return {key: value for key, value in settings.items() if key.startswith(VARIANT_PREFIX)}


class _Layout:
    """Where to find the numbers in the records of a run, worked out once for records of equal ``args``."""

    def __init__(self, name: str, record: dict[str, Any], done: bool, candidate: str = RAW) -> None:
        args = record["args"]
        if not isinstance(args, dict):
            raise ValueError("args is no object")
        self._args = args
        test_envs = _envs(args["test_envs"])
        self._n_envs = 0
        while f"env{self._n_envs}_out_acc" in record:
            self._n_envs += 1
        self._val_keys = [f"env{i}_out_acc" for i in range(self._n_envs) if i not in test_envs]
        self._test_keys = [(f"env{t}_in_acc", f"env{t}_out_acc") for t in test_envs]
        joined = ",".join(map(str, test_envs))
        names = [_name(key, args[key]) for key in ("dataset", "algorithm")]
        seeds = [_whole(key, args[key]) for key in ("trial_seed", "hparams_seed", "seed")]
        # where a run was written does not make it another run
        asked = orjson.dumps({**args, "output_dir": None}, option=orjson.OPT_SORT_KEYS)
        digest = hashlib.blake2b(asked, digest_size=16).hexdigest()
        tail = (len(test_envs), self._n_envs, *seeds, done, digest, candidate)
        self._heads = [(name, *names, t, joined, *tail) for t in test_envs]
        self._blocks: list[Block] = []

    def fits(self, record: dict[str, Any]) -> bool:
        """Whether a record has the same args and number of envs."""
        return record["args"] == self._args and f"env{self._n_envs}_out_acc" not in record

    def read(self, record: dict[str, Any], known: frozenset[str]) -> _Numbers:
        """Take the numbers from a record; raise if it lacks something, or if something is no number."""
        val_accs = [_accuracy(key, record[key]) for key in self._val_keys]
        numbers = {
            "step": record["step"],
            "val_acc": (mean := sum(val_accs) / len(val_accs) if val_accs else _NAN),
            # a comparison with NaN is false, so that min would depend on the order of the envs
            "val_acc_worst": _NAN if math.isnan(mean) else min(val_accs),
        }
        keys = known
        if nac := record.get("nac"):
            if grid := nac.get("grid"):
                keys = known.union(_by_key(grid))
            for key in FROM_NAC:
                if key in nac:
                    numbers[key] = _number(key, nac[key])
        if ood := record.get("ood"):
            keys = keys.union(f"{metric}_{entry}" for entry in ood for metric in _FROM_OOD)
        for key in keys:
            if key in record:
                numbers[key] = _number(key, record[key])
        if "networks" in record:
            numbers["networks"] = _whole("networks", record["networks"])
        tests = [(_accuracy(i, record[i]), _accuracy(o, record[o])) for i, o in self._test_keys]
        return numbers, tests

    def add(self, read: _Numbers, record: dict[str, Any], model: int, run: Run) -> None:
        """Append one checkpoint."""
        numbers, tests = read
        numbers["model"] = model
        if nac := record.get("nac"):
            run.settings.add(", ".join([f"{key} {str(nac[key])[:40]}" for key in _SETTINGS if key in nac]))
            if isinstance(layers := nac.get("layers"), list):
                where = f"{self._args['dataset']} {self._args['algorithm']}"
                run.layers.add(f"{where}: {', '.join(map(str, layers))[:200]}")
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


def _number(key: str, value: object) -> float:
    if value is None:
        return _NAN
    if not isinstance(value, (int, float)) or (isinstance(value, bool) and key not in FROM_NAC):
        raise ValueError(f"{key} is {_shown(value)}, not a number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{key} is {_shown(value)}, beyond all numbers") from None


def _accuracy(key: str, value: object) -> float:
    number = _number(key, value)
    if not (math.isnan(number) or -_ROUNDING <= number <= 1 + _ROUNDING):
        raise ValueError(f"{key} is {_shown(value)}, not in [0, 1]")
    return number


def _whole(key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not -_MOST <= value < _MOST:
        raise ValueError(f"{key} is {_shown(value)}, no whole number of 64 bits")
    return value


def _name(key: str, value: object) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST_NAME:
        raise ValueError(f"{key} is {_shown(value)}, no name of at most {_LONGEST_NAME} characters")
    # half a pair of surrogates is no character; a null ends a string where tables keep it
    return value.encode(errors="backslashreplace").decode().replace("\0", "\\x00")


def _envs(value: object) -> list[int]:
    if not isinstance(value, list):
        raise ValueError(f"test_envs is {_shown(value)}, no list")
    if not value:
        raise ValueError("test_envs names no environment")
    return sorted({_whole("test_envs", env) for env in value})


def _shown(value: object) -> str:
    if isinstance(value, int) and abs(value) >= _MOST:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
