"""NAC-UE: a sample is out-of-distribution if its neuron states were rarely seen."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from pytorch_ood.api import (
    DetectorInfo,
    GradientDetector,
    Paper,
    RequiresFittingException,
    StructuredDetector,
    Task,
)
from torch import Tensor, nn
from typing_extensions import Self

from nacme.errors import ConfigError, NacmeWarning, nearest
from nacme.metric import NeuronActivationCoverage
from nacme.ood.base import Extract, NetworkDetector
from nacme.states import neuron_states
from nacme.taps import Taps, untouched

T = TypeVar("T")


class NACUE(NetworkDetector, GradientDetector, StructuredDetector):  # type: ignore[misc]
    """Neuron activation coverage for uncertainty estimation.

    Fitting counts the states of in-distribution samples per layer and neuron, whether predicted right or wrong. A
    sample scores the coverage of the bins that its own states fall in, averaged over neurons and then over layers,
    with its sign turned.

    Parameters
    ----------
    model : nn.Module, optional
        None if only states are passed (`fit_structured`, `predict_structured`).
    layers : sequence of str, optional
        Dotted module paths; ``:input`` behind a path taps what goes into it. None: the input of the linear layer
        that produces the logits. Maps and tokens are summed over positions.
    alpha : float or mapping of str to float
        Steepness of the states' sigmoid, for all layers or by layer name.
    bins : int or mapping of str to int
        ``M``, even: the number of bin edges.
    fill : int, float or mapping
        ``O``: the count from which a bin is fully covered, or, as a float, the fraction of the fitted samples.

    Notes
    -----
    The defaults are the authors' for the pooled penultimate features of a ResNet-18 on CIFAR-10; elsewhere search
    with `nacme.ood.tune`. Theirs for others, as ``layer: (alpha, M, O)``: CIFAR-10 layer3 (1000, 500, 100),
    layer2 (0.001, 50, 5), layer1 (0.001, 500, 100); CIFAR-100 avgpool (50, 50, 50); ImageNet ResNet-50 avgpool
    (3000, 50, 10), layer3 (300, 50, 500); ImageNet ViT final norm (100, 50, 500). Samples are binned in log-spaced
    bins, as in the authors' code.

    Source: Liu et al., ICLR 2024 (arXiv 2306.02879); ``configs/postprocessors/nac`` of the authors' code.
    """

    info: ClassVar[DetectorInfo] = DetectorInfo(
        paper=Paper(
            title="Neuron Activation Coverage: Rethinking Out-of-distribution Detection and Generalization",
            venue="ICLR",
            year=2024,
            url="https://arxiv.org/abs/2306.02879",
            code="https://github.com/BierOne/ood_coverage",
        ),
        tasks={Task.CLASSIFICATION},
    )
    requires_fit = True
    hyperparameter_space: ClassVar[dict[str, list[Any]]] = {
        "alpha": [1.0, 10.0, 100.0, 1000.0],
        "bins": [50, 500],
        "fill": [10, 50],
    }

    def __init__(
        self,
        model: nn.Module | None = None,
        layers: Sequence[str] | None = None,
        alpha: float | Mapping[str, float] = 100.0,
        bins: int | Mapping[str, int] = 50,
        fill: int | float | Mapping[str, int | float] = 50,
    ) -> None:
        self.model = model
        self.layers = None if layers is None else list(layers)
        self.alpha = alpha
        self.bins = bins
        self.fill = fill
        self.coverage: dict[str, NeuronActivationCoverage] = {}

    def extract(self, x: Tensor) -> Extract:
        """Read activations and gradients of the layers; see `NetworkDetector.extract`."""
        model = self._network()
        with untouched(model), Taps(model, self.layers) as taps:
            reading = taps.read(x)
        kinds = {"activation": reading.activations, "gradient": reading.gradients}
        return {f"{kind} {name}": value for kind, by in kinds.items() for name, value in by.items()}

    def fit_extracted(self, readings: Extract, labels: Tensor | None) -> Self:
        """Count states; see `NetworkDetector.fit_extracted`. Labels play no part."""
        return self.fit_structured(self._states(readings))

    def score(self, readings: Extract) -> Tensor:
        """Score readings; see `NetworkDetector.score`."""
        return self.predict_structured(self._states(readings))

    def fit_structured(self, states: Mapping[str, Tensor]) -> Self:
        """Fit on neuron states.

        Parameters
        ----------
        states : mapping of str to Tensor, shape [B, N]
            By layer name, from `nacme.neuron_states`.

        Returns
        -------
        Self
        """
        coverage = {}
        for name, values in states.items():
            fill = self._setting("fill", self.fill, name, states)
            bins = self._setting("bins", self.bins, name, states)
            if isinstance(fill, int) and len(values) < fill:
                warnings.warn(
                    f"NACUE was fitted on {len(values)} samples, fewer than fill={fill} of layer {name!r}: no bin "
                    "can be fully covered. Fit on more, or pass a smaller fill",
                    NacmeWarning,
                    stacklevel=2,
                )
            metric = NeuronActivationCoverage(values.shape[1], bins=bins, fill=fill, spacing="log")
            metric.to(values.device).update(values)
            coverage[name] = metric
        self.coverage = coverage
        return self

    def predict_structured(self, states: Mapping[str, Tensor]) -> Tensor:
        """Score neuron states.

        Parameters
        ----------
        states : mapping of str to Tensor, shape [B, N]
            Of the layers that were fitted.

        Returns
        -------
        Tensor, shape [B]
            In [-1, 0]; higher is more out-of-distribution.
        """
        self._check_fitted()
        likelihoods = [metric.likelihood(states[name]) for name, metric in self.coverage.items()]
        return -torch.stack(likelihoods).mean(dim=0)

    def _states(self, readings: Extract) -> dict[str, Tensor]:
        names = [key.removeprefix("activation ") for key in readings if key.startswith("activation ")]
        return {
            name: neuron_states(
                readings[f"activation {name}"],
                readings[f"gradient {name}"],
                self._setting("alpha", self.alpha, name, names),
            )
            for name in names
        }

    def _setting(self, key: str, value: T | Mapping[str, T], layer: str, layers: Any) -> T:
        if not isinstance(value, Mapping):
            return value
        for name in [*value, layer]:
            if name not in value or name not in layers:
                raise ConfigError(f"{key} by layer must name the tapped layers; {name!r}: {nearest(name, layers)}")
        return value[layer]

    def _check_fitted(self) -> None:
        if not self.coverage:
            raise RequiresFittingException()
