"""Counting the states of a split, for many settings at once: what differs in O alone is counted once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nacme.coverage import StateCounts
from nacme.settings import FEW_BINS, FEW_FULL_BINS, CoverageSettings
from nacme.taps import Reading

#: alpha="auto" puts this many standard deviations of ``z * g`` at the sigmoid's argument 1
AUTO_SPREADS = 0.5


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
    coverage : dict of str to StateCounts
        By layer name, filled as batches come.
    alpha : dict of str to float
        The scale in use, by layer name.
    """

    settings: CoverageSettings
    coverage: dict[str, StateCounts] = field(default_factory=dict)
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
            metric = StateCounts(states.shape[1], self.settings.bins, self.settings.fill, device=states.device)
            self.coverage[name] = metric
        self.coverage[name].update(states)


def mean(values: list[float]) -> float:
    """Average; NaN for no values."""
    return sum(values) / len(values) if values else math.nan
