"""Where a run's classifier starts: the hyper-parameter ``head_init``.

Averages of weights across runs need networks that started at the same place. A pretrained featurizer does, but
DomainBed draws a classifier of its own for every run. Only the classifier's values are replaced: the algorithm is
built as ever, and no number is drawn from the global generators.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Subset

from domainbed_plugins.data.streams import collate, underlying
from nacme.errors import ConfigError
from nacme.taps import untouched

if TYPE_CHECKING:
    from domainbed_plugins.data.splits import Splits
    from domainbed_plugins.interface import Testbed

KEY = "head_init"
STOCK, SHARED, PROBE = "stock", "shared", "linear_probe"
HEAD_INITS = (STOCK, SHARED, PROBE)
#: Full batches and learning rate of the probe's fit by Adam. Fitted to convergence its rows grow long (norms near
#: 9), and the first 100 steps of fine-tuning then cost 16 points of validation accuracy.
PROBE_STEPS, PROBE_LR = 150, 1e-3
_BATCH_SIZE = 64


def check(hparams: Mapping[str, Any]) -> None:
    """Refuse an unknown ``head_init``.

    Parameters
    ----------
    hparams : mapping

    Raises
    ------
    ConfigError
    """
    if hparams.get(KEY, STOCK) not in HEAD_INITS:
        raise ConfigError(f"--{KEY} {hparams[KEY]!r} is unknown; known: {', '.join(map(repr, HEAD_INITS))}")


def initialize(
    algorithm: nn.Module, args: Mapping[str, Any], hparams: Mapping[str, Any], splits: Splits, testbed: Testbed
) -> None:
    """Put an algorithm's classifier where ``head_init`` says.

    Parameters
    ----------
    algorithm : nn.Module
        Just built, on its device.
    args : mapping
        ``trial_seed``, ``test_envs`` and ``algorithm`` are read.
    hparams : mapping
        ``head_init``: ``"stock"`` leaves it as it is. ``"shared"`` draws it from the trial seed alone, as
        ``nn.Linear`` does. ``"linear_probe"`` goes on from there and fits it on the features that the untrained
        network gives for the training environments' ``in`` splits, read without augmentation.
    splits : Splits
    testbed : Testbed

    Raises
    ------
    ConfigError
        If the algorithm has no linear classifier on its featurizer's outputs.
    """
    kind = hparams.get(KEY, STOCK)
    if kind == STOCK:
        return
    classifier = _classifier(algorithm, args["algorithm"], kind)
    generator = torch.Generator().manual_seed(testbed.misc.seed_hash(KEY, args["trial_seed"]))
    bound = classifier.in_features**-0.5
    weight, bias = (
        torch.empty(shape).uniform_(-bound, bound, generator=generator).to(classifier.weight.device)
        for shape in (classifier.weight.shape, classifier.bias.shape)
    )
    if kind == PROBE:
        features, labels = _features(algorithm, args, splits)
        weight, bias = fit(features, labels, weight, bias)
    _replace(algorithm, classifier, weight, bias)


def fit(features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Fit a linear classifier by a fixed number of full-batch steps of Adam on the cross entropy.

    Parameters
    ----------
    features : Tensor, shape [n, N]
    labels : Tensor, shape [n]
    weight, bias : Tensor, shapes [C, N] and [C]
        Where to start.

    Returns
    -------
    tuple of Tensor
        Weight and bias.
    """
    with torch.enable_grad():
        parameters = [start.clone().requires_grad_() for start in (weight, bias)]
        optimizer = torch.optim.Adam(parameters, lr=PROBE_LR)
        for _ in range(PROBE_STEPS):
            optimizer.zero_grad()
            F.cross_entropy(F.linear(features, *parameters), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return parameters[0].detach(), parameters[1].detach()


def _classifier(algorithm: nn.Module, name: str, kind: str) -> nn.Linear:
    classifier = getattr(algorithm, "classifier", None)
    width = getattr(getattr(algorithm, "featurizer", None), "n_outputs", None)
    if isinstance(classifier, nn.Linear) and classifier.in_features == width:
        return classifier
    raise ConfigError(
        f"--{KEY} {kind}: {name} has no linear classifier on its featurizer's outputs here; leave it at {STOCK}"
    )


def _features(algorithm: Any, args: Mapping[str, Any], splits: Splits) -> tuple[Tensor, Tensor]:
    device = next(algorithm.parameters()).device
    features, labels = [], []
    with untouched(algorithm), torch.no_grad():
        for split in _without_augmentation(splits, args["test_envs"]):
            for start in range(0, len(split), _BATCH_SIZE):
                x, y = collate(split, list(range(start, min(start + _BATCH_SIZE, len(split)))))
                try:
                    features.append(algorithm.featurizer(x.to(device)))
                except RuntimeError as error:
                    reason = str(error).partition("\n")[0]
                    raise ConfigError(
                        f"--{KEY} {PROBE}: {args['algorithm']}'s featurizer does not take images alone "
                        f"({reason}); use {SHARED} or {STOCK}"
                    ) from error
                labels.append(y.to(device))
    return torch.cat(features), torch.cat(labels)


def _without_augmentation(splits: Splits, test_envs: list[int]) -> Iterator[Any]:
    """Give the training environments' ``in`` splits, read as test environments are: those are never augmented."""
    plain = getattr(splits.dataset[test_envs[0]], "transform", None)
    for _, split, _ in splits.train:
        if plain is None:  # data in memory
            yield split
            continue
        env, keys = underlying(split)
        env = copy.copy(env)
        env.transform = plain
        yield Subset(env, list(keys))


def _replace(algorithm: nn.Module, classifier: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    """Set a classifier and the copies that an algorithm made of it, such as an average to be updated."""
    before = classifier.weight.detach().clone()
    with torch.no_grad():
        for module in algorithm.modules():
            if isinstance(module, nn.Linear) and torch.equal(module.weight, before):
                module.weight.copy_(weight)
                module.bias.copy_(bias)
