"""Criteria computed from what a network put out on the in-distribution validation splits.

Each function takes the `Collected` outputs of one pass and returns a float; NaN where it is undefined.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from nacme.counting import mean
from nacme.measurement import cross_entropy, is_correct
from nacme.observation import batches
from nacme.prediction import predict_logits
from nacme.settings import CRAFT_SAMPLES
from nacme.taps import untouched

ECE_BINS = 15
#: Samples per environment that MMD compares: its cost grows with their square.
MMD_SAMPLES = 1000
SAM_RADIUS = 0.05


@dataclass(frozen=True)
class Collected:
    """A network's outputs on the validation splits, by split name, in float32 on the CPU.

    Attributes
    ----------
    model : nn.Module
    logits : dict of str to Tensor, shape [n, C]
    labels : dict of str to Tensor, shape [n]
    features : dict of str to Tensor, shape [n, N]
        What the first tapped layer gave, summed over positions.
    gradients : dict of str to Tensor, shape [n, N]
        ``dKL(u || p) / dz`` of the same layer.
    target_logits : dict of str to Tensor, shape [m, C]
        Of unlabelled target splits; empty unless they were asked for.
    loaders : dict of str to iterable
        The validation loaders, for criteria that need a further pass.
    craft_samples : int
        Images that ``craft_acc`` looks at, of all environments together.
    """

    model: nn.Module
    logits: Mapping[str, Tensor]
    labels: Mapping[str, Tensor]
    features: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]
    target_logits: Mapping[str, Tensor] = field(default_factory=dict)
    loaders: Mapping[str, Iterable[Any]] = field(default_factory=dict)
    craft_samples: int = CRAFT_SAMPLES

    @cached_property
    def discrepancy(self) -> float:
        """See `mmd`: kept, since two criteria need it and no other takes as long."""
        return _mmd(self.features)

    def pooled_logits(self) -> Tensor:
        """All validation logits, [n, C]."""
        return torch.cat(list(self.logits.values()))

    def pooled_labels(self) -> Tensor:
        """All validation labels, [n]."""
        return torch.cat(list(self.labels.values()))

    def pooled_features(self) -> Tensor:
        """All validation features, [n, N]."""
        return torch.cat(list(self.features.values()))


def probabilities(logits: Tensor) -> Tensor:
    """Class probabilities [n, C]; a single logit gives two columns."""
    if logits.shape[1] == 1:
        positive = logits.sigmoid()
        return torch.cat([1 - positive, positive], dim=1)
    return logits.softmax(dim=1)


def val_loss_variance(data: Collected) -> float:
    """Variance over environments of the mean cross-entropy (population variance, nats squared)."""
    losses = torch.stack(
        [cross_entropy(data.logits[env], data.labels[env]).double().mean() for env in data.logits]
    )
    return float(losses.var(correction=0))


def ece(data: Collected) -> float:
    """Expected calibration error over 15 equal bins of confidence."""
    logits, labels = data.pooled_logits(), data.pooled_labels()
    if logits.shape[1] == 1:
        return float(binary_calibration_error(logits[:, 0].sigmoid(), labels, n_bins=ECE_BINS))
    return float(multiclass_calibration_error(logits.softmax(dim=1), labels, logits.shape[1], n_bins=ECE_BINS))


def entropy(data: Collected) -> float:
    """Mean entropy of the predictions, in nats."""
    return float(torch.special.entr(probabilities(data.pooled_logits())).sum(dim=1).mean())


def confidence(data: Collected) -> float:
    """Mean probability of the predicted class."""
    return float(probabilities(data.pooled_logits()).amax(dim=1).mean())


def feature_norm(data: Collected) -> float:
    """Mean Euclidean norm of the features."""
    return float(data.pooled_features().norm(dim=1).mean())


def effective_rank(data: Collected) -> float:
    """Exponential of the entropy of the normalized singular values of the feature matrix (RankMe)."""
    features = data.pooled_features().double()
    if not features.isfinite().all():
        return math.nan
    # through the smaller of the two Gram matrices: many times faster than the singular values themselves
    gram = features.T @ features if features.shape[0] >= features.shape[1] else features @ features.T
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    if not singular.sum() > 0:
        return math.nan
    return float(torch.special.entr(singular / singular.sum()).sum().exp())


def coral_distance(data: Collected) -> float:
    """Mean over pairs of environments of the squared differences of feature means and covariances.

    Each difference is averaged over its entries, as CORAL's penalty in DomainBed does.
    """
    moments = [(values.mean(dim=0), torch.cov(values.T)) for values in data.features.values() if len(values) > 1]
    distances = [
        float((mean_a - mean_b).square().mean() + (cov_a - cov_b).square().mean())
        for (mean_a, cov_a), (mean_b, cov_b) in itertools.combinations(moments, 2)
    ]
    return mean(distances)


def mmd(data: Collected) -> float:
    """Mean over pairs of environments of the unbiased squared maximum mean discrepancy of the features.

    Gaussian kernel; its squared bandwidth is half the median squared distance over all samples compared. Of each
    environment the first 1,000 samples in the loader's order are compared.
    """
    return data.discrepancy


def _mmd(features_by_env: Mapping[str, Tensor]) -> float:
    features = [values[:MMD_SAMPLES].double() for values in features_by_env.values() if len(values) > 1]
    if len(features) < 2:
        return math.nan
    pooled = torch.cat(features)
    squared = torch.cdist(pooled, pooled).square()
    rows, columns = torch.triu_indices(len(pooled), len(pooled), offset=1)
    median = squared[rows, columns].median()
    if not median > 0:
        return math.nan
    kernel = torch.exp(-squared / median)
    bounds = [0, *itertools.accumulate(len(values) for values in features)]
    blocks = [slice(start, stop) for start, stop in itertools.pairwise(bounds)]

    def within(block: slice) -> float:
        count = block.stop - block.start
        total = float(kernel[block, block].sum() - kernel[block, block].diagonal().sum())
        return total / float(count * (count - 1))

    distances = [
        within(a) + within(b) - 2 * float(kernel[a, b].mean()) for a, b in itertools.combinations(blocks, 2)
    ]
    return mean(distances)


def val_acc_minus_discrepancy(data: Collected) -> float:
    """Mean validation accuracy minus the maximum mean discrepancy between environments, with weight 1."""
    accuracies = [float(is_correct(data.logits[env], data.labels[env]).double().mean()) for env in data.logits]
    discrepancy = mmd(data)
    return mean(accuracies) - (math.sqrt(max(discrepancy, 0.0)) if discrepancy == discrepancy else math.nan)


def weight_norm(data: Collected) -> float:
    """Euclidean norm of all parameters of the algorithm."""
    return math.sqrt(sum(float(p.detach().double().square().sum()) for p in data.model.parameters()))


def gradient_norm(data: Collected) -> float:
    """Norm of the gradient of the mean validation loss by the parameters that are trained."""
    with _ready_to_differentiate(data):
        _, gradients = _loss_and_gradients(data)
    return _norm(gradients.values())


def sharpness(data: Collected) -> float:
    """Rise of the mean validation loss after a step of length 0.05 up its gradient (SAM)."""
    with _ready_to_differentiate(data):
        loss, gradients = _loss_and_gradients(data)
        norm = _norm(gradients.values())
        if not norm > 0:
            return math.nan
        before = {parameter: parameter.detach().clone() for parameter in gradients}
        try:
            with torch.no_grad():
                for parameter, gradient in gradients.items():
                    parameter.add_(gradient, alpha=SAM_RADIUS / norm)
                return _mean_loss(data) - loss
        finally:
            with torch.no_grad():
                for parameter, value in before.items():
                    parameter.copy_(value)


def atc(data: Collected) -> float:
    """Average thresholded confidence: target accuracy predicted from unlabelled target data.

    The threshold on the negative entropy is the one that as many validation samples fall below as are
    misclassified.
    """
    if not data.target_logits:
        return math.nan
    logits = data.pooled_logits()
    errors = int((~is_correct(logits, data.pooled_labels())).sum())
    scores = _negative_entropy(logits).sort().values
    threshold = scores[errors] if errors < len(scores) else math.inf
    return float((_negative_entropy(_target(data)) >= threshold).double().mean())


def doc(data: Collected) -> float:
    """Difference of confidences: validation accuracy minus how much less confident the target predictions are."""
    if not data.target_logits:
        return math.nan
    accuracy = float(is_correct(data.pooled_logits(), data.pooled_labels()).double().mean())
    target = float(probabilities(_target(data)).amax(dim=1).mean())
    return accuracy - (confidence(data) - target)


def nuclear_norm(data: Collected) -> float:
    """Nuclear norm of the target predictions [m, C], divided by its largest possible value."""
    if not data.target_logits:
        return math.nan
    predictions = probabilities(_target(data))
    samples, classes = predictions.shape
    return float(torch.linalg.matrix_norm(predictions, ord="nuc")) / math.sqrt(samples * min(samples, classes))


def _target(data: Collected) -> Tensor:
    return torch.cat(list(data.target_logits.values()))


def _negative_entropy(logits: Tensor) -> Tensor:
    entropies: Tensor = torch.special.entr(probabilities(logits)).sum(dim=1)
    return -entropies


@contextmanager
def _ready_to_differentiate(data: Collected) -> Iterator[None]:
    """Evaluation mode, with the random numbers that the further passes draw put back."""
    trained = [parameter for parameter in data.model.parameters() if parameter.requires_grad]
    with torch.random.fork_rng(), untouched(data.model):
        for parameter in trained:
            parameter.requires_grad_(True)
        yield


def _loss_and_gradients(data: Collected) -> tuple[float, dict[nn.Parameter, Tensor]]:
    parameters = [parameter for parameter in data.model.parameters() if parameter.requires_grad]
    sums: dict[nn.Parameter, Tensor] = {}
    total, count = 0.0, 0
    for losses in _batch_losses(data):
        found = torch.autograd.grad(losses.sum(), parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, found):
            if gradient is not None:
                sums[parameter] = sums[parameter] + gradient if parameter in sums else gradient
        total, count = total + float(losses.detach().double().sum()), count + len(losses)
    return total / count, {parameter: gradient / count for parameter, gradient in sums.items()}


def _mean_loss(data: Collected) -> float:
    losses = torch.cat(list(_batch_losses(data)))
    return float(losses.double().mean())


def _batch_losses(data: Collected) -> Iterator[Tensor]:
    predict = getattr(data.model, "predict", data.model)
    for loader in data.loaders.values():
        for x, y in batches(data.model, loader):
            yield cross_entropy(predict_logits(predict, x), y)


def _norm(gradients: Iterable[Tensor]) -> float:
    return math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients))
