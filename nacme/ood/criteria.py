"""Detectors' mean scores of in-distribution data as selection criteria; recorded only when asked for.

Where a detector has to be fitted, it is fitted on every second validation sample of each environment and scores
the others. Settings are the published ones: nothing is searched, so that checkpoints compare.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nacme.criteria.network import Collected
from nacme.observation import observe
from nacme.ood import functional
from nacme.states import neuron_states
from nacme.taps import INPUT

#: The authors' for pooled penultimate features on CIFAR-10, as those of `nacme.ood.NACUE`.
NAC_ALPHA = 100.0


def nac_ue_mean(data: Collected) -> float:
    """Mean NAC-UE likelihood of one half of the validation samples under the states of the other."""
    states = [neuron_states(data.features[split], data.gradients[split], NAC_ALPHA) for split in data.features]
    reference, scored = _halves(states)
    return functional.nac_ue_mean(reference, scored)


def line_energy(data: Collected) -> float:
    """Mean LINe energy of one half of the validation samples, contributions from the other."""
    features: list[Tensor] = []
    labels: list[Tensor] = []
    with torch.random.fork_rng():  # some algorithms draw random numbers to predict
        for loader in data.loaders.values():
            readings: list[Tensor] = []
            truth: list[Tensor] = []
            for reading, y in observe(data.model, loader):
                (name,) = reading.activations
                readings.append(reading.activations[name])
                truth.append(y)
            features.append(torch.cat(readings))
            labels.append(torch.cat(truth))
    # penultimate features are the input of the linear layer that gives the logits
    head = data.model.get_submodule(name.removesuffix(INPUT))
    assert isinstance(head, nn.Linear)
    if head.out_features < 2:
        return math.nan
    (fitted, scored), (known, _) = _halves(features), _halves(labels)
    weight, bias = head.weight.detach(), None if head.bias is None else head.bias.detach()
    contribution = functional.line_contribution(fitted, weight, known, len(weight))
    return functional.line_energy(scored, weight, bias, contribution)


def nap_mean(data: Collected) -> float:
    """Mean Neural Activation Prior of the validation samples, at the last feature map."""
    from nacme.ood import NAP

    detector = NAP(data.model)
    with torch.random.fork_rng():
        scores = [-detector.score(detector.collect(loader)[0]) for loader in data.loaders.values()]
    return float(torch.cat(scores).mean())


def _halves(parts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Every second sample of each environment, and the others."""
    return torch.cat([part[::2] for part in parts]), torch.cat([part[1::2] for part in parts])
