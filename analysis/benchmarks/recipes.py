"""What the passes are compared with: DomainBed's accuracy, and the coverage of the method's authors.

Both are written down here from their description. Where a clone lies at hand (``DOMAINBED_ROOT``,
``OOD_COVERAGE_ROOT``) their own code runs instead of, and beside, these.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from analysis.authors_parity import load_theirs

Batches = Iterable[tuple[Tensor, Tensor]]


def accuracy(network: nn.Module, loader: Batches, weights: None, device: torch.device) -> float:
    """Accuracy as DomainBed's ``misc.accuracy`` measures it: without a graph, two sums fetched per batch."""
    correct, total = 0.0, 0.0
    network.eval()
    with torch.no_grad():
        for x, y in loader:
            x, y = x.to(device), y.to(device)
            p = network.predict(x)
            batch_weights = torch.ones(len(x)).to(device)
            correct += (p.argmax(1).eq(y).float() * batch_weights).sum().item()
            total += batch_weights.sum().item()
    network.train()
    return correct / total


def domainbed_accuracy() -> tuple[Callable[..., float], bool]:
    """Find DomainBed's function in the clone ``DOMAINBED_ROOT``, else take `accuracy`; say if it is theirs."""
    root = os.environ.get("DOMAINBED_ROOT")
    if not root:
        return accuracy, False
    path = Path(root) / "domainbed" / "lib" / "misc.py"
    if not path.is_file():
        sys.exit(f"{path} does not exist; let DOMAINBED_ROOT name a DomainBed clone, or unset it")
    spec = importlib.util.spec_from_file_location("domainbed_misc", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.accuracy, True


class AuthorsEstimator:
    """Counts per neuron and bin from comparing each state with each bin: a [B, M, N] tensor."""

    def __init__(self, neurons: int, bins: int, fill: int, device: torch.device) -> None:
        self.bins, self.fill = bins, fill
        self.edges = torch.linspace(0.0, 1.0, bins).view(bins, 1).repeat(1, neurons).to(device)
        self.counts = torch.zeros(bins - 1, neurons).to(device)

    def update(self, states: Tensor) -> None:
        """Count a batch, [B, N]."""
        inside = (states.unsqueeze(1) >= self.edges[:-1]) & (states.unsqueeze(1) < self.edges[1:])
        self.counts += inside.sum(dim=0)

    def coverage(self) -> float:
        """NAC-ME."""
        return float(((self.counts / self.fill).clamp(max=1).sum(dim=0) / self.bins).mean())


def authors_pass(
    model: nn.Module,
    loader: Batches,
    sizes: Mapping[str, int],
    bins: int,
    fill: int,
    alpha: float,
    device: torch.device,
) -> dict[str, float]:
    """Coverage by layer, as the authors measure it.

    A pass of its own that keeps the graph of the whole network, parameters included; for each layer a backward
    pass from the logits; states of the correct samples compared with all bins.

    Parameters
    ----------
    model : nn.Module
    loader : iterable
        Of (inputs, labels).
    sizes : mapping of str to int
        Number of neurons by layer.
    bins, fill, alpha
        ``M``, ``O`` and the sigmoid's steepness.
    device : torch.device

    Returns
    -------
    dict of str to float
    """
    model.eval()
    kept: dict[str, Tensor] = {}
    estimators = {name: AuthorsEstimator(size, bins, fill, device) for name, size in sizes.items()}
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: kept.update({name: out}))
        for name in sizes
    ]
    try:
        for x, y in loader:
            p = model(x.to(device))
            correct = p.argmax(1).eq(y.to(device))
            correct.float().sum().item()
            for position, name in enumerate(sizes):
                uniform = torch.ones_like(p) / p.shape[-1]
                loss = torch.sum(-uniform * torch.log_softmax(p, dim=-1), dim=-1).sum()
                more = position < len(sizes) - 1
                gradient = torch.autograd.grad(loss, kept[name], retain_graph=more)[0]
                z, g = pool(kept[name]).detach(), pool(gradient).detach()
                states = 1 / (1 + torch.exp(-alpha * (z * g)[correct]))
                if len(states) > 0:
                    with torch.no_grad():
                        estimators[name].update(states)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: estimator.coverage() for name, estimator in estimators.items()}


def pool(values: Tensor) -> Tensor:
    """Sum over the positions of a map [B, N, H, W], or over the tokens [B, T, N]."""
    return values.sum(dim=(2, 3)) if values.dim() == 4 else values.sum(dim=1) if values.dim() == 3 else values


def authors_code() -> Any:
    """Import the authors' coverage from the clone that ``OOD_COVERAGE_ROOT`` names; None where it is unset."""
    root = os.environ.get("OOD_COVERAGE_ROOT")
    return load_theirs(root) if root else None


def authors_code_pass(
    theirs: Any,
    model: nn.Module,
    loader: Batches,
    sizes: Mapping[str, int],
    bins: int,
    fill: int,
    alpha: float,
    device: torch.device,
) -> dict[str, float]:
    """Coverage by layer from the authors' code; parameters as for `authors_pass`."""
    coverage = theirs.KMNC(
        dict(sizes),
        device=device,
        hyper={"M": bins, "O": fill},
        unpack=lambda batch, where: (batch[0].to(where), batch[1].to(where)),
    )
    coverage.assess(model, loader, spatial_func=pool, method="sigmoid(o*g_kl[f])", sig_alpha=alpha)
    coverage.update(method="avg")
    return {name: float(coverage.coverage_dict[name][-1]) for name in sizes}


def layer_sizes(model: nn.Module, layers: Iterable[str], x: Tensor) -> dict[str, int]:
    """Count the neurons of layers: channels of a map, units of a vector or of tokens."""
    sizes: dict[str, int] = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda _, __, out, name=name: sizes.update({name: pool(out).shape[1]})
        )
        for name in layers
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return {name: sizes[name] for name in layers}
