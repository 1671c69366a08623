"""Neuron activation coverage as a torchmetrics metric."""

from __future__ import annotations

from typing import Any

from torchmetrics import Metric

from nacme.coverage import StateCounts


class NeuronActivationCoverage(StateCounts, Metric):
    """Coverage of neuron states by the samples seen so far: NAC-ME, and NAC-UE's likelihood.

    Parameters
    ----------
    num_neurons : int
        ``N``.
    bins : int
        ``M``, the number of edges; states are counted in ``M - 1`` bins.
    fill : int or float
        ``O``. An int is a count, as in the authors' code; a float is the fraction of the counted samples, which
        does not grow with the data set.
    spacing : {"linear", "log"}
        See `nacme.coverage.bin_edges`. NAC-ME uses ``"linear"``, NAC-UE ``"log"``.
    **kwargs
        Passed on to `torchmetrics.Metric`.

    Attributes
    ----------
    counts : Tensor, shape [N, M - 1], int64
        Summed when metrics are merged or processes synchronized.
    num_samples : Tensor, scalar, int64
        Samples counted. Rows that are NaN throughout do not count: that is how samples are masked.

    Raises
    ------
    ConfigError
        If a parameter is out of range.

    Examples
    --------
    >>> import torch
    >>> coverage = NeuronActivationCoverage(num_neurons=2, bins=3, fill=1)
    >>> coverage.update(torch.tensor([[0.2, 0.2], [0.7, 0.3]]))
    >>> coverage.per_neuron()
    tensor([0.6667, 0.3333])
    >>> coverage.compute()
    tensor(0.5000)

    Notes
    -----
    The mean is over ``M``, though there are ``M - 1`` bins, as in the authors' code: full coverage is
    ``(M - 1) / M``. Source: arXiv 2306.02879, equations 3 to 5.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    dtype = Metric.dtype  # what `set_dtype` says, as in any metric

    def __init__(
        self,
        num_neurons: int,
        bins: int = 50,
        fill: int | float = 500,
        spacing: str = "linear",
        **kwargs: Any,
    ) -> None:
        Metric.__init__(self, **kwargs)
        StateCounts.__init__(self, num_neurons, bins, fill, spacing)
        self.add_state("counts", self.counts, dist_reduce_fx="sum")
        self.add_state("num_samples", self.num_samples, dist_reduce_fx="sum")
