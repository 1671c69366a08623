"""Measuring a model on a data set: accuracy, cross-entropy and NAC-ME from one pass."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nacme.coverage import NeuronActivationCoverage
from nacme.errors import DegenerateCoverageWarning, NacmeWarning
from nacme.observation import batches, check_labels, observe
from nacme.settings import FEW_BINS, FEW_FULL_BINS, CoverageSettings
from nacme.states import at_least_float32
from nacme.taps import Reading, untouched

#: alpha="auto" puts this many standard deviations of ``z * g`` at the sigmoid's argument 1
AUTO_SPREADS = 0.5
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


class BatchStates:
    """What settings count of one batch, worked out once for all that share it.

    Parameters
    ----------
    reading : Reading
    correct : Tensor, shape [B], bool
        Which samples were classified correctly.
    """

    def __init__(self, reading: Reading, correct: Tensor) -> None:
        self._reading = reading
        self._wrong = ~correct.unsqueeze(1)
        self._found: dict[tuple[Any, ...], Tensor] = {}

    def has_nan(self, layer: str, quantity: str) -> Tensor:
        """Whether any sample's quantity is NaN: a scalar, left on its device."""
        # the largest of numbers among which there is NaN is NaN
        return self._once(
            ("nan", layer, quantity), lambda: self.products(layer, quantity, False).amax(dim=1).isnan().any()
        )

    def products(self, layer: str, quantity: str, correct_only: bool) -> Tensor:
        """What the sigmoid is taken of, but for alpha: [B, N], NaN for samples that do not count."""
        if correct_only:
            # NaN falls in no bin; indexing would make the host wait for the device
            return self._once(
                (layer, quantity, True),
                lambda: self.products(layer, quantity, False).masked_fill(self._wrong, math.nan),
            )
        return self._once((layer, quantity, False), lambda: self._multiply(layer, quantity))

    def states(self, layer: str, quantity: str, correct_only: bool, alpha: float) -> Tensor:
        """Neuron states [B, N] in [0, 1]; NaN for samples that do not count."""
        return self._once(
            (layer, quantity, correct_only, alpha),
            lambda: torch.sigmoid(alpha * self.products(layer, quantity, correct_only)),
        )

    def _multiply(self, layer: str, quantity: str) -> Tensor:
        activation, gradient = self._reading.activations[layer], self._reading.gradients[layer]
        # float32 whatever the model's type: states saturate where the authors' do
        if quantity == "product":
            return activation.float() * gradient.float()
        return (activation if quantity == "activation" else gradient).float()

    def _once(self, key: tuple[Any, ...], compute: Callable[[], Tensor]) -> Tensor:
        if key not in self._found:
            self._found[key] = compute()
        return self._found[key]


@dataclass
class CoverageCounter:
    """NAC-ME of one setting, gathered batch by batch over any number of loaders.

    Attributes
    ----------
    settings : CoverageSettings
    coverage : dict of str to NeuronActivationCoverage
        By layer name, filled as batches come.
    alpha : dict of str to float
        The scale in use, by layer name.
    """

    settings: CoverageSettings
    coverage: dict[str, NeuronActivationCoverage] = field(default_factory=dict)
    alpha: dict[str, float] = field(default_factory=dict)
    _kept: dict[str, list[Tensor]] = field(default_factory=dict)
    _found_nan: Tensor | bool = False

    def update(self, reading: Reading, correct: Tensor) -> None:
        """Count a batch.

        Parameters
        ----------
        reading : Reading
        correct : Tensor, shape [B], bool
            Which samples were classified correctly.
        """
        self.count(BatchStates(reading, correct), reading.activations)

    def count(self, batch: BatchStates, layers: Iterable[str]) -> None:
        """Count a batch whose states other settings may share.

        Parameters
        ----------
        batch : BatchStates
        layers : iterable of str
            Of those that were read, the ones to count at.
        """
        kind = self.settings.quantity, self.settings.correct_only
        for name in layers:
            self._found_nan = batch.has_nan(name, kind[0]) | self._found_nan
            if self.settings.alpha == "auto":
                self._kept.setdefault(name, []).append(batch.products(name, *kind))
            else:
                self.alpha[name] = float(self.settings.alpha)
                self._count(name, batch.states(name, *kind, self.alpha[name]))

    def finish(self) -> None:
        """Count what ``alpha="auto"`` kept back until its scale was known."""
        for name, kept in self._kept.items():
            products = torch.cat(kept)
            finite = products[products.isfinite()].double()
            spread = finite.std(correction=0).item() if len(finite) else 0.0
            self.alpha[name] = 1 / (AUTO_SPREADS * spread) if spread > 0 else 1.0
            for part in kept:
                self._count(name, torch.sigmoid(self.alpha[name] * part))
        self._kept.clear()

    def per_layer(self, fill: int | float | None = None) -> dict[str, float]:
        """NAC-ME by layer name, on request with another ``O``; NaN where activations or gradients were NaN."""
        if bool(self._found_nan):
            return dict.fromkeys(self.coverage, math.nan)
        return {name: float(metric.per_neuron(fill).mean()) for name, metric in self.coverage.items()}

    def occupied_bins(self) -> float:
        """Mean number of non-empty bins per neuron, averaged over layers."""
        return mean([float(metric.occupied_bins()) for metric in self.coverage.values()])

    def full_bins(self, fill: int | float | None = None) -> float:
        """Mean number of bins per neuron that hold ``O`` states or more, averaged over layers."""
        return mean([float(metric.full_bins(fill)) for metric in self.coverage.values()])

    def num_counted(self) -> int:
        """Samples counted."""
        return max((int(metric.num_samples) for metric in self.coverage.values()), default=0)

    def fault(self, fill: int | float | None = None) -> str | None:
        """Say why coverage says little more than how many samples were counted; None where it says more."""
        if self.num_counted() == 0:
            return None
        fill = self.settings.fill if fill is None else fill
        occupied, full = self.occupied_bins(), self.full_bins(fill)
        asked = f"{fill:g} of the samples" if isinstance(fill, float) else f"{fill} states"
        faults = []
        if occupied < min(FEW_BINS, self.settings.bins - 1):
            faults.append(f"a neuron's states fill {occupied:.1f} bins on average")
        if full < FEW_FULL_BINS:
            faults.append(f"hardly a bin holds the {asked} that make it full ({full:.1f} a neuron)")
        return " and ".join(faults) or None

    def _count(self, name: str, states: Tensor) -> None:
        if name not in self.coverage:
            metric = NeuronActivationCoverage(states.shape[1], self.settings.bins, self.settings.fill)
            self.coverage[name] = metric.to(states.device)
        self.coverage[name].update(states)


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
        Gives logits [B, C] from ``predict(x)`` where it has that method, as DomainBed's algorithms do, else from
        ``forward``. It is left as it was: mode, hooks, ``requires_grad``, gradients; random numbers are drawn
        only if predicting draws them.
    loader : iterable
        Of ``(x, y, ...)``: inputs [B, ...] and integer labels [B].
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
            logits = predict(x)
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


def mean(values: list[float]) -> float:
    """Average; NaN for no values."""
    return sum(values) / len(values) if values else math.nan
