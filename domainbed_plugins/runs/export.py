"""Handing a chosen model on: a plain state dict, and a JSON card that says where it comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from domainbed_plugins.runs import files as run_files
from domainbed_plugins.runs import paths
from domainbed_plugins.runs.checkpoints import load_checkpoint
from domainbed_plugins.runs.keep import read_records
from nacme.errors import SweepError, nearest

#: Keys of a record that are no criterion values.
_OTHER = ("args", "hparams", "nac", "step", "epoch", "step_time", "mem_gb")


def export(run: Path, step: int, out: Path) -> Path:
    """Write a checkpoint's weights and its card.

    Parameters
    ----------
    run : path
        The run's directory.
    step : int
        Of the checkpoint, as ``nacme select`` names it.
    out : path
        Directory for ``model.pt`` (a state dict, on the CPU) and ``card.json``.

    Returns
    -------
    path
        Of the card.

    Raises
    ------
    SweepError
        If the run has no such record or checkpoint.
    NacmeError
        If a file cannot be read or written.
    """
    record = _record(run, step)
    content = load_checkpoint(_checkpoint(run, step))
    args = record["args"]
    nac = record.get("nac") or {}
    card = {
        "dataset": args["dataset"],
        "test_envs": args["test_envs"],
        "algorithm": args["algorithm"],
        "step": step,
        "hparams": record["hparams"],
        "seeds": {key: args[key] for key in ("seed", "trial_seed", "hparams_seed")},
        "holdout_fraction": args["holdout_fraction"],
        "splits_hash": nac.get("splits_hash"),
        "values": {key: value for key, value in record.items() if key not in _OTHER},
        "nac": nac,
        "input_shape": list(content["model_input_shape"]),
        "num_classes": content["model_num_classes"],
        "num_domains": content["model_num_domains"],
        "run": run.resolve().name,
        "weights": "model.pt",
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SweepError(f"--out {out} cannot be written: {error.strerror}; choose another") from error
    weights: dict[str, Any] = {key: value.cpu() for key, value in content["model_dict"].items()}
    run_files.write_atomically(out / "model.pt", lambda file: torch.save(weights, file))
    text = json.dumps(card, indent=2) + "\n"
    run_files.write_atomically(out / "card.json", lambda file: file.write(text.encode()))
    return out / "card.json"


def _record(run: Path, step: int) -> dict[str, Any]:
    path = run / paths.RESULTS
    if not path.is_file():
        raise SweepError(f"{run} has no {paths.RESULTS}; give a run's directory")
    records = {record["step"]: record for record in read_records(run)}
    if step not in records:
        raise SweepError(f"{path} has no record of step {step}; {nearest(str(step), map(str, records))}")
    return records[step]


def _checkpoint(run: Path, step: int) -> Path:
    path = run / f"model_step{step}.pkl"
    if path.is_file():
        return path
    if step == read_records(run)[-1]["step"] and (run / "model.pkl").is_file():
        return run / "model.pkl"
    kept = sorted(path.name for path in run.glob("model*.pkl"))
    raise SweepError(f"{run} holds no checkpoint of step {step}, only {', '.join(kept) or 'none'}")
