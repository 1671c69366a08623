"""A probe of the features across environments: heads refitted without an environment, scored on it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from nacme.criteria.registry import criterion

if TYPE_CHECKING:
    from torch import Tensor

#: Ridge strengths, in units of the mean eigenvalue of the features' scatter matrix.
STRENGTHS = (0.01, 0.1, 1.0, 10.0)


@criterion(
    higher_is_better=True,
    sees="ind",
    needs=["logits", "features"],
    cost="one pass over the validation splits, then a linear system per environment and ridge strength",
    source="ours, after Gulrajani & Lopez-Paz, ICLR 2021 (leave-one-domain-out) and Kirichenko et al., ICLR 2023",
    optional=True,
)
def lodo_probe(data: Any) -> float:
    """Accuracy on each training env of ridge heads refitted on the other envs' validation features.

    One-hot labels are regressed on the features with an intercept, in float64 and closed form: in the space of
    the features or of the samples, whichever is smaller. The strengths are relative to the features' own scale, so
    that scaling them changes nothing. The mean is over environments and strengths.

    Parameters
    ----------
    data : Collected

    Returns
    -------
    float
        In [0, 1]; NaN for a single environment, and for features that are constant or not finite.
    """
    import torch

    features = {env: values.double() for env, values in data.features.items()}
    if len(features) < 2 or not all(values.isfinite().all() for values in features.values()):
        return math.nan
    classes = 1 + max(int(labels.max()) for labels in data.labels.values())
    targets = {
        env: torch.nn.functional.one_hot(labels.long(), classes).double() for env, labels in data.labels.items()
    }
    accuracies = []
    for left_out in features:
        others = [env for env in features if env != left_out]
        fitted = torch.cat([features[env] for env in others]), torch.cat([targets[env] for env in others])
        for scores in _ridge(*fitted, features[left_out]):
            accuracies.append(float(scores.argmax(dim=1).eq(data.labels[left_out]).double().mean()))
    return sum(accuracies) / len(accuracies) if accuracies else math.nan


def _ridge(x: Tensor, y: Tensor, unseen: Tensor) -> list[Tensor]:
    """Regress ``y`` [n, C] on ``x`` [n, N] and predict [m, C] from ``unseen`` [m, N], once for each strength."""
    import torch

    centre, level = x.mean(dim=0), y.mean(dim=0)
    x, y, unseen = x - centre, y - level, unseen - centre
    primal = x.shape[1] <= x.shape[0]
    gram = x.T @ x if primal else x @ x.T
    unit = float(gram.trace()) / len(gram)
    if not unit > 0:
        return []
    found = []
    for strength in STRENGTHS:
        system = gram + strength * unit * torch.eye(len(gram), dtype=gram.dtype)
        weights = torch.linalg.solve(system, x.T @ y) if primal else x.T @ torch.linalg.solve(system, y)
        found.append(unseen @ weights + level)
    return found
