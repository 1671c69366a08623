"""Training algorithms for domain generalization, with DomainBed's interface, names and results.

Each takes one minibatch of every training environment, and makes one step. Where DomainBed runs the network
once for each environment, here it runs once for all: the network has no batch statistics, so that the numbers
are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import networks
from .lib.misc import Minibatch, random_pairs_of_minibatches

ALGORITHMS = ["ERM", "IRM", "GroupDRO", "Mixup", "CORAL", "VREx"]


def get_algorithm_class(algorithm_name: str) -> type[Algorithm]:
    """Return the algorithm class of that name.

    Raises
    ------
    NotImplementedError
        If there is none.
    """
    if algorithm_name not in ALGORITHMS:
        raise NotImplementedError(f"Algorithm not found: {algorithm_name}")
    found: type[Algorithm] = globals()[algorithm_name]
    return found


def _cut(stacked: Tensor, sizes: list[int]) -> list[Tensor]:
    """Take the minibatches apart again."""
    return list(torch.split(stacked, sizes))


class Algorithm(nn.Module):
    """A model together with the way it is trained.

    Parameters
    ----------
    input_shape : sequence of int
        ``(channels, height, width)``.
    num_classes : int
        Number of logits.
    num_domains : int
        Number of training environments.
    hparams : mapping
        As `hparams_registry` gives them.
    """

    def __init__(
        self, input_shape: Sequence[int], num_classes: int, num_domains: int, hparams: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.hparams = hparams

    def update(
        self, minibatches: Sequence[Minibatch], unlabeled: Sequence[Tensor] | None = None
    ) -> dict[str, float]:
        """Make one training step.

        Parameters
        ----------
        minibatches : sequence of (x, y)
            One for each training environment: images ``[B, *input_shape]`` and labels ``[B]``.
        unlabeled : sequence of torch.Tensor, optional
            Images of the test environments, for domain adaptation. No algorithm here reads them.

        Returns
        -------
        dict of str to float
            The loss and its parts, before the step.
        """
        raise NotImplementedError

    def predict(self, x: Tensor) -> Tensor:
        """Return the logits ``[B, num_classes]`` of images ``[B, *input_shape]``."""
        raise NotImplementedError


class ERM(Algorithm):
    """Empirical risk minimization (Vapnik 1998): the mean cross-entropy over all minibatches, with Adam."""

    def __init__(
        self, input_shape: Sequence[int], num_classes: int, num_domains: int, hparams: Mapping[str, Any]
    ) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.featurizer = networks.Featurizer(input_shape, hparams)
        self.classifier = networks.Classifier(
            self.featurizer.n_outputs, num_classes, hparams["nonlinear_classifier"]
        )
        self.network = nn.Sequential(self.featurizer, self.classifier)
        self.optimizer = self._adam()

    def _adam(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(
            self.network.parameters(), lr=self.hparams["lr"], weight_decay=self.hparams["weight_decay"]
        )

    def _descend(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def _risks(self, minibatches: Sequence[Minibatch]) -> tuple[Tensor, list[Tensor]]:
        """Return each minibatch's mean cross-entropy, ``[num_domains]``, and the logits of each."""
        x = torch.cat([x for x, _ in minibatches])
        logits = _cut(self.predict(x), [len(y) for _, y in minibatches])
        return torch.stack([F.cross_entropy(f, y) for f, (_, y) in zip(logits, minibatches)]), logits

    def update(
        self, minibatches: Sequence[Minibatch], unlabeled: Sequence[Tensor] | None = None
    ) -> dict[str, float]:
        """Make one training step on all samples together."""
        x = torch.cat([x for x, _ in minibatches])
        y = torch.cat([y for _, y in minibatches])
        loss = F.cross_entropy(self.predict(x), y)
        self._descend(loss)
        return {"loss": loss.item()}

    def predict(self, x: Tensor) -> Tensor:
        """Return the logits ``[B, num_classes]``."""
        logits: Tensor = self.network(x)
        return logits


class GroupDRO(ERM):
    """Group distributionally robust optimization (Sagawa et al. 2020, arXiv:1911.08731, algorithm 1).

    Environments are weighted by ``q``, which grows exponentially with their loss at rate `groupdro_eta`.
    """

    q: Tensor

    def __init__(
        self, input_shape: Sequence[int], num_classes: int, num_domains: int, hparams: Mapping[str, Any]
    ) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        # DomainBed leaves q empty until the first step, so that its checkpoints do not load into a new
        # instance. Its sum is one after each step, whatever it starts from.
        self.register_buffer("q", torch.ones(num_domains))

    def update(
        self, minibatches: Sequence[Minibatch], unlabeled: Sequence[Tensor] | None = None
    ) -> dict[str, float]:
        """Reweigh the environments by their losses, then make one step on the weighted loss."""
        losses, _ = self._risks(minibatches)
        self.q *= (self.hparams["groupdro_eta"] * losses.detach()).exp()
        self.q /= self.q.sum()
        loss = losses @ self.q
        self._descend(loss)
        return {"loss": loss.item()}


class Mixup(ERM):
    """Mixup across environments (Yan et al. 2020, arXiv:2001.00677; Xu et al. 2020, arXiv:1912.01805).

    Images of two environments are averaged with a weight from ``Beta(mixup_alpha, mixup_alpha)``, and the
    cross-entropies with both labels by the same weight.
    """

    def update(
        self, minibatches: Sequence[Minibatch], unlabeled: Sequence[Tensor] | None = None
    ) -> dict[str, float]:
        """Make one training step on the mixed images, drawn from the global generators as DomainBed does."""
        alpha = self.hparams["mixup_alpha"]
        pairs = random_pairs_of_minibatches(minibatches)
        shares = [float(np.random.beta(alpha, alpha)) for _ in pairs]  # noqa: NPY002
        mixed = [lam * xi + (1 - lam) * xj for lam, ((xi, _), (xj, _)) in zip(shares, pairs)]
        logits = _cut(self.predict(torch.cat(mixed)), [len(x) for x in mixed])
        terms = [
            lam * F.cross_entropy(f, yi) + (1 - lam) * F.cross_entropy(f, yj)
            for lam, f, ((_, yi), (_, yj)) in zip(shares, logits, pairs)
        ]
        loss = torch.stack(terms).mean()
        self._descend(loss)
        return {"loss": loss.item()}


def coral_distance(x: Tensor, y: Tensor) -> Tensor:
    """Measure how far two feature distributions differ in mean and covariance.

    Parameters
    ----------
    x, y : torch.Tensor
        Features ``[B, N]`` of two environments, each of at least two samples.

    Returns
    -------
    torch.Tensor
        Scalar: the mean squared difference of the means plus that of the covariances. Sun and Saenko 2016
        (arXiv:1607.01719, equation 1) have a quarter of the second; the first is DomainBed's addition.
    """
    means = (x.mean(0) - y.mean(0)).square().mean()
    covariances = (torch.cov(x.T) - torch.cov(y.T)).square().mean()
    return means + covariances


class CORAL(ERM):
    """Deep CORAL (Sun and Saenko 2016, arXiv:1607.01719), as DomainBed generalizes it to several domains.

    Adds `mmd_gamma` times the mean `coral_distance` over all pairs of environments.
    """

    def update(
        self, minibatches: Sequence[Minibatch], unlabeled: Sequence[Tensor] | None = None
    ) -> dict[str, float]:
        """Make one training step; ``loss`` is reported without the penalty."""
        sizes = [len(y) for _, y in minibatches]
        features = self.featurizer(torch.cat([x for x, _ in minibatches]))
        logits = _cut(self.classifier(features), sizes)
        loss = torch.stack([F.cross_entropy(f, y) for f, (_, y) in zip(logits, minibatches)]).mean()
        distances = [coral_distance(a, b) for a, b in combinations(_cut(features, sizes), 2)]
        penalty = torch.stack(distances).mean() if distances else loss.new_zeros(())
        self._descend(loss + self.hparams["mmd_gamma"] * penalty)
        return {"loss": loss.item(), "penalty": penalty.item()}


class _AnnealedPenalty(ERM):
    """The mean risk plus a penalty, whose weight jumps from 1 to its final value after some steps.

    Adam starts afresh at the jump, since its running moments do not fit the new scale of the gradients.
    """

    prefix: ClassVar[str]
    update_count: Tensor

    def __init__(
        self, input_shape: Sequence[int], num_classes: int, num_domains: int, hparams: Mapping[str, Any]
    ) -> None:
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.register_buffer("update_count", torch.tensor([0]))

    def _step(self, risk: Tensor, penalty: Tensor) -> float:
        """Descend and return the penalized loss."""
        anneal_iters = self.hparams[f"{self.prefix}_penalty_anneal_iters"]
        count = int(self.update_count)
        weight = self.hparams[f"{self.prefix}_lambda"] if count >= anneal_iters else 1.0
        loss = risk + weight * penalty
        if count == anneal_iters:
            self.optimizer = self._adam()
        self._descend(loss)
        self.update_count += 1
        return loss.item()


def irm_penalty(logits: Tensor, y: Tensor) -> Tensor:
    """Estimate the squared gradient of the risk with respect to a scale on the logits, at 1.

    Parameters
    ----------
    logits : torch.Tensor
        ``[B, C]`` of one environment, at least two samples.
    y : torch.Tensor
        Labels ``[B]``.

    Returns
    -------
    torch.Tensor
        Scalar: the product of the gradients on the even and on the odd samples, without bias but possibly
        negative (Arjovsky et al. 2019, arXiv:1907.02893, section 3.2 and appendix D).
    """
    scale = torch.ones((), dtype=logits.dtype, device=logits.device, requires_grad=True)
    gradients = [
        torch.autograd.grad(F.cross_entropy(logits[half::2] * scale, y[half::2]), scale, create_graph=True)[0]
        for half in (0, 1)
    ]
    return gradients[0] * gradients[1]


class IRM(_AnnealedPenalty):
    """Invariant risk minimization, IRMv1 (Arjovsky et al. 2019, arXiv:1907.02893).

    Adds `irm_lambda` times the mean `irm_penalty` once `irm_penalty_anneal_iters` steps are made.
    """

    prefix = "irm"

    def update(
        self, minibatches: Sequence[Minibatch], unlabeled: Sequence[Tensor] | None = None
    ) -> dict[str, float]:
        """Make one training step."""
        risks, logits = self._risks(minibatches)
        nll = risks.mean()
        penalty = torch.stack([irm_penalty(f, y) for f, (_, y) in zip(logits, minibatches)]).mean()
        loss = self._step(nll, penalty)
        return {"loss": loss, "nll": nll.item(), "penalty": penalty.item()}


class VREx(_AnnealedPenalty):
    """Risk extrapolation (Krueger et al. 2021, arXiv:2003.00688, V-REx): penalizes the risks' variance.

    Adds `vrex_lambda` times the (population) variance once `vrex_penalty_anneal_iters` steps are made.
    """

    prefix = "vrex"

    def update(
        self, minibatches: Sequence[Minibatch], unlabeled: Sequence[Tensor] | None = None
    ) -> dict[str, float]:
        """Make one training step; ``nll`` is the last environment's risk, as DomainBed reports it."""
        risks, _ = self._risks(minibatches)
        penalty = risks.var(unbiased=False)
        loss = self._step(risks.mean(), penalty)
        return {"loss": loss, "nll": risks[-1].item(), "penalty": penalty.item()}
