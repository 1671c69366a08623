"""GReg: training that pushes in- and out-of-distribution energies apart and flattens energy where they are apart.

Source: Sharifi et al., "Gradient-Regularized Out-of-Distribution Detection", ECCV 2024 (arXiv 2404.12368), and
``train_sea.py`` of the authors' code.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nacme.errors import ConfigError, nearest
from nacme.ood.outliers import pseudo_outliers, resized

if TYPE_CHECKING:
    from domainbed_plugins.interface import Testbed

# The authors' margins (-25, -7) suit a network whose energies are already there: from a fresh one, whose energy is
# -log C (-2 to -6), the first hinge starts at about 500 and drowns the cross-entropy, and no in-sample ever gets a
# gradient penalty. These start within reach on both sides, and a softmax is as confident at any level of energy.
HPARAMS: dict[str, tuple[Any, Callable[[np.random.RandomState], Any]]] = {
    "greg_m_in": (-9.0, lambda r: float(r.uniform(-14, -7))),
    "greg_m_out": (-4.0, lambda r: float(r.uniform(-5, -2))),
    # 0.1 costs a fresh MNIST_CNN several points of accuracy in 600 steps (docs/detect.md)
    "greg_beta": (0.02, lambda r: float(10 ** r.uniform(-2.5, -0.5))),
    "greg_lambda": (1.0, lambda r: float(10 ** r.uniform(-1.5, 0.5))),
    # The authors refine a trained classifier. From a fresh one the margin's gradient outweighs the cross-entropy's
    # by far, so both weights grow linearly over so many steps.
    "greg_ramp": (300, lambda r: 300),
    # "jigsaw", "noise", "rotate", "mix": the training images transformed; else the name of a data set. Not "mix"
    # by default: it rotates, and rotated data sets' own domains differ by just that, test domains too.
    "greg_outliers": ("jigsaw", lambda r: "jigsaw"),
    "greg_data_dir": ("", lambda r: ""),
    # candidates per training sample, from which clustering picks one per sample; 1 takes them all (GReg without +)
    "greg_candidates": (1, lambda r: int(r.choice([1, 4]))),
    "greg_clusters": (8, lambda r: 8),
}


def energy(logits: Tensor) -> Tensor:
    """Free energy of logits.

    Parameters
    ----------
    logits : Tensor, shape [B, C]

    Returns
    -------
    Tensor, shape [B]
        ``-logsumexp``: low where the network is sure.
    """
    return -logits.logsumexp(dim=1)


def energy_margin_loss(energy_in: Tensor, energy_out: Tensor, m_in: float, m_out: float) -> Tensor:
    """Squared hinge that asks for energies below ``m_in`` inside and above ``m_out`` outside.

    Parameters
    ----------
    energy_in : Tensor, shape [I]
        Energies of in-distribution samples.
    energy_out : Tensor, shape [O]
        Energies of auxiliary outliers.
    m_in, m_out : float
        Margins, ``m_in`` below ``m_out``.

    Returns
    -------
    Tensor, scalar
        ``mean relu(E_in - m_in)^2 + mean relu(m_out - E_out)^2``.
    """
    return F.relu(energy_in - m_in).square().mean() + F.relu(m_out - energy_out).square().mean()


def gradient_penalty(model: nn.Module, x_in: Tensor, x_out: Tensor, m_in: float, m_out: float) -> Tensor:
    """Mean norm of the energy's gradient by the inputs, at the samples that satisfy their margin.

    Parameters
    ----------
    model : nn.Module
        Returns logits.
    x_in : Tensor, shape [I, ...]
        In-distribution samples.
    x_out : Tensor, shape [O, ...]
        Auxiliary outliers, of the same shape per sample.
    m_in, m_out : float
        Margins.

    Returns
    -------
    Tensor, scalar
        Differentiable by the parameters (double backward).

    Notes
    -----
    The score differentiated is ``-mean relu(m_in - E_in) + mean relu(E_out - m_out)``: its hinges point the other
    way from `energy_margin_loss`, so only samples that already satisfy their margin have a gradient. The others
    are rows of zeros and count in the mean all the same; each row carries the ``1 / I`` or ``1 / O`` of its own
    mean. One backward pass through one forward pass: samples do not depend on each other unless the model mixes
    them, as batch normalization does.
    """
    inputs = torch.cat([x_in, x_out]).detach().requires_grad_()
    return _penalty(inputs, energy(model(inputs)), len(x_in), m_in, m_out)


def _penalty(inputs: Tensor, energies: Tensor, num_in: int, m_in: float, m_out: float) -> Tensor:
    inside, outside = energies[:num_in], energies[num_in:]
    score = F.relu(outside - m_out).mean() - F.relu(m_in - inside).mean()
    (gradient,) = torch.autograd.grad(score, inputs, create_graph=True)
    norms: Tensor = gradient.flatten(1).norm(dim=1)
    return norms.mean()


def select_outliers(
    scores: Tensor,
    features: Tensor,
    size: int,
    clusters: int,
    start: int = 0,
    end: int | None = None,
    two_way: bool = False,
    normalize: bool = True,
    fill: bool = True,
    n_init: int = 3,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Pick outliers that are hard (of low energy) and diverse (from every cluster): GReg+.

    Parameters
    ----------
    scores : Tensor, shape [M]
        How out-of-distribution each candidate looks to the network: its energy. Low is hard.
    features : Tensor, shape [M, N]
        Penultimate features of the candidates.
    size : int
        How many to pick (twice as many with ``two_way``).
    clusters : int
        ``k`` of k-means. With more clusters than ``size``, those that hold the lowest scores are used.
    start, end : int, optional
        Cluster only the candidates at these ranks of ascending score.
    two_way : bool
        Take the easiest of each cluster as well as the hardest.
    normalize : bool
        Scale features to unit length before clustering.
    fill : bool
        Complete the clusters' picks at random where they fall short of ``size``.
    n_init : int
        Starts of k-means.
    generator : torch.Generator, optional
        Source of the randomness, on the CPU.

    Returns
    -------
    Tensor, int64
        Indices of the candidates, without repetition, the hardest cluster first.

    Raises
    ------
    ConfigError
        If ``size`` or ``clusters`` is below 1, or no candidate lies between ``start`` and ``end``.

    Notes
    -----
    Each cluster gives ``max(size // clusters, 1)`` candidates; one that holds no more gives them all.
    """
    from sklearn.cluster import KMeans  # slow to import, and GReg without clustering does without

    if size < 1 or clusters < 1:
        raise ConfigError(f"size={size} and clusters={clusters} must be at least 1")
    order = scores.detach().cpu().double().argsort(stable=True)[start:end]
    if not len(order):
        raise ConfigError(f"no candidate of {len(scores)} lies between ranks start={start} and end={end}")
    points = features.detach().cpu().float()[order]
    if normalize:
        points = F.normalize(points, dim=1)
    # never more clusters than distinct points: k-means would warn of empty ones
    clusters = min(clusters, len(np.unique(points.numpy(), axis=0)))
    seed = int(torch.randint(2**31 - 1, (), generator=generator))
    labels = torch.from_numpy(
        KMeans(clusters, n_init=n_init, random_state=seed).fit_predict(points.numpy())
    ).long()
    each = max(size // clusters, 1)
    picked: list[int] = []
    # clusters in the order of their hardest member, for `order` ascends
    for label in list(dict.fromkeys(labels.tolist()))[: min(clusters, size)]:
        members = order[labels == label]
        taken = members
        if len(members) > each:
            taken = torch.cat([members[:each], members[-each:]]) if two_way else members[:each]
        picked.extend(dict.fromkeys(taken.tolist()))
    wanted = 2 * size if two_way else size
    if fill and len(picked) < wanted:
        rest = [index for index in order.tolist() if index not in set(picked)]
        chosen = torch.randperm(len(rest), generator=generator)[: wanted - len(picked)]
        picked.extend(rest[i] for i in chosen.tolist())
    return torch.tensor(picked, dtype=torch.int64)


def make_greg(algorithms_module: ModuleType) -> type[Any]:
    """Build the algorithm on a testbed's ``ERM``.

    Parameters
    ----------
    algorithms_module : module
        ``domainbed.algorithms``, or the embedded testbed's.

    Returns
    -------
    type
        ``GReg``, a subclass of the module's ``ERM``, with the hyper-parameters of `HPARAMS`.
    """

    class GReg(algorithms_module.ERM):  # type: ignore[misc, name-defined]
        """ERM with an energy margin against auxiliary outliers and a gradient penalty."""

        def __init__(self, input_shape: Any, num_classes: int, num_domains: int, hparams: dict[str, Any]) -> None:
            super().__init__(input_shape, num_classes, num_domains, hparams)
            if hparams["greg_m_in"] >= hparams["greg_m_out"]:
                raise ConfigError(
                    f"greg_m_in={hparams['greg_m_in']} must lie below greg_m_out={hparams['greg_m_out']}"
                )
            _check_outliers(algorithms_module, hparams["greg_outliers"])
            self._seed = int(torch.randint(2**31 - 1, ()))
            self._generator = torch.Generator().manual_seed(self._seed)
            self._auxiliary: Any = None
            self.register_buffer("update_count", torch.tensor([0]))

        def update(self, minibatches: Any, unlabeled: Any = None) -> dict[str, float]:
            """Take one step on cross-entropy, energy margin and gradient penalty; return their values."""
            x = torch.cat([x for x, _ in minibatches])
            y = torch.cat([y for _, y in minibatches])
            inputs = torch.cat([x, self._outliers(x)]).detach().requires_grad_()
            m_in, m_out = self.hparams["greg_m_in"], self.hparams["greg_m_out"]
            logits = self.predict(inputs)
            energies = energy(logits)
            cross_entropy = F.cross_entropy(logits[: len(x)], y)
            margin = energy_margin_loss(energies[: len(x)], energies[len(x) :], m_in, m_out)
            self.update_count += 1
            ramp = min(1.0, self.update_count.item() / max(1, self.hparams["greg_ramp"]))
            loss = cross_entropy + ramp * self.hparams["greg_beta"] * margin
            values = {"ce": cross_entropy.item(), "margin": margin.item()}
            if self.hparams["greg_lambda"]:
                penalty = _penalty(inputs, energies, len(x), m_in, m_out)
                loss = loss + ramp * self.hparams["greg_lambda"] * penalty
                values["penalty"] = penalty.item()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            return {"loss": loss.item(), **values}

        def _outliers(self, x: Tensor) -> Tensor:
            times = int(self.hparams["greg_candidates"])
            kind = self.hparams["greg_outliers"]
            if kind in _TRANSFORMED:
                candidates = torch.cat([pseudo_outliers(x, kind, self._generator) for _ in range(times)])
            else:
                if self._auxiliary is None:  # not before: a network that only predicts needs no outliers
                    self._auxiliary = _data_set(algorithms_module, self.hparams, self._seed)
                candidates = _draw(self._auxiliary, times * len(x), x, self._generator)
            if times == 1:
                return candidates
            modes = [(module, module.training) for module in self.modules()]
            self.eval()
            with torch.no_grad():
                features = self.featurizer(candidates)
                scores = energy(self.classifier(features))
            for module, training in modes:
                module.training = training
            picked = select_outliers(
                scores,
                features,
                size=len(x),
                clusters=int(self.hparams["greg_clusters"]),
                generator=self._generator,
            )
            return candidates[picked.to(candidates.device)]

    return GReg


_TRANSFORMED = ("mix", "rotate", "jigsaw", "noise")


def _datasets(algorithms_module: ModuleType) -> ModuleType:
    return importlib.import_module(f"{algorithms_module.__package__}.datasets")


def _check_outliers(algorithms_module: ModuleType, name: str) -> None:
    known = [*_TRANSFORMED, *getattr(_datasets(algorithms_module), "DATASETS", [])]
    if name not in known:
        raise ConfigError(f"greg_outliers={name!r} is unknown; {nearest(name, known)}")


def _data_set(algorithms_module: ModuleType, hparams: dict[str, Any], seed: int) -> Any:
    """Load the data set that greg_outliers names: all its environments in one.

    Some data sets draw random numbers; here they neither depend on how far training is nor disturb it.
    """
    name = hparams["greg_outliers"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            environments = getattr(_datasets(algorithms_module), name)(hparams["greg_data_dir"], [], hparams)
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(
                f"greg_data_dir={hparams['greg_data_dir']!r}: {name} cannot be read there: {error}"
            ) from error
    return torch.utils.data.ConcatDataset([environments[i] for i in range(len(environments))])


def _draw(data: Any, count: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw images from a data set, resized to the training images."""
    images = torch.stack([data[i][0] for i in torch.randint(len(data), (count,), generator=generator).tolist()])
    return resized(images, like.shape[1:]).to(like)


def register(testbed: Testbed) -> type[Any]:
    """Add ``GReg`` to a testbed's algorithms and its hyper-parameters to the testbed's registry.

    Parameters
    ----------
    testbed : Testbed
        From `domainbed_plugins.backends.find`.

    Returns
    -------
    type
        The algorithm. Registering again returns the same one.
    """
    algorithms, registry = testbed.algorithms, testbed.hparams_registry
    found: type[Any] | None = getattr(algorithms, "GReg", None)
    if found is not None:
        return found
    built = make_greg(algorithms)
    algorithms.GReg = built  # type: ignore[attr-defined]
    algorithms.ALGORITHMS.append("GReg")
    stock_default, stock_random = registry.default_hparams, registry.random_hparams

    def default_hparams(algorithm: str, dataset: str) -> dict[str, Any]:
        own = {name: default for name, (default, _) in HPARAMS.items()} if algorithm == "GReg" else {}
        return {**stock_default(algorithm, dataset), **own}

    def random_hparams(algorithm: str, dataset: str, seed: int) -> dict[str, Any]:
        hparams = dict(stock_random(algorithm, dataset, seed))
        if algorithm == "GReg":
            for name, (_, draw) in HPARAMS.items():
                hparams[name] = draw(np.random.RandomState(testbed.misc.seed_hash(seed, name)))
        return hparams

    registry.default_hparams = default_hparams  # type: ignore[attr-defined]
    registry.random_hparams = random_hparams  # type: ignore[attr-defined]
    return built
