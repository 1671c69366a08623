"""LINe: the energy of logits that only the important neurons and weights of the predicted class contribute to."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import torch
from pytorch_ood.api import DetectorInfo, FeaturesDetector, Paper, RequiresFittingException, Task
from torch import Tensor, nn
from typing_extensions import Self

from nacme.errors import ConfigError, LayerError, NacmeWarning
from nacme.ood.base import Extract, NetworkDetector
from nacme.ood.functional import line_contribution, line_masked_logits, line_thresholds
from nacme.states import at_least_float32
from nacme.taps import INPUT, Taps, untouched


class LINe(NetworkDetector, FeaturesDetector):  # type: ignore[misc]
    """Leveraging important neurons.

    Fitting averages each neuron's contribution to each class over that class's training samples. A sample's
    features are clipped, the neurons and weights that matter little to its predicted class are masked, and the
    negative ``logsumexp`` of the logits is its score.

    Parameters
    ----------
    model : nn.Module, optional
        None if only features are passed (`fit_features`, `predict_features`); then give the head's ``weight``.
    head : str, optional
        Dotted path of the linear layer that turns features into logits. None: the one that produces the logits.
    activation_percentile : float
        ``p_a`` in [0, 100]: percent of the neurons that are masked.
    weight_percentile : float
        ``p_w`` in [0, 100]: percent of the weights that are masked.
    clip : float
        Largest activation. Depends on the network's scale.
    weight : Tensor, shape [C, N], optional
    bias : Tensor, shape [C], optional
        The head's, where there is no model.

    Notes
    -----
    The defaults are the authors' for a DenseNet on CIFAR-10. Theirs for CIFAR-100 are ``(10, 90, 1.0)``, as
    (p_a, p_w, clip); elsewhere search with `nacme.ood.tune`.

    Source: Ahn et al., CVPR 2023 (arXiv 2303.13995) and the authors' scripts.
    """

    info: ClassVar[DetectorInfo] = DetectorInfo(
        paper=Paper(
            title="LINe: Out-of-Distribution Detection by Leveraging Important Neurons",
            venue="CVPR",
            year=2023,
            url="https://arxiv.org/abs/2303.13995",
        ),
        tasks={Task.CLASSIFICATION},
    )
    requires_fit = True
    hyperparameter_space: ClassVar[dict[str, list[Any]]] = {
        "activation_percentile": [10.0, 50.0, 90.0],
        "weight_percentile": [10.0, 50.0, 90.0],
        "clip": [0.8, 1.0, 2.0, 1e10],
    }

    def __init__(
        self,
        model: nn.Module | None = None,
        head: str | None = None,
        activation_percentile: float = 90.0,
        weight_percentile: float = 90.0,
        clip: float = 1.0,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> None:
        self.model = model
        self.head = head
        self.activation_percentile = activation_percentile
        self.weight_percentile = weight_percentile
        self.clip = clip
        self.weight = weight
        self.bias = bias
        self.contribution: Tensor | None = None
        self._thresholds: dict[int, tuple[float, float]] = {}

    def extract(self, x: Tensor) -> Extract:
        """Read the penultimate features; see `NetworkDetector.extract`."""
        model = self._network()
        with untouched(model), Taps(model, None if self.head is None else [self.head + INPUT]) as taps:
            reading = taps.read(x)
            name = taps.names[0]
        head = model.get_submodule(name.removesuffix(INPUT))
        features = reading.activations[name]
        if not isinstance(head, nn.Linear) or not _gives(head, features, reading.logits):
            raise LayerError(
                f"head {self.head!r} is a {type(head).__name__} that does not produce the logits; LINe masks the "
                "weights of the linear layer that does: name that one, or leave head out"
            )
        self.weight = head.weight.detach()
        self.bias = None if head.bias is None else head.bias.detach()
        return {"features": features}

    def fit_extracted(self, readings: Extract, labels: Tensor | None) -> Self:
        """Average contributions; see `NetworkDetector.fit_extracted`."""
        if labels is None:
            raise ConfigError("LINe needs labels: pass a loader of (x, y)")
        return self.fit_features(readings["features"], labels)

    def score(self, readings: Extract) -> Tensor:
        """Score readings; see `NetworkDetector.score`."""
        return self.predict_features(readings["features"])

    def fit_features(self, x: Tensor, y: Tensor) -> Self:
        """Fit on penultimate features. Samples with negative labels are left out.

        Parameters
        ----------
        x : Tensor, shape [B, N]
        y : Tensor, shape [B]

        Returns
        -------
        Self
        """
        weight = self._weight()
        if len(weight) < 2:
            raise ConfigError("LINe needs a head of at least two classes, and this one has a single logit")
        known = y >= 0
        y = y[known].to(weight.device)
        contribution = line_contribution(x[known].to(weight), weight, y, len(weight))
        absent = sorted(set(range(len(weight))) - set(y.tolist()))
        if absent:
            warnings.warn(
                f"LINe was fitted without samples of {len(absent)} of {len(weight)} classes (the first: "
                f"{absent[0]}): a sample that is predicted as one of them scores by the bias alone",
                NacmeWarning,
                stacklevel=2,
            )
        self.contribution = contribution
        self._thresholds = {}
        return self

    def predict_features(self, x: Tensor) -> Tensor:
        """Score penultimate features.

        Parameters
        ----------
        x : Tensor, shape [B, N]
            Not clipped.

        Returns
        -------
        Tensor, shape [B]
            Higher is more out-of-distribution.
        """
        self._check_fitted()
        assert self.contribution is not None
        logits = line_masked_logits(
            at_least_float32(x),
            at_least_float32(self._weight()),
            None if self.bias is None else at_least_float32(self.bias),
            self.contribution,
            self._threshold,
            self.clip,
        )
        return -logits.logsumexp(dim=1)

    def _threshold(self, c: int) -> tuple[float, float]:
        """Thresholds of a class, computed when it is first predicted: many classes never are."""
        if c not in self._thresholds:
            assert self.contribution is not None
            self._thresholds[c] = line_thresholds(
                self.contribution[:, c], self._weight(), self.activation_percentile, self.weight_percentile
            )
        return self._thresholds[c]

    def set_hyperparameters(self, **kwargs: Any) -> Self:
        """Set hyper-parameters by name; those take effect at once, without fitting again.

        Parameters
        ----------
        **kwargs
            Of `hyperparameter_space`.

        Returns
        -------
        Self
        """
        self._thresholds = {}
        super().set_hyperparameters(**kwargs)
        return self

    def _weight(self) -> Tensor:
        if self.weight is None:
            raise ConfigError("LINe has no head: pass a model, or the head's weight and bias")
        return self.weight.detach()

    def _check_fitted(self) -> None:
        if self.contribution is None:
            raise RequiresFittingException()


def _gives(head: nn.Linear, features: Tensor, logits: Tensor) -> bool:
    if features.shape[1] != head.in_features or logits.shape[1] != head.out_features:
        return False
    with torch.no_grad():
        return torch.allclose(head(features), logits, rtol=1e-3, atol=1e-3)
