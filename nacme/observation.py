"""Passing batches through a model whose taps are read, over a loader or one by one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nacme.errors import NacmeError
from nacme.taps import Reading, Taps, untouched


@contextmanager
def observing(
    model: nn.Module,
    layers: Sequence[str] | None = None,
    device: torch.device | str | None = None,
    further: Sequence[str] = (),
    labelled: bool = True,
) -> Iterator[Callable[[Any], tuple[Reading, Tensor]]]:
    """Prepare a model for batches that the caller hands over one by one.

    The model is in evaluation mode with frozen parameters inside the context, and as it was afterwards.

    Parameters
    ----------
    model : nn.Module
        Gives logits from ``predict(x)`` where it has that method, else from ``forward``.
    layers, further : sequence of str
        See `nacme.taps.Taps`.
    device : torch.device or str, optional
        Where batches are moved to. None: where the model is.
    labelled : bool
        Whether batches must have labels. False: they may lack them, or have anything in their place; labels are
        then whatever there is one of for each sample, else an empty tensor.

    Yields
    ------
    callable
        Takes ``(x, y, ...)`` or ``{"x": ..., "y": ...}``; gives a `Reading` and labels [B], on the device. It
        raises NacmeError for something else than pairs and for labels that are no class's number, and LayerError
        as `nacme.taps.Taps` does.
    """
    with untouched(model), Taps(model, layers, further) as taps:
        place = _placing(model, device, labelled)

        def read(batch: Any) -> tuple[Reading, Tensor]:
            x, labels = place(batch)
            reading = taps.read(x)
            if labelled:
                check_labels(_pair(batch)[1], reading.logits.shape[1])
            return reading, labels

        yield read


def observe(
    model: nn.Module,
    loader: Iterable[Any],
    layers: Sequence[str] | None = None,
    device: torch.device | str | None = None,
) -> Iterator[tuple[Reading, Tensor]]:
    """Pass over a loader once and read the taps of every batch; see `observing`.

    Parameters
    ----------
    model, layers, device
        See `observing`.
    loader : iterable
        Of ``(x, y, ...)`` or ``{"x": ..., "y": ...}``.

    Yields
    ------
    reading : Reading
    labels : Tensor, shape [B]

    Raises
    ------
    LayerError
        See `nacme.taps.Taps`.
    NacmeError
        If the loader gives no samples, or something else than pairs.
    """
    with observing(model, layers, device) as read:
        yield from map(read, not_empty(loader))


def batches(
    model: nn.Module, loader: Iterable[Any], device: torch.device | str | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Bring a loader's batches to where the model is, inputs in its floating point type.

    Parameters
    ----------
    model, loader, device
        See `observe`.

    Yields
    ------
    x : Tensor, shape [B, ...]
    labels : Tensor, shape [B]

    Raises
    ------
    NacmeError
        If the loader gives no samples, or something else than pairs.
    """
    yield from map(_placing(model, device), not_empty(loader))


def not_empty(loader: Iterable[Any]) -> Iterator[Any]:
    """Yield a loader's batches; NacmeError if there are none."""
    try:
        len(loader)  # type: ignore[arg-type]
    except ValueError as error:  # as DomainBed's training loader answers
        raise NacmeError(
            f"the loader never ends ({error}); measure on one that passes over its data once"
        ) from None
    except (TypeError, NotImplementedError):  # it does not say
        pass
    empty = True
    for batch in loader:
        empty = False
        yield batch
    if empty:
        raise NacmeError("the loader gave no samples; check the split and its batch size")


def _placing(
    model: nn.Module, device: torch.device | str | None = None, labelled: bool = True
) -> Callable[[Any], tuple[Tensor, Tensor]]:
    """Make the function that brings a batch to where the model is, inputs in its floating point type."""
    tensors = [t for t in itertools.chain(model.parameters(), model.buffers()) if t.is_floating_point()]
    to = torch.device(device) if device is not None else (tensors[0].device if tensors else torch.device("cpu"))

    def place(batch: Any) -> tuple[Tensor, Tensor]:
        x, y = _pair(batch) if labelled else _maybe_pair(batch)
        x = x.to(to, non_blocking=True)
        if x.is_floating_point() and tensors:
            x = x.to(tensors[0].dtype)
        labels = torch.as_tensor(y)
        if not labelled and labels.numel() != len(x):
            return x, labels.new_empty(0)
        if labels.numel() != len(x):
            raise NacmeError(
                f"labels of shape {list(labels.shape)} for {len(x)} inputs: give one class number a sample, for "
                "one-hot labels y.argmax(dim=1)"
            )
        return x, labels.to(to, non_blocking=True).reshape(len(x))

    return place


def check_labels(labels: Any, num_classes: int) -> None:
    """Refuse labels that are no class's number.

    Parameters
    ----------
    labels : tensor or array, shape [B]
        Where the loader gave them: on the CPU, looking at them keeps no device waiting.
    num_classes : int
        ``C``; for a single logit, 1: the classes are 0 and 1.

    Raises
    ------
    NacmeError
        If one is not a whole number, or none of ``0 .. C - 1``.
    """
    values = torch.as_tensor(labels)
    classes = max(num_classes, 2)
    wrong = (values < 0) | (values >= classes)
    if values.is_floating_point():
        wrong |= values != values.floor()
    if bool(wrong.any()):
        raise NacmeError(
            f"label {values[wrong].flatten()[0].item():.6g} is no class of a model with {num_classes} logits: "
            f"labels are whole numbers from 0 to {classes - 1}; leave out samples without one"
        )


def _maybe_pair(batch: Any) -> tuple[Tensor, Any]:
    """Inputs, and what stands in the place of labels if it could be some."""
    if isinstance(batch, dict) and "x" in batch:
        batch = (batch["x"], batch.get("y"))
    if isinstance(batch, Tensor):
        batch = (batch,)
    if isinstance(batch, tuple | list) and batch and isinstance(batch[0], Tensor):
        return batch[0], batch[1] if len(batch) > 1 and isinstance(batch[1], Tensor) else ()
    raise NacmeError(f"the loader must give inputs as tensors, not {type(batch).__name__}")


def _pair(batch: Any) -> tuple[Tensor, Any]:
    if isinstance(batch, dict) and {"x", "y"} <= batch.keys():
        return batch["x"], batch["y"]
    if isinstance(batch, (tuple, list)) and len(batch) >= 2 and isinstance(batch[0], Tensor):
        return batch[0], batch[1]
    raise NacmeError(f"the loader must give (inputs, labels) pairs of tensors, not {type(batch).__name__}")
