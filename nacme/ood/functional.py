"""Bare formulas of the detectors: tensors in, tensors out. Needs torch alone.

In every function here a higher score is more *in-distribution*, as in the papers; the detectors turn the sign.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from nacme.errors import ConfigError
from nacme.metric import NeuronActivationCoverage
from nacme.states import at_least_float32


def line_contribution(features: Tensor, weight: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Average contribution of each neuron to each class: LINe's first-order Taylor estimate.

    Parameters
    ----------
    features : Tensor, shape [B, N]
        Penultimate features ``z``, not clipped.
    weight : Tensor, shape [C, N]
        Weight of the linear head.
    labels : Tensor, shape [B], integer
        True classes.
    num_classes : int
        ``C``.

    Returns
    -------
    Tensor, shape [N, C], float64
        Mean over the samples labelled ``c`` of activation times gradient of the true class's logit,
        ``z_n W[y, n]``, signed. A class without samples has a column of NaN.

    Raises
    ------
    ConfigError
        If shapes disagree or a label lies outside ``0 .. num_classes - 1``.

    Notes
    -----
    Source: Ahn et al., "LINe: Out-of-Distribution Detection by Leveraging Important Neurons", CVPR 2023
    (arXiv 2303.13995); ``precompute.py`` of the authors' code.
    """
    if weight.shape != (num_classes, features.shape[1]):
        raise ConfigError(
            f"weight must be [num_classes, features] = [{num_classes}, {features.shape[1]}], "
            f"not {list(weight.shape)}"
        )
    if labels.shape != features.shape[:1]:
        raise ConfigError(f"labels must be [{features.shape[0]}], not {list(labels.shape)}")
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ConfigError(
            f"labels run from {int(labels.min())} to {int(labels.max())}, outside 0 to {num_classes - 1}"
        )
    sums = torch.zeros(num_classes, features.shape[1], dtype=torch.float64, device=features.device)
    sums.index_add_(0, labels, features.double())
    counts = torch.bincount(labels, minlength=num_classes)
    return (weight.double() * sums / counts[:, None]).T


def line_thresholds(
    contribution: Tensor, weight: Tensor, activation_percentile: float, weight_percentile: float
) -> tuple[float, float]:
    """Thresholds of LINe's two masks, for one predicted class.

    Parameters
    ----------
    contribution : Tensor, shape [N]
        One class's column of `line_contribution`.
    weight : Tensor, shape [C, N]
    activation_percentile, weight_percentile : float
        ``p_a`` and ``p_w``, in [0, 100]: the share that is masked.

    Returns
    -------
    tuple of float
        For neurons: the percentile of ``contribution[n]``. For weights: the percentile of
        ``|contribution[n]| W[k, n]`` over all ``(k, n)``. NaN where the contribution is.

    Raises
    ------
    ConfigError
        If a percentile lies outside [0, 100].
    """
    for name, percent in (("activation", activation_percentile), ("weight", weight_percentile)):
        if not 0 <= percent <= 100:
            raise ConfigError(f"{name}_percentile={percent!r} must lie in [0, 100]")
    contribution, weight = contribution.detach().double(), weight.detach().double()
    # numpy's percentile, in float64: a threshold may equal an element, which the masks' ">" then drops
    pairs = (contribution.abs() * weight).cpu().numpy()
    return (
        float(np.percentile(contribution.cpu().numpy(), activation_percentile)),
        float(np.percentile(pairs, weight_percentile)),
    )


def line_masked_logits(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    contribution: Tensor,
    thresholds: Callable[[int], tuple[float, float]],
    clip: float,
) -> Tensor:
    """Logits of a linear head through LINe's masks.

    Parameters
    ----------
    features, weight, bias, contribution, clip
        See `line_logits`.
    thresholds : callable
        Gives `line_thresholds` of a class; called once for each class that is predicted.

    Returns
    -------
    Tensor, shape [B, C]
    """
    clipped = features.clamp(max=clip)
    predicted = torch.nn.functional.linear(clipped, weight, bias).argmax(dim=1)
    logits = clipped.new_empty(len(clipped), len(weight))
    for c in predicted.bincount().nonzero().flatten().tolist():
        rows = predicted == c
        column = contribution[:, c].double()
        neuron, pair = thresholds(c)
        kept = weight * (column.abs() * weight.double() > pair)
        logits[rows] = torch.nn.functional.linear(clipped[rows] * (column > neuron), kept, bias)
    return logits


def line_logits(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    contribution: Tensor,
    activation_percentile: float,
    weight_percentile: float,
    clip: float,
) -> Tensor:
    """Logits of a linear head with the neurons and weights masked that matter little to the predicted class.

    Parameters
    ----------
    features : Tensor, shape [B, N]
        Penultimate features ``z``, at least 0.
    weight : Tensor, shape [C, N]
    bias : Tensor, shape [C], or None
        Kept whole: no mask touches it.
    contribution : Tensor, shape [N, C]
        From `line_contribution`.
    activation_percentile : float
        ``p_a`` in [0, 100]: percent of the neurons that are masked.
    weight_percentile : float
        ``p_w`` in [0, 100]: percent of the ``C N`` weights that are masked.
    clip : float
        Activations above are cut to it, before the class is chosen.

    Returns
    -------
    Tensor, shape [B, C]
        The score is their energy, ``logsumexp`` over classes: higher is more in-distribution.

    Notes
    -----
    With ``a = min(z, clip)`` and ``c`` the class that the *unmasked* head predicts for ``a``, a neuron stays if
    ``contribution[n, c]`` (signed) is strictly above its percentile over neurons, and a weight ``(k, n)`` if
    ``|contribution[n, c]| W[k, n]`` (signed weight) is strictly above its percentile over all weights. A class
    without training samples keeps nothing: its logits are the bias. Samples are grouped by predicted class, so
    memory stays at a few ``[C, N]`` matrices.

    Source: arXiv 2303.13995; ``models/route.py`` of the authors' code.
    """

    def thresholds(c: int) -> tuple[float, float]:
        return line_thresholds(contribution[:, c], weight, activation_percentile, weight_percentile)

    return line_masked_logits(features, weight, bias, contribution, thresholds, clip)


def nap_score(feature_map: Tensor, eps: float = 1e-6, power: float = 2.0) -> Tensor:
    """How sharply each channel peaks before global pooling: the Neural Activation Prior.

    Parameters
    ----------
    feature_map : Tensor, shape [B, N, H, W]
        Output of the last layer before global pooling, rectified. Of a signed map the magnitudes are taken.
    eps : float
        Added to the mean. The default keeps the ratio free of scale; see the notes.
    power : float
        Of the ratio.

    Returns
    -------
    Tensor, shape [B]
        ``(1 / N) sum_n (max_n / (mean_n + eps)) ** power``: higher is more in-distribution.

    Raises
    ------
    ConfigError
        If the map has not four dimensions, or a single position.

    Notes
    -----
    Source: Wan et al., "Out-of-Distribution Detection using Neural Activation Prior" (arXiv 2402.18162). The
    ratio of maximum to mean per channel, its square, and the mean over channels are the paper's, each confirmed by
    two independent descriptions of it. The size of ``eps`` is less sure: one description gives 1.0, the others
    call it a small constant, and no code of the authors was found. `nacme.ood.NAP` therefore uses 1.0 by
    default, which also keeps nearly silent channels from dominating the sum, and lets it be set.
    """
    return nap_ratio(*peak_and_mean(feature_map), eps=eps, power=power)


def peak_and_mean(feature_map: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum and mean of each channel over its positions.

    Parameters
    ----------
    feature_map : Tensor, shape [B, N, H, W]

    Returns
    -------
    tuple of Tensor, each of shape [B, N]
        Of magnitudes, in at least float32.

    Raises
    ------
    ConfigError
        If the map has not four dimensions, or a single position.
    """
    if feature_map.dim() != 4 or feature_map.shape[2:].numel() < 2:
        raise ConfigError(
            f"feature_map must be [B, N, H, W] with more than one position, not {list(feature_map.shape)}; take "
            "the layer before global pooling"
        )
    positions = at_least_float32(feature_map).abs().flatten(2)
    return positions.amax(dim=2), positions.mean(dim=2)


def nap_ratio(peak: Tensor, mean: Tensor, eps: float = 1e-6, power: float = 2.0) -> Tensor:
    """`nap_score` from each channel's maximum and mean.

    Parameters
    ----------
    peak, mean : Tensor, shape [B, N]
        From `peak_and_mean`.
    eps, power : float
        See `nap_score`.

    Returns
    -------
    Tensor, shape [B]
    """
    return (peak / (mean + eps)).pow(power).mean(dim=1)


def nap_attention_score(attention: Tensor) -> Tensor:
    """How sharply the class token attends to a patch: the Neural Activation Prior for transformers.

    Parameters
    ----------
    attention : Tensor, shape [B, heads, T, T]
        Attention weights of the last block, rows summing to 1, token 0 the class token.

    Returns
    -------
    Tensor, shape [B]
        The largest weight that the class token gives to another token, averaged over heads: higher is more
        in-distribution.

    Raises
    ------
    ConfigError
        If the weights are not ``[B, heads, T, T]``.

    Notes
    -----
    The weights' mean is fixed by the softmax, so only the maximum is left (arXiv 2402.18162). How the heads are
    joined is our reading: the maximum is taken in each head, then averaged.
    """
    if attention.dim() != 4 or attention.shape[2] != attention.shape[3] or attention.shape[2] < 2:
        raise ConfigError(f"attention must be [B, heads, T, T], not {list(attention.shape)}")
    return at_least_float32(attention)[:, :, 0, 1:].amax(dim=2).mean(dim=1)


def with_energy(score: Tensor, logits: Tensor, weight: float) -> Tensor:
    """Join a positive score with the energy score by a weighted geometric mean.

    Parameters
    ----------
    score : Tensor, shape [B]
        Above 0, higher is more in-distribution.
    logits : Tensor, shape [B, C]
    weight : float
        ``w`` in [0, 1], of the energy.

    Returns
    -------
    Tensor, shape [B]
        ``logsumexp(logits) ** w * score ** (1 - w)``. A ``logsumexp`` below 1e-6 counts as 1e-6: no power of a
        negative number is defined.

    Raises
    ------
    ConfigError
        If ``weight`` lies outside [0, 1].

    Notes
    -----
    Source: ``S_NAP-E`` of arXiv 2402.18162.
    """
    if not 0 <= weight <= 1:
        raise ConfigError(f"weight={weight!r} must lie in [0, 1]")
    if weight == 0:
        return score
    energy = at_least_float32(logits).logsumexp(dim=1).clamp_min(1e-6)
    return energy.pow(weight) * score.pow(1 - weight)


def nac_ue_mean(reference: Tensor, states: Tensor, bins: int = 50, fill: int | float = 50) -> float:
    """Mean NAC-UE likelihood of held-out InD samples, a number per network.

    Parameters
    ----------
    reference : Tensor, shape [R, N]
        States of the InD samples that coverage is built from; right or wrong predictions alike.
    states : Tensor, shape [B, N]
        States of the InD samples that are scored, others than the reference.
    bins : int
        ``M``, even.
    fill : int or float
        ``O``.

    Returns
    -------
    float
        In [0, 1]; NaN if there is no sample.
    """
    coverage = NeuronActivationCoverage(reference.shape[1], bins=bins, fill=fill, spacing="log")
    coverage.to(reference.device).update(reference)
    return float(coverage.likelihood(states).mean())


def line_energy(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    contribution: Tensor,
    activation_percentile: float = 90.0,
    weight_percentile: float = 90.0,
    clip: float = 1.0,
) -> float:
    """Mean LINe energy of InD samples, a number per network.

    Parameters
    ----------
    features, weight, bias, contribution, activation_percentile, weight_percentile, clip
        See `line_logits`.

    Returns
    -------
    float
        Mean over samples of the ``logsumexp`` of the masked logits; NaN if there is no sample.
    """
    logits = line_logits(features, weight, bias, contribution, activation_percentile, weight_percentile, clip)
    return float(at_least_float32(logits).logsumexp(dim=1).mean())
