"""Handing a chosen model on: a plain state dict, and a JSON card that says where it comes from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from domainbed_plugins.runs import files as run_files
from domainbed_plugins.runs import paths
from domainbed_plugins.runs.checkpoints import load_checkpoint
from domainbed_plugins.runs.keep import read_averages
from domainbed_plugins.runs.records import Records, read_records
from domainbed_plugins.runs.saved import check_step, saved_models
from nacme.errors import SweepError, nearest
from nacme.records.lines import Faults
from nacme.system import files

#: Keys of a record that are no criterion values.
_OTHER = ("args", "hparams", "nac", "step", "epoch", "step_time", "mem_gb", "candidate", "members", "asked")


def export(run: Path, step: int | None, out: Path, candidate: str = "raw") -> Path:
    """Write a checkpoint's weights and its card.

    Parameters
    ----------
    run : path
        The run's directory.
    step : int, optional
        Of the checkpoint, as ``nacme select`` names it. None: the last.
    out : path
        Directory for ``model.pt`` (a state dict, on the CPU) and ``card.json``.
    candidate : str
        ``"raw"``, or the kind of an average along the run.

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
    records = read_records(run)
    if candidate == "raw":
        step = records.last["step"] if step is None and records.last else step
        record = _record(run, -1 if step is None else step, records)
        checkpoint = _checkpoint(run, record["step"], records)
    else:
        record = _average(run, step, candidate)
        checkpoint = run / paths.step_model(record["step"], candidate)
        if not checkpoint.is_file():
            checkpoint = run / paths.last_model(candidate)
    content = load_checkpoint(checkpoint)
    check_step(content, record["step"], checkpoint)
    card = describe(record, content) | {"run": run.resolve().name, "candidate": candidate, "weights": "model.pt"}
    open_out(out)
    weights: dict[str, Any] = dict(content["model_dict"])
    run_files.write_atomically(out / "model.pt", lambda file: torch.save(weights, file))
    return write_card(card, out)


def describe(record: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """Say where a model comes from, for its card.

    Parameters
    ----------
    record : mapping
    content : mapping
        Of a checkpoint.
    """
    args = record["args"]
    nac = record.get("nac") or {}
    return {
        "dataset": args["dataset"],
        "test_envs": args["test_envs"],
        "algorithm": args["algorithm"],
        "step": record["step"],
        "hparams": record.get("hparams"),
        "seeds": {key: args[key] for key in ("seed", "trial_seed", "hparams_seed")},
        "holdout_fraction": args.get("holdout_fraction"),
        "splits_hash": nac.get("splits_hash"),
        "values": {key: value for key, value in record.items() if key not in _OTHER},
        "nac": nac,
        "input_shape": list(content.get("model_input_shape") or ()),
        "num_classes": content.get("model_num_classes"),
        "num_domains": content.get("model_num_domains"),
    }


def open_out(out: Path) -> None:
    """Make the directory that a model is exported to."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SweepError(f"--out {out} cannot be written: {error.strerror}; choose another") from error


def write_card(card: Mapping[str, Any], out: Path) -> Path:
    """Write the card and give its path."""
    text = files.to_json(card, indent=2) + "\n"
    run_files.write_atomically(out / "card.json", lambda file: file.write(text.encode()))
    return out / "card.json"


def _average(run: Path, step: int | None, candidate: str) -> dict[str, Any]:
    found = {record["step"]: record for record in read_averages(run, Faults()).get(candidate, ())}
    if not found:
        raise SweepError(f"{run / paths.AVERAGES} has no record of {candidate}")
    step = max(found) if step is None else step
    if step not in found:
        raise SweepError(
            f"{run / paths.AVERAGES} has no {candidate} of step {step}; {nearest(str(step), map(str, found))}"
        )
    return found[step]


def _record(run: Path, step: int, records: Records) -> dict[str, Any]:
    path = run / paths.RESULTS
    if not os.path.lexists(path):
        raise SweepError(f"{run} has no {paths.RESULTS}; give a run's directory")
    if step not in records.by_step:
        if records.faults and not records.by_step:
            raise SweepError(records.faults[0])
        lost = f" ({records.faults[0]})" if records.faults else ""
        raise SweepError(
            f"{path} has no record of step {step}{lost}; {nearest(str(step), map(str, records.by_step))}"
        )
    return records.by_step[step]


def _checkpoint(run: Path, step: int, records: Records) -> Path:
    path = run / paths.step_model(step)
    if path.is_file():
        return path
    models = saved_models(run, records)
    if step not in models:
        kept = [path.name for path in models.values()]
        raise SweepError(f"{run} holds no checkpoint of step {step}, only {', '.join(kept) or 'none'}")
    return models[step]
