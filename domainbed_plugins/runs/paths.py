"""The names of all files of a run and of a sweep."""

from __future__ import annotations

import re

from nacme.records.run import ADDED as ADDED
from nacme.records.run import AVERAGES as AVERAGES
from nacme.records.run import CONTROLS as CONTROLS
from nacme.records.run import DETECTED as DETECTED
from nacme.records.run import RESULTS as RESULTS

STATE = "state.pt"
COVERAGE = "coverage.npz"
#: Folders of what each checkpoint counted, while a run is trained and while it is scored.
COUNTS, SCORED_COUNTS = "counts", "counts_scored"
LOCK = ".lock"
FAILED = "failed"
DONE = "done"
OUT = "out.txt"
ERR = "err.txt"
#: The last step's model.
MODEL = "model.pkl"

#: Of a sweep: how it measures, so that no other way is mixed with it.
SETTINGS = "sweep.json"
#: Of a sweep: held by every process that has runs of it waiting.
QUEUE = ".queue"
#: Of a sweep: which Slurm job trains which run.
JOBS = "slurm.json"
#: Of a sweep: submitit's logs.
LOGS = ".slurm"

_STEP_MODEL = re.compile(r"model_step(\d{1,16})(?:_[a-z]+)?\.pkl")


def step_model(step: int, candidate: str = "raw") -> str:
    """Name the model of a step: the run's own, or an average along it."""
    return f"model_step{step}{_suffix(candidate)}.pkl"


def last_model(candidate: str = "raw") -> str:
    """Name the last step's model: the run's own, or an average along it."""
    return f"model{_suffix(candidate)}.pkl"


def _suffix(candidate: str) -> str:
    return "" if candidate == "raw" else f"_{candidate}"


def step_of(name: str, candidate: str = "raw") -> int | None:
    """Tell the step of a model of a kind by its file's name; None for another file, ``model.pkl`` among them."""
    match = _STEP_MODEL.fullmatch(name)
    return int(match[1]) if match and name == step_model(int(match[1]), candidate) else None
