"""Measuring a model on a data set: accuracy, cross-entropy and NAC-ME from one pass."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nacme.counting import CoverageCounter, mean
from nacme.errors import DegenerateCoverageWarning, NacmeWarning
from nacme.observation import batches, check_labels, observe
from nacme.prediction import predict_logits
from nacme.settings import CoverageSettings
from nacme.states import at_least_float32
from nacme.taps import untouched

NAN_LOGITS = "the model's logits are NaN on {}: it has diverged, and its accuracy is undefined rather than chance"


@dataclass(frozen=True)
class Measurement:
    """What one pass over a data set found.

    Attributes
    ----------
    accuracy : float
        Fraction of samples whose largest logit is the label's.
    loss : float
        Mean cross-entropy, in nats.
    nac_me : float
        Mean of ``per_layer``. NaN if it could not be computed.
    per_layer : dict of str to float
        NAC-ME by layer name.
    occupied_bins : float
        Mean number of bins per neuron that hold any state, averaged over layers.
    num_samples : int
        Samples in the loader.
    num_counted : int
        Samples that coverage counted: the correctly classified ones, or all.
    alpha : dict of str to float
        The scale used, by layer name: what ``alpha="auto"`` came to.
    degenerate : bool
        Whether coverage says little more than how many samples were counted, because nearly all states of a neuron
        share a bin, or because hardly a bin holds ``O`` of them.
    full_bins : float
        Mean number of bins per neuron that hold ``O`` states or more. At 0 coverage is a count of samples.
    reason : str, optional
        Why coverage is degenerate.
    """

    accuracy: float
    loss: float
    nac_me: float
    per_layer: dict[str, float]
    occupied_bins: float
    num_samples: int
    num_counted: int
    alpha: dict[str, float]
    degenerate: bool
    full_bins: float
    reason: str | None = None


@dataclass
class Tally:
    """Accuracy and mean cross-entropy, gathered batch by batch without waiting for the device."""

    correct: Tensor | int = 0
    loss: Tensor | float = 0.0
    num_samples: int = 0
    found_nan: Tensor | bool = False

    def update(self, logits: Tensor, labels: Tensor, correct: Tensor) -> None:
        """Add a batch: logits [B, C], labels [B], correct [B]."""
        self.count(logits, correct)
        self.loss = self.loss + cross_entropy(logits, labels).double().sum()

    def count(self, logits: Tensor, correct: Tensor) -> None:
        """Add a batch to the accuracy alone, labels unseen: logits [B, C], correct [B]."""
        self.correct = self.correct + correct.sum()
        self.num_samples += len(correct)
        self.found_nan = logits.isnan().any() | self.found_nan

    def accuracy(self) -> float:
        """Fraction of correct samples; NaN without samples, and where a logit is NaN: none is the largest then."""
        if self.num_samples == 0 or bool(self.found_nan):
            return math.nan
        return int(self.correct) / self.num_samples

    def mean_loss(self) -> float:
        """Mean cross-entropy in nats."""
        return float(self.loss) / self.num_samples


def measure(
    model: nn.Module,
    loader: Iterable[Any],
    layers: str | Sequence[str] | None = None,
    alpha: float | str = 0.1,
    bins: int = 50,
    fill: int | float = 500,
    correct_only: bool = True,
    device: torch.device | str | None = None,
) -> Measurement:
    """Measure accuracy, mean cross-entropy and NAC-ME in one pass over a loader.

    Parameters
    ----------
    model : nn.Module
        Gives logits [B, C], or an output with ``.logits``, from ``predict(x)`` where it has that method, as
        DomainBed's algorithms do, else from ``forward``. It is left as it was: mode, hooks, ``requires_grad``,
        gradients; random numbers are drawn only if predicting draws them.
    loader : iterable
        Of ``(x, y, ...)``: inputs [B, ...], or several in a tuple, and integer labels [B]; or of inputs by name,
        given to the model so, with ``labels`` among them.
    layers : str or sequence of str, optional
        Dotted module paths. None: what feeds the linear layer that produces the logits.
    alpha : float or "auto"
        Steepness of the sigmoid of the state. ``"auto"``: from the spread of ``z * g`` on this data.
    bins : int
        ``M``, the number of bin edges.
    fill : int or float
        ``O``, the count from which a bin is covered; a float is a fraction of the counted samples.
    correct_only : bool
        Count correctly classified samples only, as the authors do.
    device : torch.device or str, optional
        Where batches are moved to. None: where the model is.

    Returns
    -------
    Measurement

    Raises
    ------
    LayerError
        If a layer does not exist or cannot be measured at.
    ConfigError
        If a setting is out of range.

    Warns
    -----
    DegenerateCoverageWarning
        If the states of a typical neuron fall in one or two bins, or fill none: coverage then says little more
        than how many samples were counted.
    NacmeWarning
        If the model's logits are NaN: accuracy and loss are undefined then.

    Notes
    -----
    Where only a linear head lies above the layer, the gradient is ``(p - 1 / C) W`` and no graph is built.
    Source: arXiv 2306.02879, equations 1 to 5; ``KMNC.assess`` of the authors' code.

    Examples
    --------
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    >>> data = [(torch.randn(8, 1, 8, 8), torch.randint(10, (8,))) for _ in range(3)]
    >>> measure(model, data, alpha=10.0, fill=2, correct_only=False).num_samples
    24
    """
    counter = CoverageCounter(CoverageSettings(alpha, bins, fill, correct_only))
    tally = Tally()
    for reading, labels in observe(model, loader, [layers] if isinstance(layers, str) else layers, device):
        correct = is_correct(reading.logits, labels)
        tally.update(reading.logits, labels, correct)
        counter.update(reading, correct)
    counter.finish()
    result = summarize(tally, counter)
    if result.reason is not None:
        message = degenerate_message(result.reason, counter.settings, remedy="pass {python}")
        warnings.warn(message, DegenerateCoverageWarning, stacklevel=2)
    if bool(tally.found_nan):
        warnings.warn(NAN_LOGITS.format("the loader"), NacmeWarning, stacklevel=2)
    return result


def summarize(tally: Tally, counter: CoverageCounter, fill: int | float | None = None) -> Measurement:
    """Put a pass's sums together.

    Parameters
    ----------
    tally : Tally
    counter : CoverageCounter
        Finished.
    fill : int or float, optional
        Another ``O`` than the counter's.

    Returns
    -------
    Measurement
    """
    per_layer, reason = counter.per_layer(fill), counter.fault(fill)
    return Measurement(
        accuracy=tally.accuracy(),
        loss=tally.mean_loss(),
        nac_me=mean(list(per_layer.values())),
        per_layer=per_layer,
        occupied_bins=counter.occupied_bins(),
        num_samples=tally.num_samples,
        num_counted=counter.num_counted(),
        alpha=dict(counter.alpha),
        degenerate=reason is not None,
        full_bins=counter.full_bins(fill),
        reason=reason,
    )


def degenerate_message(reason: str, settings: CoverageSettings, remedy: str) -> str:
    """Say in one line that coverage is degenerate, why, and what to try.

    Parameters
    ----------
    reason : str
        See `Measurement`.
    settings : CoverageSettings
        That it was measured with.
    remedy : str
        How the caller's settings are changed, with ``{python}`` or ``{flags}`` in it for the change.

    Returns
    -------
    str
    """
    # at an even spread each bin holds this share of the samples
    even = round(1 / settings.bins, 4)
    changes: dict[str, float | str] = {"fill": even if settings.fill != even else even / 4}
    changes |= {} if settings.alpha == "auto" else {"alpha": "auto"}
    python = ", ".join(f"{name}={value!r}" for name, value in sorted(changes.items()))
    flags = " ".join(f"--nac_{name} {value}" for name, value in sorted(changes.items()))
    return (
        f"coverage is degenerate: {reason}, so NAC-ME says little more than how many samples were counted; "
        f"{remedy.format(python=python, flags=flags)}"
    )


def accuracy(model: nn.Module, loader: Iterable[Any], device: torch.device | str | None = None) -> float:
    """Measure accuracy alone.

    Parameters
    ----------
    model, loader, device
        See `measure`.

    Returns
    -------
    float
        Fraction of samples whose largest logit is the label's; NaN, with a warning, if a logit is NaN.
    """
    predict = getattr(model, "predict", model)
    tally = Tally()
    with untouched(model), torch.no_grad():
        for x, labels in batches(model, loader, device):
            logits = predict_logits(predict, x)
            if not labels.is_cuda:
                check_labels(labels, logits.shape[1])
            tally.count(logits, is_correct(logits, labels))
    if bool(tally.found_nan):
        warnings.warn(NAN_LOGITS.format("the loader"), NacmeWarning, stacklevel=2)
    return tally.accuracy()


def is_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Compare predictions with labels.

    Parameters
    ----------
    logits : Tensor, shape [B, C]
        One column means a binary head: positive predicts class 1.
    labels : Tensor, shape [B]

    Returns
    -------
    Tensor, shape [B], bool
    """
    predicted = logits[:, 0].gt(0) if logits.shape[1] == 1 else logits.argmax(dim=1)
    return predicted.eq(labels)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each sample, in nats: logits [B, C], labels [B], result [B]. One logit: binary."""
    logits = at_least_float32(logits)
    if logits.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(logits[:, 0], labels.to(logits.dtype), reduction="none")
    return F.cross_entropy(logits, labels.long(), reduction="none")
