"""Having a model predict: whatever its inputs are called and however it wraps its logits."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nacme.errors import LayerError


def predict_logits(predict: Callable[..., Any], x: Any) -> Tensor:
    """Have a model predict.

    Parameters
    ----------
    predict : callable
        Its ``predict``, or itself.
    x : Tensor, tuple or mapping
        The input; several by position or by name.

    Returns
    -------
    Tensor, shape [B, C]
        What it gives, or the ``logits`` of that.

    Raises
    ------
    LayerError
        If it does not take such input, or gives anything else.
    """
    if isinstance(x, Mapping):
        _check_names(predict, x)
        out = predict(**x)
    else:
        out = predict(*x) if isinstance(x, tuple) else predict(x)
    logits = out.get("logits") if isinstance(out, Mapping) else getattr(out, "logits", out)
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        found = list(logits.shape) if isinstance(logits, Tensor) else type(out).__name__
        raise LayerError(f"the model must give logits of shape [B, C], not {found}; wrap it so that it does")
    return logits


def are_probabilities(output: Tensor) -> bool:
    """Whether a model's output [B, C] has been through a softmax: each row in [0, 1] and of sum 1."""
    rows = output.detach().double()
    # a sum of C rounded numbers
    tolerance = 4 * torch.finfo(output.dtype).eps * output.shape[1] ** 0.5
    inside = (rows >= 0) & (rows <= 1)
    sums = (rows.sum(dim=1) - 1).abs() <= tolerance
    return output.shape[1] > 1 and bool(inside.all()) and bool(sums.all())


def _check_names(predict: Callable[..., Any], x: Mapping[str, Any]) -> None:
    """Refuse inputs that a model has no arguments for, before its own TypeError does."""
    try:
        signature = inspect.signature(predict.forward if isinstance(predict, nn.Module) else predict)
    except (TypeError, ValueError):  # it does not tell
        return
    try:
        signature.bind(**x)
    except TypeError as error:
        raise LayerError(
            f"the model cannot be given {', '.join(map(repr, x))} ({error}); give batches (x, y), or name the "
            "inputs as its forward does"
        ) from None
