"""The detectors that a checkpoint is examined with, each fitted once, on readings that they share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_ood.detector import EnergyBased, MaxSoftmax, ViM
from torch import Tensor, nn

from domainbed_plugins.detection.fit_samples import Batch
from domainbed_plugins.detection.options import DetectOptions
from nacme.errors import LayerError
from nacme.ood.base import Extract, NetworkDetector
from nacme.ood.line import LINe
from nacme.ood.nacue import NACUE
from nacme.ood.nap import NAP
from nacme.ood.tuning import tune
from nacme.taps import INPUT, Taps, untouched

_OURS: dict[str, Callable[[nn.Module], NetworkDetector]] = {"nacue": NACUE, "line": LINe, "nap": NAP}


@dataclass(frozen=True)
class Member:
    """One fitted detector: how it scores a batch of images, given what `read` read of them, and its settings."""

    score: Callable[[Tensor, Extract], Tensor]
    settings: dict[str, Any]


def fitted(name: str, algorithm: nn.Module, fit: list[Batch], options: DetectOptions) -> Member:
    """Fit the detector of that name.

    Parameters
    ----------
    name : str
        One of `DETECTORS`.
    algorithm : nn.Module
    fit : list of (Tensor, Tensor)
        In-distribution training samples.
    options : DetectOptions

    Returns
    -------
    Member

    Raises
    ------
    LayerError
        If it does not suit the network.
    """
    if name == "msp":
        return Member(lambda _, readings: MaxSoftmax.score(readings["logits"]), {})
    if name == "energy":
        return Member(lambda _, readings: EnergyBased.score(readings["logits"]), {})
    if name == "vim":
        return _vim(algorithm, fit)
    detector = _OURS[name](algorithm)
    settings: dict[str, Any] = {}
    if options.search != "none":
        # half of each batch to fit, the other to make outliers of: no validation image is seen
        halves = [(x[::2], y[::2]) for x, y in fit], [(x[1::2], y[1::2]) for x, y in fit]
        settings["search_auroc"] = tune(detector, *halves, outliers=options.search, seed=options.seed).auroc
    detector.fit(fit)
    settings |= {key: getattr(detector, key) for key in detector.hyperparameter_space}
    if name == "nap":  # looks at another layer than the one that the others share
        return Member(lambda x, _: detector.predict(x), settings)
    return Member(lambda _, readings: detector.score(readings), settings)


def _vim(algorithm: nn.Module, fit: list[Batch]) -> Member:
    device = next(algorithm.parameters()).device
    readings = [read(algorithm, x.to(device), has_head=True) for x, _ in fit]
    features = torch.cat([one["features"] for one in readings])
    (name,) = (key.removeprefix("activation ") for key in readings[0] if key.startswith("activation "))
    head = algorithm.get_submodule(name.removesuffix(INPUT))
    assert isinstance(head, nn.Linear)
    # the authors take 512 or 1,000 of the 768 or more features of large networks; a half is theirs in small
    size = min(features.shape) // 2
    bias = head.bias if head.bias is not None else head.weight.new_zeros(len(head.weight))
    detector = ViM(None, d=size, w=head.weight, b=bias).to(device)
    detector.fit_features(features, torch.cat([y for _, y in fit]))
    return Member(lambda _, seen: detector.predict_features(seen["features"]), {"d": size})


def finds_head(algorithm: nn.Module, x: Tensor) -> bool:
    """Whether a linear layer gives the logits."""
    try:
        read(algorithm, x[:1], has_head=True)
    except LayerError:
        return False
    return True


def read(algorithm: nn.Module, x: Tensor, has_head: bool) -> Extract:
    """Logits of a batch; where a linear head gives them, its input, and what `NACUE` and `LINe` read there."""
    with untouched(algorithm), torch.no_grad():
        if not has_head:
            logits: Tensor = algorithm.predict(x)  # type: ignore[operator]
            return {"logits": logits}
        with Taps(algorithm) as taps:
            reading = taps.read(x)
    ((name, features),) = reading.activations.items()
    return {
        "logits": reading.logits,
        "features": features,
        f"activation {name}": features,
        f"gradient {name}": reading.gradients[name],
    }
