"""Neuron activation states: what a neuron says, weighted by what it means for the prediction.

Source: Liu et al., "Neuron Activation Coverage: Rethinking Out-of-distribution Detection and Generalization",
ICLR 2024 (arXiv 2306.02879), equations 1 and 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from nacme.errors import ConfigError, LayerError

POOLINGS = ("sum", "first")


def uniform_kl(logits: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the prediction from the uniform distribution, up to a constant.

    Parameters
    ----------
    logits : Tensor, shape [B, C]
        One column means a binary head: its classes are read as ``[0, f]``.

    Returns
    -------
    Tensor, shape [B]
        ``-(1 / C) sum_c log p_c``, in nats, in at least float32.
    """
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    return -F.log_softmax(at_least_float32(logits), dim=1).mean(dim=1)


def kl_gradients(logits: Tensor, activations: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """Differentiate ``KL(u || p)`` by each activation, for every sample on its own, in one backward pass.

    Parameters
    ----------
    logits : Tensor, shape [B, C]
        Still attached to its graph.
    activations : sequence of Tensor, each of shape [B, ...]
        Layer outputs that the logits were computed from.

    Returns
    -------
    list of Tensor
        ``dKL(u || p) / dz``, one per activation, shapes kept. The graph is freed.

    Raises
    ------
    LayerError
        If the logits do not depend on an activation.

    Notes
    -----
    Labels play no part. Samples are separated by summing over the batch, which is exact as long as no layer
    mixes samples, as batch normalization does in training mode.

    Source: arXiv 2306.02879, equation 1; ``benchmark_notes/instr_state.py`` of the authors' code.
    """
    wanted = [activations] if isinstance(activations, Tensor) else list(activations)
    if not logits.requires_grad:
        raise LayerError(
            "the logits carry no graph to differentiate; compute them with gradients enabled from activations "
            "that require them"
        )
    if any(not activation.requires_grad for activation in wanted):
        raise LayerError("an activation does not require gradients, so the logits cannot be differentiated by it")
    found = torch.autograd.grad(uniform_kl(logits).sum(), wanted, allow_unused=True)
    for position, gradient in enumerate(found):
        if gradient is None:
            raise LayerError(f"the logits do not depend on activation {position}; tap a layer that feeds them")
    return list(found)


def head_gradients(logits: Tensor, weight: Tensor) -> Tensor:
    """Differentiate ``KL(u || p)`` by the input ``z`` of a linear head ``f = W z + b``, in closed form.

    Parameters
    ----------
    logits : Tensor, shape [B, C]
        The head's output.
    weight : Tensor, shape [C, N]
        The head's weight.

    Returns
    -------
    Tensor, shape [B, N]
        ``(p - 1 / C) W``, in at least float32. One logit: ``(sigmoid(f) - 1 / 2) W``.
    """
    logits = at_least_float32(logits)
    excess = logits.sigmoid() - 0.5 if logits.shape[1] == 1 else logits.softmax(dim=1) - 1 / logits.shape[1]
    return excess @ weight.to(excess.dtype)


def pool_positions(values: Tensor, pool: str = "sum") -> Tensor:
    """Reduce a layer's output, or its gradient, to one number per sample and neuron.

    Parameters
    ----------
    values : Tensor, shape [B, N], [B, T, N] (tokens) or [B, N, H, W, ...] (maps, channels first)
    pool : {"sum", "first"}
        Add up positions, as the authors do, or take token 0 alone (tokens only).

    Returns
    -------
    Tensor, shape [B, N]
        Sums in at least float32.

    Raises
    ------
    ConfigError
        If ``pool`` is unknown, or ``"first"`` is asked of a map.
    LayerError
        If ``values`` has fewer than two dimensions.
    """
    if pool not in POOLINGS:
        raise ConfigError(f"pool={pool!r} is unknown; use one of {', '.join(map(repr, POOLINGS))}")
    if values.dim() < 2:
        raise LayerError(
            f"a layer must give [B, N], [B, T, N] or [B, N, H, W], not the shape {list(values.shape)}"
        )
    if values.dim() == 2:
        return values
    # half precision overflows in a sum over positions
    wide = at_least_float32(values[:0]).dtype
    if values.dim() == 3:
        return values[:, 0] if pool == "first" else values.sum(dim=1, dtype=wide)
    if pool == "first":
        raise ConfigError("pool='first' takes the class token, and a feature map has none; use pool='sum'")
    return values.flatten(2).sum(dim=2, dtype=wide)


def neuron_states(activation: Tensor, gradient: Tensor | None, alpha: float, pool: str = "sum") -> Tensor:
    """Compute the state ``sigmoid(alpha * z * g)`` of each neuron for each sample.

    Positions of a map, or tokens, are pooled first, activation and gradient each on its own: a product of two
    sums, not a sum of products.

    Parameters
    ----------
    activation : Tensor, shape [B, N], [B, T, N] or [B, N, H, W]
        A layer's output ``z``.
    gradient : Tensor of the same shape, or None
        ``dKL(u || p) / dz``. None leaves it out: the state of the activation alone.
    alpha : float
        Steepness of the sigmoid, above 0.
    pool : {"sum", "first"}
        See `pool_positions`.

    Returns
    -------
    Tensor, shape [B, N]
        In [0, 1], in at least float32. In float32 a state is exactly 1 from ``alpha * z * g`` of about 16.6 on,
        and exactly 0 below about -88.7.

    Raises
    ------
    ConfigError
        If ``alpha`` is not a positive number, or the shapes differ.

    Notes
    -----
    Source: arXiv 2306.02879, equation 2.
    """
    if not alpha > 0:
        raise ConfigError(f"alpha={alpha!r} must be a positive number")
    product = pool_positions(at_least_float32(activation), pool)
    if gradient is not None:
        if gradient.shape != activation.shape:
            raise ConfigError(
                f"activation {list(activation.shape)} and gradient {list(gradient.shape)} must have one shape"
            )
        product = product * pool_positions(at_least_float32(gradient), pool)
    return torch.sigmoid(alpha * product)


def at_least_float32(values: Tensor) -> Tensor:
    """Promote half precision to float32; leave float32 and float64 as they are.

    Parameters
    ----------
    values : Tensor

    Returns
    -------
    Tensor
        The same shape.
    """
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
