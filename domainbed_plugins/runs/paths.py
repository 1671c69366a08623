"""The names of all files of a run and of a sweep."""

from __future__ import annotations

import re

from nacme.records.run import ADDED as ADDED
from nacme.records.run import DETECTED as DETECTED
from nacme.records.run import RESULTS as RESULTS

STATE = "state.pt"
COVERAGE = "coverage.npz"
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

_STEP_MODEL = re.compile(r"model_step(\d{1,16})\.pkl")


def step_model(step: int) -> str:
    """Name the model of a step."""
    return f"model_step{step}.pkl"


def step_of(name: str) -> int | None:
    """Tell the step of a model by its file's name; None for another file, ``model.pkl`` among them."""
    match = _STEP_MODEL.fullmatch(name)
    return int(match[1]) if match and name == step_model(int(match[1])) else None
