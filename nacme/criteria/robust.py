"""Coverage in a unit of its own: ``nac_me_robust``, which needs no setting that fits the network or the data set.

NAC-ME's ``alpha``, ``M`` and ``O`` belong to the networks and the data sizes that they were chosen for: ``z * g``
grows with the positions that a map is summed over and shrinks with the layer's width, and ``O`` is a count. Here
the state is measured in nats and bins are filled by shares of the samples, so one choice serves all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nacme.coverage import add_states
from nacme.taps import Reading

#: Bins that each neuron's states are counted in, over [0, 1]; a bin is covered at a share of ``1 / BINS``.
BINS = 20
#: The contribution, in nats, at which a state is half way from the middle to the end of its range.
NATS = 5.0


@dataclass
class RobustCoverage:
    """``nac_me_robust``, gathered batch by batch over the splits of any number of environments.

    The state of a neuron is what it contributes to the prediction, in nats: ``u = N z g / P``, with ``N`` the
    layer's width, ``z`` and ``g = dKL(u || p) / dz`` summed over its ``P`` positions as for NAC-ME. Summed over
    the input of a linear head, ``z g`` is ``sum_c (p_c - 1 / C) (f_c - b_c)``, the margin of the logits ``f`` less
    the bias ``b``, and ``u`` is what that would be if all neurons did as this one. ``u`` becomes a state
    ``1 / 2 + u / (2 (5 + |u|))`` in (0, 1), counted in 20 equal bins, correctly classified samples only, each
    environment apart. With ``q`` the shares of an environment's samples that a neuron's bins hold, its coverage is
    ``sum_b min(q_b, 1 / 20)``: the overlap of its states with an even spread over the range. The mean is taken
    over neurons and layers, then the minimum over environments.

    Attributes
    ----------
    counts : dict of (str, str) to Tensor, shape [N, 20], int64
        By environment and layer.

    Notes
    -----
    What cannot go wrong, by construction. Twenty bins always hold one with a twentieth of the samples, so no ``O``
    is out of reach and the value is no count in disguise: it is at least 1 / 20 (all states of each neuron in one
    bin) and at most 1. Shares do not change when every sample is there twice. ``u`` does not change when the
    features are scaled by a positive number and the head by its inverse, nor when each neuron is split into equal
    parts, nor with the place of a mean over positions: before it and behind it the values are equal. Every finite
    state is in a bin.

    Its limits. The scale of the logits is part of it and is meant to be: a network that has learned nothing
    predicts evenly, all contributions are near 0 nats, and coverage is near 1 / 20; one so sure of itself that
    neurons contribute hundreds of nats has its states at both ends, and less coverage again. Rescaling the logits
    alone (a temperature) changes it. With few samples in an environment, shares are rough: below some 40 correct
    ones coverage comes out too low. An environment without any correct sample has coverage 0.

    Source: ours, after Liu et al. (arXiv 2306.02879), equations 1 to 5. The 5 nats were set on RotatedDigits,
    where the mean tau within 9 runs lies between 0.52 and 0.62 for anything from 2 to 20 nats.
    """

    counts: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    _undefined: Tensor | bool = False

    def update(self, env: str, reading: Reading, correct: Tensor) -> None:
        """Count a batch of an environment's split.

        Parameters
        ----------
        env : str
            Any name that stands for the environment.
        reading : Reading
        correct : Tensor, shape [B], bool
            Which samples were classified correctly.
        """
        for layer, activation in reading.activations.items():
            contribution = activation.float() * reading.gradients[layer].float()
            contribution = contribution * (activation.shape[1] / reading.positions.get(layer, 1))
            self._undefined = ~contribution.isfinite().all() | self._undefined
            states = contribution_states(contribution).masked_fill(~correct.unsqueeze(1), math.nan)
            if (env, layer) not in self.counts:
                shape = (activation.shape[1], BINS)
                self.counts[env, layer] = torch.zeros(shape, dtype=torch.int64, device=states.device)
            edges = torch.linspace(0, 1, BINS + 1, device=states.device)
            add_states(self.counts[env, layer], states, edges, "linear")

    def per_env(self) -> dict[str, float]:
        """Coverage of each environment, the mean over layers; NaN where a contribution was not finite."""
        found: dict[str, list[float]] = {}
        for (env, _), held in self.counts.items():
            counts = held.cpu()
            total = max(int(counts[0].sum()), 1)
            # whole numbers up to the last division: shares that are equal give equal values
            covered = int((counts * BINS).clamp(max=total).sum())
            found.setdefault(env, []).append(covered / (total * BINS * len(counts)))
        undefined = bool(self._undefined)
        return {env: math.nan if undefined else sum(values) / len(values) for env, values in found.items()}

    def value(self) -> float:
        """The criterion: the least coverage of an environment; NaN where it is undefined."""
        found = self.per_env()
        return math.nan if any(map(math.isnan, found.values())) else min(found.values(), default=math.nan)

    def occupied_bins(self) -> float:
        """Mean number of bins that hold any state, over neurons, layers and environments."""
        found = [float((counts.cpu() > 0).sum(dim=1).double().mean()) for counts in self.counts.values()]
        return sum(found) / len(found) if found else math.nan

    def details(self) -> dict[str, Any]:
        """What a record says beside the value: coverage by environment, and the bins occupied."""
        return {"per_env": self.per_env(), "occupied_bins": self.occupied_bins()}

    @staticmethod
    def memory(samples: int, width: int, splits: int, layers: int) -> int:
        """Bytes held until the pass is over, however many samples there are."""
        return 8 * width * BINS * splits * layers


def contribution_states(contributions: Tensor) -> Tensor:
    """Map contributions in nats, any shape, to states in [0, 1), half of the way to an end at 5 nats.

    Infinities and NaN give NaN.
    """
    states = 0.5 + contributions / (2 * (NATS + contributions.abs()))
    # rounding may reach 1, where no bin is
    return states.clamp(max=1 - torch.finfo(torch.float32).eps)
