"""Ensembles: several networks whose probabilities are averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from domainbed_plugins.backends import find as backends
from domainbed_plugins.runs import files as run_files
from domainbed_plugins.runs.checkpoints import build_algorithm, load_weights
from nacme.system.tensors import CheckpointError, load_tensors

_VERSION = 1


def probabilities(logits: Tensor) -> Tensor:
    """Turn logits [B, C] into probabilities; one logit is that of class 1."""
    return logits.sigmoid() if logits.shape[1] == 1 else F.softmax(logits, dim=1)


def log_mean(mean: Tensor) -> Tensor:
    """Turn mean probabilities [B, C] into logits whose softmax (of one: sigmoid) they are."""
    limits = torch.finfo(mean.dtype)
    return torch.logit(mean, limits.eps) if mean.shape[1] == 1 else mean.clamp_min(limits.tiny).log()


class Ensemble(nn.Module):
    """Networks whose mean probability predicts; its logits are the logarithm of it.

    Parameters
    ----------
    members : sequence of nn.Module
        DomainBed algorithms, or modules that give logits.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs [B, ...] to logits [B, C]."""
        parts = [probabilities(getattr(member, "predict", member)(x)) for member in self.members]
        return log_mean(torch.stack(parts).mean(0))

    def predict(self, x: Tensor) -> Tensor:
        """As `forward`, under DomainBed's name."""
        logits: Tensor = self(x)
        return logits


def save_ensemble(path: Path, args: Mapping[str, Any], contents: Sequence[Mapping[str, Any]]) -> None:
    """Write the members of an ensemble into one file.

    Parameters
    ----------
    path : path
    args : mapping
        Of one of the runs.
    contents : sequence of mapping
        The members' checkpoints.
    """
    first = contents[0]
    content = {
        "nacme_ensemble": _VERSION,
        "dataset": args["dataset"],
        "algorithm": args["algorithm"],
        "input_shape": list(first["model_input_shape"]),
        "num_classes": first["model_num_classes"],
        "num_domains": first["model_num_domains"],
        "members": [{"hparams": c["model_hparams"], "weights": c["model_dict"]} for c in contents],
    }
    run_files.write_atomically(path, lambda file: torch.save(content, file))


def load_ensemble(path: str | Path, domainbed: str | None = None) -> Ensemble:
    """Read an ensemble that ``nacme export`` wrote. Nothing in the file is executed.

    Parameters
    ----------
    path : path
    domainbed : str, optional
        A DomainBed clone, where the members need one. None: ``DOMAINBED_ROOT``.

    Returns
    -------
    Ensemble
        In evaluation mode, on the CPU.

    Raises
    ------
    CheckpointError
        If the file is no such ensemble, or a member cannot be built.
    """
    try:
        content = load_tensors(path)
        known = content["nacme_ensemble"] == _VERSION
    except CheckpointError:
        raise
    except Exception as error:  # foreign content makes torch raise nearly anything
        raise CheckpointError(f"{path} is no ensemble of nacme: {str(error).partition(chr(10))[0]}") from None
    if not known:
        raise CheckpointError(f"{path} was written by another version of nacme; export it again")
    testbed = backends.find(content["dataset"], domainbed)
    shape, classes, domains = (content[key] for key in ("input_shape", "num_classes", "num_domains"))
    members = []
    for member in content["members"]:
        network = build_algorithm(testbed, content["algorithm"], shape, classes, domains, member["hparams"])
        load_weights(network, member["weights"], path)
        members.append(network)
    return Ensemble(members).eval()
