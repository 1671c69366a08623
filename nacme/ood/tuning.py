"""Search of a detector's hyper-parameters on in-distribution data alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from nacme.errors import ConfigError, nearest
from nacme.ood.base import NetworkDetector
from nacme.ood.outliers import pseudo_outliers


@dataclass(frozen=True)
class Tuning:
    """Result of a search.

    Attributes
    ----------
    settings : dict
        The best hyper-parameters, by name.
    auroc : float
        Of in-distribution samples against pseudo-outliers, with these. Not an estimate for real OOD data.
    tried : list of (dict, float)
        Every combination and its AUROC, in the order tried.
    """

    settings: dict[str, Any]
    auroc: float
    tried: list[tuple[dict[str, Any], float]]


def tune(
    detector: NetworkDetector,
    fit_loader: Iterable[Any],
    validation_loader: Iterable[Any],
    space: Mapping[str, Sequence[Any]] | None = None,
    outliers: str = "mix",
    seed: int = 0,
) -> Tuning:
    """Choose a detector's hyper-parameters by how well it tells images from their transformed selves.

    Parameters
    ----------
    detector : NACUE, LINe or NAP
        Left with the best settings, and fitted.
    fit_loader : iterable of (x, y)
        In-distribution samples to fit on.
    validation_loader : iterable of (x, y) or of x
        In-distribution images, others than those, that are scored and made outliers of.
    space : mapping of str to sequence, optional
        Values to try, all combinations. None: the detector's ``hyperparameter_space``.
    outliers : {"mix", "rotate", "jigsaw", "noise"}
        See `nacme.ood.outliers.pseudo_outliers`.
    seed : int
        Of the transformations.

    Returns
    -------
    Tuning
        The first of the best, where several tie.

    Raises
    ------
    ConfigError
        If ``space`` is empty or names a hyper-parameter that the detector lacks.

    Notes
    -----
    No test OOD data is seen. The network runs once; combinations share what was read from it. Choosing by
    transformed in-distribution images is how NAP's authors set their weight (arXiv 2402.18162).
    """
    space = detector.hyperparameter_space if space is None else space
    for name in space:
        if name not in detector.hyperparameter_space:
            known = nearest(name, detector.hyperparameter_space)
            raise ConfigError(f"{type(detector).__name__} has no hyper-parameter {name!r}; {known}")
    if not space or not all(space.values()):
        raise ConfigError("space must give at least one value for each hyper-parameter")
    generator = torch.Generator().manual_seed(seed)
    fitted, labels = detector.collect(fit_loader)
    inside, outside = _pair(detector, validation_loader, outliers, generator)
    truth = torch.cat([torch.zeros(_rows(inside)), torch.ones(_rows(outside))]).numpy()
    tried = []
    for values in itertools.product(*space.values()):
        settings = dict(zip(space, values))
        detector.set_hyperparameters(**settings)
        detector.fit_extracted(fitted, labels)
        scores = torch.cat([detector.score(inside), detector.score(outside)])
        tried.append((settings, float(roc_auc_score(truth, scores.cpu().numpy()))))
    best, auroc = max(tried, key=lambda pair: pair[1])
    detector.set_hyperparameters(**best)
    detector.fit_extracted(fitted, labels)
    return Tuning(best, auroc, tried)


def _pair(
    detector: NetworkDetector, loader: Iterable[Any], outliers: str, generator: torch.Generator
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    transformed: list[Tensor] = []

    def watched() -> Iterator[Any]:
        for batch in loader:
            x, y = (batch[0], batch[1]) if isinstance(batch, (tuple, list)) else (batch, None)
            transformed.append(pseudo_outliers(x if y is None else x[y >= 0], outliers, generator))
            yield batch

    inside, _ = detector.collect(watched())
    outside, _ = detector.collect(transformed)
    return inside, outside


def _rows(readings: Mapping[str, Tensor]) -> int:
    return len(next(iter(readings.values())))
