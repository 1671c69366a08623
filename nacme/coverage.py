"""Neuron activation coverage: how much of each neuron's state space a set of samples fills.

Source: Liu et al., ICLR 2024 (arXiv 2306.02879), equations 3 to 5, and the authors' code,
``domainbed/benchmark_notes/coverage.py`` (NAC-ME, equal bins) and ``openood/postprocessors/nac`` (NAC-UE,
log-spaced bins), whose numbers these functions reproduce.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from nacme.errors import ConfigError
from nacme.settings import check_bins, check_fill

SPACINGS = ("linear", "log")
#: Up to this many edges, rounding moves a state by less than a hundredth of a bin.
MAX_GUESSED = 2**15
#: From this many bins per sample on, a batch is added to the counts state by state (measured on the CPU).
SPARSE = 8


def bin_edges(bins: int, spacing: str = "linear") -> Tensor:
    """Edges of the bins that states are counted in.

    Parameters
    ----------
    bins : int
        ``M``, the number of edges: there are ``M - 1`` bins, closed on the left and open on the right.
    spacing : {"linear", "log"}
        ``"linear"``: equal bins over [0, 1]. ``"log"``: the authors' bins for NAC-UE, narrow around 0.5, the
        last two edges at 1.01 and 1.2 so that a state of exactly 1 counts. Needs an even ``M``.

    Returns
    -------
    Tensor, shape [M]
        Ascending; float32 for ``"linear"`` and float64 for ``"log"``, as the authors compare them.

    Raises
    ------
    ConfigError
        If ``bins`` is below 2, or below 4 or odd with ``"log"``, or ``spacing`` is unknown.
    """
    if spacing not in SPACINGS:
        raise ConfigError(f"spacing={spacing!r} is unknown; use one of {', '.join(map(repr, SPACINGS))}")
    check_bins(bins)
    if spacing == "linear":
        return torch.linspace(0.0, 1.0, bins)
    if bins % 2 or bins < 4:
        raise ConfigError(f"bins={bins} must be even and at least 4 with spacing='log'")
    lower = np.log(np.linspace(1.0, math.sqrt(1000.0), bins // 2)) / np.log(1000.0)
    upper = (1 - lower)[::-1].copy()
    upper[-1] += 0.01
    return torch.from_numpy(np.concatenate([lower[:-1], upper, [1.2]]))


def bin_indices(states: Tensor, edges: Tensor, spacing: str | None = None) -> Tensor:
    """Find the bin that each state falls in.

    Parameters
    ----------
    states : Tensor, shape [B, N]
    edges : Tensor, shape [M]
    spacing : {"linear", "log"}, optional
        What `bin_edges` made the edges with, where it did: equal bins are found faster on the CPU.

    Returns
    -------
    Tensor, shape [B, N], int32
        0 below the first edge, ``k`` in bin ``k - 1``, ``M`` from the last edge on and for NaN. The comparison
        is exact, in the wider of the two types.
    """
    dtype = torch.promote_types(states.dtype, edges.dtype)
    states, edges = states.to(dtype).contiguous(), edges.to(dtype)
    # on a GPU the search is one quick kernel, and takes fewer launches
    if spacing == "linear" and states.device.type == "cpu" and len(edges) <= MAX_GUESSED:
        return _even_bin_indices(states, edges)
    return torch.bucketize(states, edges, right=True, out_int32=True)


def _even_bin_indices(states: Tensor, edges: Tensor) -> Tensor:
    """Guess the nearest edge, which rounding leaves well within half a bin, and compare with that edge alone."""
    last = len(edges) - 1
    # NaN is no smaller than the last edge, so that it ends up above it
    nearest = (states * last).add_(0.5).clamp_(0, last).nan_to_num_(last).to(torch.int32)
    edge = edges.index_select(0, nearest.flatten()).view_as(states)
    return nearest.add_(1).sub_(edge.gt_(states).to(torch.int32))


def count_states(states: Tensor, edges: Tensor, spacing: str | None = None) -> Tensor:
    """Count, for each neuron, the states that fall in each bin.

    Parameters
    ----------
    states : Tensor, shape [B, N]
    edges : Tensor, shape [M]
    spacing : {"linear", "log"}, optional
        See `bin_indices`.

    Returns
    -------
    Tensor, shape [N, M - 1], int64
        States outside every bin, and NaN, are in none.
    """
    counts = torch.zeros(states.shape[1], len(edges) - 1, dtype=torch.int64, device=states.device)
    add_states(counts, states, edges, spacing)
    return counts


def add_states(counts: Tensor, states: Tensor, edges: Tensor, spacing: str | None = None) -> None:
    """Add a batch to counts, in place.

    Parameters
    ----------
    counts : Tensor, shape [N, M - 1], int64
        See `count_states`.
    states : Tensor, shape [B, N]
    edges : Tensor, shape [M]
    spacing : {"linear", "log"}, optional
        See `bin_indices`.

    Notes
    -----
    Memory is O(B N + N M), and on CUDA the host does not wait for the device.
    """
    (samples, neurons), bins = states.shape, len(edges) - 1
    index = bin_indices(states, edges, spacing)
    slots = bins + 2
    if neurons * slots > torch.iinfo(torch.int32).max:
        index = index.long()
    first = torch.arange(neurons, device=states.device, dtype=index.dtype)
    if states.device.type == "cpu" and bins > SPARSE * samples:
        # few states among many bins: a second table of [N, M] would cost more than the counting
        index.sub_(1)
        place = index.clamp(0, bins - 1)
        inside = index.eq_(place).to(torch.int64)
        place += first * bins
        counts.view(-1).index_add_(0, place.flatten(), inside.flatten())
        return
    index += first * slots
    if states.is_cuda:
        # bincount would wait for the device to learn the largest index
        found = torch.zeros(neurons * slots, dtype=torch.int64, device=states.device)
        found.index_add_(0, index.flatten(), found.new_ones(()).expand(index.numel()))
    else:
        found = torch.bincount(index.flatten(), minlength=neurons * slots)
    counts += found.view(neurons, slots)[:, 1:-1]


def nac_function(counts: Tensor, fill: float | Tensor) -> Tensor:
    """Turn counts into coverage: ``min(count / O, 1)``.

    Parameters
    ----------
    counts : Tensor, shape [N, M - 1]
    fill : float or scalar Tensor
        ``O``, the count from which a bin is fully covered.

    Returns
    -------
    Tensor, shape [N, M - 1]
        Float64 in [0, 1] (float32 on devices without it).
    """
    dtype = torch.float32 if counts.device.type == "mps" else torch.float64
    return (counts.to(dtype) / fill).clamp(max=1)


class StateCounts:
    """Counts of neuron states and the coverage that they come to; what `nacme.NeuronActivationCoverage` wraps.

    Counting needs no torchmetrics, whose import costs more than PyTorch's: measuring uses this class as it is.

    Parameters
    ----------
    num_neurons, bins, fill, spacing
        As for `nacme.NeuronActivationCoverage`.
    device : torch.device, optional
        Where the counts are kept; the default device without it.

    Raises
    ------
    ConfigError
        If a parameter is out of range.
    """

    counts: Tensor
    num_samples: Tensor
    dtype: torch.dtype = torch.float32  # of what is computed from the counts

    def __init__(
        self,
        num_neurons: int,
        bins: int = 50,
        fill: int | float = 500,
        spacing: str = "linear",
        device: torch.device | None = None,
    ) -> None:
        if num_neurons < 1:
            raise ConfigError(f"num_neurons={num_neurons} must be at least 1")
        check_fill(fill)
        self.num_neurons, self.bins, self.fill, self.spacing = num_neurons, bins, fill, spacing
        self._edges = bin_edges(bins, spacing)
        self.counts = torch.zeros(num_neurons, bins - 1, dtype=torch.int64, device=device)
        self.num_samples = torch.zeros((), dtype=torch.int64, device=device)

    def update(self, states: Tensor) -> None:
        """Count a batch.

        Parameters
        ----------
        states : Tensor, shape [B, N]
        """
        self._check(states)
        add_states(self.counts, states, self._edges_on(states.device), self.spacing)
        # a row's largest state is -inf only if all of it is NaN: infinities become finite
        self.num_samples += states.nan_to_num(nan=-math.inf).amax(dim=1).gt(-math.inf).sum()

    def compute(self) -> Tensor:
        """Coverage averaged over neurons.

        Returns
        -------
        Tensor, scalar
            NAC-ME. NaN if ``fill`` is a fraction and nothing was counted.
        """
        return self.per_neuron().mean()

    def per_neuron(self, fill: int | float | None = None) -> Tensor:
        """Coverage of each neuron.

        Parameters
        ----------
        fill : int or float, optional
            Another ``O`` than the metric's: the counts serve for any.

        Returns
        -------
        Tensor, shape [N]
        """
        return (nac_function(self.counts, self._fill_count(fill)).sum(dim=1) / self.bins).to(self.dtype)

    def likelihood(self, states: Tensor) -> Tensor:
        """Score samples by the coverage of the bins that their states fall in.

        Parameters
        ----------
        states : Tensor, shape [B, N]

        Returns
        -------
        Tensor, shape [B]
            NAC-UE's score, in [0, 1]: higher is more in-distribution. A state outside every bin scores 0.
        """
        self._check(states)
        covered = torch.nn.functional.pad(nac_function(self.counts, self._fill_count()), (1, 1))
        index = bin_indices(states, self._edges_on(states.device), self.spacing).long()
        return covered.T.gather(0, index).mean(dim=1).to(self.dtype)

    def occupied_bins(self) -> Tensor:
        """Mean over neurons of the number of bins that hold any state.

        Returns
        -------
        Tensor, scalar
        """
        return (self.counts > 0).sum(dim=1).to(self.dtype).mean()

    def full_bins(self, fill: int | float | None = None) -> Tensor:
        """Mean over neurons of the number of bins that count as fully covered.

        Parameters
        ----------
        fill : int or float, optional
            Another ``O`` than the metric's own.

        Returns
        -------
        Tensor, scalar
            Where it is 0, NAC-ME is proportional to the number of states counted.
        """
        full = (self.counts > 0) & (self.counts >= self._fill_count(fill))
        return full.sum(dim=1).to(self.dtype).mean()

    def _fill_count(self, fill: int | float | None = None) -> float | Tensor:
        fill = self.fill if fill is None else fill
        return fill * self.num_samples if isinstance(fill, float) else fill

    def _edges_on(self, device: torch.device) -> Tensor:
        self._edges = self._edges.to(device)
        return self._edges

    def _check(self, states: Tensor) -> None:
        if states.dim() != 2 or states.shape[1] != self.num_neurons:
            raise ConfigError(f"states must be [B, {self.num_neurons}], not {list(states.shape)}")
