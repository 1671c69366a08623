"""Handing on what ``nacme select`` and ``nacme recommend`` name: a saved model, or a candidate across runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import torch

from domainbed_plugins.averaging.bench import Bench
from domainbed_plugins.averaging.ensemble import save_ensemble
from domainbed_plugins.averaging.weights import MeanState
from domainbed_plugins.recording.options import RecordOptions
from domainbed_plugins.runs import files as run_files
from domainbed_plugins.runs import paths
from domainbed_plugins.runs.checkpoints import load_checkpoint
from domainbed_plugins.runs.export import describe, export, open_out, write_card
from domainbed_plugins.runs.saved import check_step
from nacme.candidates import FOLDER, SEVERAL_NETWORKS
from nacme.errors import SweepError
from nacme.system import files


def export_named(
    named: Path, step: int | None, out: Path, data_dir: str | None = None, domainbed: str | None = None
) -> Path:
    """Write a checkpoint or a candidate, and its card.

    Parameters
    ----------
    named : path
        A run's directory, or what stands in ``checkpoint``: a saved model, or a candidate's ``.json``.
    step : int, optional
        Of the checkpoint, where ``named`` is a run's directory.
    out : path
        Directory for ``model.pt`` (a state dict), of a candidate with one network ``model.pkl``, too (as DomainBed
        saves it), of an ensemble ``ensemble.pt`` (for `nacme.load_ensemble`), and for ``card.json``.
    data_dir : str, optional
        For batch-norm statistics that training moves: those of a mean of weights are taken from training data.
    domainbed : str, optional
        A DomainBed clone.

    Returns
    -------
    path
        Of the card.

    Raises
    ------
    SweepError
        If there is no such record or checkpoint.
    NacmeError
        If a file cannot be read or written.
    """
    if named.suffix == ".json" and named.parent.name == FOLDER:
        return _export_candidate(named, out, data_dir, domainbed)
    if named.suffix == ".pkl":
        for candidate in ("raw", "sma", "ema"):
            found = paths.step_of(named.name, candidate)
            if found is not None or named.name == paths.last_model(candidate):
                return export(named.parent, found, out, candidate)
    if step is None:
        raise SweepError(f"{named}: give a run's directory and a step, or a checkpoint as nacme select names it")
    return export(named, step, out)


def _export_candidate(path: Path, out: Path, data_dir: str | None, domainbed: str | None) -> Path:
    record = _read(path)
    several = str(record["candidate"]).partition(":")[0] in SEVERAL_NETWORKS
    contents = []
    mean = MeanState()
    for member in record["members"]:
        checkpoint = path.parents[1] / member["run"] / member["checkpoint"]
        content = load_checkpoint(checkpoint)
        check_step(content, member["step"], checkpoint)
        if several:
            contents.append(content)
        else:
            mean = mean.added(content["model_dict"])
    open_out(out)
    if several:
        save_ensemble(out / "ensemble.pt", record["args"], contents)
    else:
        weights = _with_statistics(path, record, mean, data_dir, domainbed)
        run_files.write_atomically(out / "model.pt", lambda file: torch.save(weights, file))
        whole = {**content, "args": record["args"], "model_hparams": record["hparams"], "model_dict": weights}
        whole.pop("step", None)
        run_files.write_atomically(out / paths.MODEL, lambda file: torch.save(whole, file))
    card = describe(record, content) | {
        "candidate": record["candidate"],
        "members": record["members"],
        "networks": record["networks"],
        "run": f"{FOLDER}/{path.stem}",
        "weights": "ensemble.pt" if several else "model.pt",
    }
    return write_card(card, out)


def _read(path: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = orjson.loads(files.read_bytes(path))
        _ = [record[key] for key in ("candidate", "networks", "args", "hparams", "step")]
        _ = [[member[key] for key in ("run", "step", "checkpoint")] for member in record["members"]]
    except OSError as error:
        raise SweepError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError):
        raise SweepError(f"{path} is no candidate of nacme; make it again with 'nacme average'") from None
    for member in record["members"]:
        if any(Path(str(member[key])).name != member[key] for key in ("run", "checkpoint")):
            raise SweepError(f"{path} names a member outside its sweep: {member['run']}/{member['checkpoint']}")
    return record


def _with_statistics(
    path: Path, record: Mapping[str, Any], mean: MeanState, data_dir: str | None, domainbed: str | None
) -> dict[str, torch.Tensor]:
    """Give the mean of the weights, with batch-norm statistics that belong to it."""
    weights = mean.state()
    if not mean.moved("running_mean"):
        return weights
    if data_dir is None:
        raise SweepError(
            f"{path}: the statistics of batch norm have to be taken from training data; give --data_dir DIR"
        )
    bench = Bench(data_dir, RecordOptions(), domainbed, None, None)
    bench.open({**record["args"], "seed": abs(record["args"]["seed"])}, record["hparams"])
    network = bench.network(record["hparams"], weights, str(path))
    bench.renew(network)
    return {key: value.cpu() for key, value in network.state_dict().items()}
